"""The results folder as a queue of jobs: a finished one has its file, a claimed one is locked, the others are free.

So a run that was killed resumes: its locks are free at once (leases after 30 s), finished jobs have their files, a
training goes on from its last snapshot (`engine.training_snapshots`), an evaluation with the chunks that are missing
(`evaluation.partial_results`).
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from robustbench_meta.engine.training_snapshots import state_name
from robustbench_meta.errors import StorageError
from robustbench_meta.evaluation.partial_results import PartialResult, read_part
from robustbench_meta.experiment.checkpoints import checkpoint_name
from robustbench_meta.experiment.grid import Cell, Grid
from robustbench_meta.jobs.events import CellFailed, EventLog
from robustbench_meta.jobs.planner import EvaluationGroup, JobTarget, evaluation_groups, required_trainings
from robustbench_meta.results.store import Store
from robustbench_meta.runtime import tensor_files
from robustbench_meta.runtime.atomic_files import remove
from robustbench_meta.runtime.digest import digest_of
from robustbench_meta.runtime.locks import training_lock

_log = logging.getLogger(__name__)
_DAMAGED = (OSError, KeyError, ValueError, TypeError, AttributeError)
"""What reading the header of a damaged file may raise."""


@dataclass(frozen=True)
class Train:
    """Meta-train; the file is the checkpoint."""

    kind: ClassVar[str] = "train"
    target: JobTarget


@dataclass(frozen=True)
class Evaluate:
    """Evaluate cells of one training on a chunk of the episodes; the file is a part, see `partial_results`."""

    kind: ClassVar[str] = "evaluate"
    target: EvaluationGroup
    episodes: range
    cells: tuple[Cell, ...]
    path: Path


@dataclass(frozen=True)
class Assemble:
    """Write the records of cells, all parts of which are there."""

    kind: ClassVar[str] = "assemble"
    target: EvaluationGroup
    cells: tuple[Cell, ...]


Job = Train | Evaluate | Assemble


@cache
def _checksum(path: Path, _mtime: int, _size: int) -> str:
    return tensor_files.read_metadata(path)["checksum"]


def _lock(job: Job) -> str:
    if isinstance(job, Train):
        return training_lock(job.target.key)
    return f"{job.kind}-{job.target.key}" + (f"-{job.episodes.start}" if isinstance(job, Evaluate) else "")


class Queue:
    """The jobs of a run for its pending cells, as one worker sees them; `device`: what kind computes, cpu or cuda."""

    def __init__(
        self, grids: Sequence[Grid], store: Store, cells: Collection[str], device: str, log: EventLog
    ) -> None:  # fmt: skip
        self.store, self.log, self._device = store, log, device
        self.all_groups, self._needed = evaluation_groups(grids, cells, device), required_trainings(grids, cells)
        self.groups = list(self.all_groups)
        """Those with cells that are not over."""
        self.cells = {key: cell for group in self.groups for key, cell in group.cells.items()}
        self._last = ""
        """The key of the training of the last job that this worker claimed."""
        self._headers: dict[Path, frozenset[str]] = {}
        """The cells of each part whose header was read."""

    def claim(self, only: str | None = None) -> Job | None:
        """The next free job, locked until it is released; None: there is none at the moment.

        What this worker has trained it evaluates next; otherwise the costliest training comes first.

        Args:
            only: the key of a training whose evaluation alone is wanted.

        Raises:
            StorageError: a lock cannot be written.
        """
        for job in self._open(only):
            if self.store.locks.take(_lock(job)):
                if self._still_open(job):
                    self._last = job.target.key
                    return job
                self.release(job)
        return None

    def release(self, job: Job) -> None:
        """Unlock a job: it is done, or free again."""
        self.store.locks.give_back(_lock(job))

    def over(self) -> bool:
        """Whether all cells have a record, or failed."""
        self._refresh()
        return not self.groups

    def fail(self, cells: Iterable[str], reason: str, traceback: str = "") -> None:
        """Write down that these cells failed, and why; not of those that are over already."""
        over = self.store.over()
        for key in [key for key in cells if key not in over]:
            cell, title = self.cells[key], next(group.title for group in self.all_groups if key in group.wants)
            written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            about = {"spec": cell.spec.model_dump(mode="json"), "labels": cell.labels, "written": written}
            self.store.write_failure(key, {"reason": reason, "traceback": traceback, **about})
            self.log.emit(CellFailed(key, cell.labels, title, reason))

    def fail_training(self, key: str, reason: str, traceback: str = "") -> None:
        """All cells fail that wait for a checkpoint that will not come."""
        for group in self.all_groups:
            cells = [cell for cell, wants in group.wants.items() if key in wants]
            self.fail(cells, reason if group.key == key else f"surrogate: {reason}", traceback)

    def done(self, group: EvaluationGroup) -> tuple[int, int]:
        """How many (episode, attack) pairs of a group are evaluated, and how many there are."""
        missing = sum(len(cells) * len(episodes) for episodes, cells in self._missing(group))
        return group.pairs - missing, group.pairs

    def parts_of(self, group: EvaluationGroup, cell: Cell) -> list[PartialResult] | None:
        """All parts with that cell, in the order of the episodes; None: one is missing.

        One that is damaged is warned of and removed.
        """
        files, parts = self._parts(group), []
        for episodes in group.chunks:
            path = next((path for path in files[episodes] if cell.key in self._headers[path]), None)
            if path is None:
                return None
            try:
                parts.append(read_part(path.read_bytes(), group.key))
            except (OSError, StorageError) as error:
                self._drop(path, error)
                return None
        return parts

    def tidy(self, training: str) -> None:
        """Remove a training's snapshot and parts that nobody needs any more, also what a killed run left."""
        if self._trained(training):
            remove(self.store.root / state_name(training))
        paths, over = self.store.parts(training), self.store.over()
        useless = [path for path in paths if self._cells(path) <= over]
        for path in useless:
            remove(path)
        if len(useless) == len(paths):
            self.store.locks.forget(f"evaluate-{training}-")

    def _refresh(self) -> None:
        over = self.store.over()
        for group in self.groups:
            for key in group.cells.keys() & over:
                del group.cells[key]
        self.groups = [group for group in self.groups if group.cells]

    def _open(self, only: str | None) -> Iterator[Job]:
        """The jobs that are neither done nor wait for others."""
        self._refresh()
        groups = sorted(self.groups, key=lambda group: -group.cost)
        for group in groups:
            if group.key == (only or self._last):
                yield from self._evaluation(group)
        if only is not None:
            return
        waiting = {key for group in groups for key in group.needs if not self._trained(key)}
        costs = {key: self._needed[key].train_cost + sum(g.cost for g in groups if key in g.needs) for key in waiting}
        for key in sorted(waiting, key=lambda key: -costs[key]):
            yield Train(self._needed[key])
        for group in groups:
            if group.key != self._last:
                yield from self._evaluation(group)

    def _evaluation(self, group: EvaluationGroup) -> Iterator[Evaluate | Assemble]:
        """The chunks without a file, or, when all have one, the assembly."""
        if not all(self._trained(key) for key in group.needs):
            return
        missing = self._missing(group)
        for episodes, cells in missing:
            yield Evaluate(group, episodes, tuple(cells), self._path(group, episodes, cells))
        if not missing and group.cells:
            yield Assemble(group, tuple(group.cells.values()))

    def _still_open(self, job: Job) -> bool:
        """Whether a job is still to be done as it was, now that it is locked: another worker may have done it."""
        self._refresh()
        if isinstance(job, Train):
            return not self._trained(job.target.key) and any(job.target.key in group.needs for group in self.groups)
        if job.target not in self.groups:
            return False
        if isinstance(job, Assemble):
            return all(cell.key in job.target.cells for cell in job.cells)
        return (job.episodes, list(job.cells)) in self._missing(job.target)

    def _missing(self, group: EvaluationGroup) -> list[tuple[range, list[Cell]]]:
        """The chunks that are not evaluated, each with the cells of which that is so."""
        files, missing = self._parts(group), []
        for episodes in group.chunks:
            present = {key for path in files[episodes] for key in self._headers[path]}
            if cells := [cell for key, cell in group.cells.items() if key not in present]:
                missing.append((episodes, cells))
        return missing

    def _parts(self, group: EvaluationGroup) -> dict[range, list[Path]]:
        """The files of a group's training, by their episodes."""
        files, identity = defaultdict(list), self.identity(group)
        for path in self.store.parts(group.key):
            _, episodes, of, *_ = path.name.split(".")
            start, _, stop = episodes.partition("-")
            if of == identity and self._cells(path):
                files[range(int(start), int(stop))].append(path)
        return files

    def _path(self, group: EvaluationGroup, episodes: range, cells: Sequence[Cell]) -> Path:
        which = digest_of(sorted(cell.key for cell in cells))
        name = f"{group.key}.{episodes.start}-{episodes.stop}.{self.identity(group)}.{which}.safetensors"
        return self.store.root / "progress" / name

    def identity(self, group: EvaluationGroup) -> str:
        """What parts must have been computed with to be put together: these checkpoints, on that kind of device."""
        checksums = []
        for key in sorted(group.needs):
            path = self.store.root / checkpoint_name(key)
            try:
                checksums.append(_checksum(path, path.stat().st_mtime_ns, path.stat().st_size))
            except _DAMAGED:
                checksums.append("")
        return digest_of([self._device, *checksums])[:8]

    def _cells(self, path: Path) -> frozenset[str]:
        """The cells of a part; none if it is damaged, and then it is removed."""
        if path not in self._headers:
            try:
                body = json.loads(tensor_files.read_metadata(path)["body"])["dict"]
                self._headers[path] = frozenset(body["cells"])
            except FileNotFoundError:
                return frozenset()
            except _DAMAGED as error:
                self._drop(path, error)
                return frozenset()
        return self._headers[path]

    def _drop(self, path: Path, error: Exception) -> None:
        _log.warning("%s: %s; these episodes are evaluated again", path, error)
        self._headers.pop(path, None)
        remove(path)

    def _trained(self, key: str) -> bool:
        return (self.store.root / checkpoint_name(key)).is_file()
