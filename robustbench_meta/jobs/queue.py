"""The results folder as a queue of jobs: what is done has its file, what is taken is locked, the rest is free."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from robustbench_meta.engine.training_snapshots import state_name
from robustbench_meta.errors import StorageError
from robustbench_meta.evaluation.partial_results import PartialResult, read_part
from robustbench_meta.experiment.checkpoints import checkpoint_name
from robustbench_meta.experiment.grid import Cell, Grid
from robustbench_meta.jobs.events import CellFailed, EventLog
from robustbench_meta.jobs.planner import Group, Needed, groups_of, needed_of
from robustbench_meta.results.store import Store
from robustbench_meta.runtime import tensor_files
from robustbench_meta.runtime.atomic_files import remove
from robustbench_meta.runtime.digest import digest_of
from robustbench_meta.runtime.locks import training_lock

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train:
    """Meta-train; the file is the checkpoint."""

    kind: ClassVar[str] = "train"
    needed: Needed

    @property
    def key(self) -> str:
        """Of the training."""
        return self.needed.key

    @property
    def lock(self) -> str:
        """The name of its lock."""
        return training_lock(self.key)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate cells of one training on a chunk of the episodes; the file is a part, see `partial_results`."""

    kind: ClassVar[str] = "evaluate"
    group: Group
    places: range
    cells: tuple[Cell, ...]
    path: Path

    @property
    def key(self) -> str:
        """Of the training."""
        return self.group.key

    @property
    def lock(self) -> str:
        """The name of its lock."""
        return f"evaluate-{self.key}-{self.places.start}"


@dataclass(frozen=True)
class Assemble:
    """Write the records of cells whose parts are all there."""

    kind: ClassVar[str] = "assemble"
    group: Group
    cells: tuple[Cell, ...]

    @property
    def key(self) -> str:
        """Of the training."""
        return self.group.key

    @property
    def lock(self) -> str:
        """The name of its lock."""
        return f"assemble-{self.key}"


Job = Train | Evaluate | Assemble


class Queue:
    """The jobs of a run, as one worker sees them.

    Args:
        grids: the parts of the run.
        store: the results folder.
        cells: the keys of the cells that the run is to do.
        device: what kind of device computes: cpu or cuda.
        log: hears of cells that fail.
    """

    def __init__(
        self, grids: Sequence[Grid], store: Store, cells: Collection[str], device: str, log: EventLog
    ) -> None:  # fmt: skip
        self.store, self.log, self._device = store, log, device
        self.all_groups, self._needed = groups_of(grids, cells, device), needed_of(grids, cells)
        self.groups = list(self.all_groups)
        """Those with cells that are not over."""
        self.cells = {key: cell for group in self.groups for key, cell in group.cells.items()}
        self._last = ""
        """The key of the training that this worker was last at."""
        self._headers: dict[Path, frozenset[str]] = {}
        """The cells of each part that was looked at."""
        self._identities: dict[str, tuple[tuple[int, int], str]] = {}
        """By training, the time and size of its checkpoint, and its checksum."""
        self._totals = {id(group): group.pairs for group in self.groups}

    def claim(self, only: str | None = None) -> Job | None:
        """The next free job, locked; None: there is none at the moment. What was claimed is to be released.

        What this worker has trained it evaluates next; otherwise the costliest training comes first.

        Args:
            only: the key of a training whose evaluation alone is wanted.

        Raises:
            StorageError: a lock cannot be written.
        """
        for job in self._open(only):
            if self.store.locks.take(job.lock):
                if self._same(job):
                    self._last = job.key
                    return job
                self.store.locks.give_back(job.lock)
        return None

    def release(self, job: Job) -> None:
        """The job is done, or free again."""
        self.store.locks.give_back(job.lock)

    def over(self) -> bool:
        """Whether all cells have a record, or failed."""
        self._refresh()
        return not self.groups

    def cells_of(self, training: str) -> list[str]:
        """The keys of the pending cells of a training."""
        return [key for group in self.groups if group.key == training for key in group.cells]

    def fail(self, cells: Iterable[str], reason: str, traceback: str = "") -> None:
        """Note that these cells failed, why and where; those that are over already are left alone."""
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

    def done(self, group: Group) -> tuple[int, int]:
        """How many (episode, attack) pairs of a group are evaluated, and how many there are."""
        total, parts = self._totals[id(group)], self._parts(group)
        missing = sum(len(self._missing(group, places, parts)) * len(places) for places in group.chunks)
        return total - missing, total

    def parts_of(self, group: Group, cell: Cell) -> list[PartialResult] | None:
        """All parts with that cell, in the order of the episodes; None: one is missing.

        One that is damaged is warned of and removed.
        """
        parts, found = self._parts(group), []
        for places in group.chunks:
            path = next((path for path in parts[places.start, places.stop] if cell.key in self._headers[path]), None)
            if path is None:
                return None
            try:
                found.append(read_part(path.read_bytes(), group.key))
            except (OSError, StorageError) as error:
                self._drop(path, error)
                return None
        return found

    def tidy(self, training: str) -> None:
        """Remove what was under way of a training and is of no use any more, also what a killed run left."""
        if (self.store.root / checkpoint_name(training)).is_file():
            remove(self.store.root / state_name(training))
        paths, over = self.store.parts(training), self.store.over()
        left = [path for path in paths if not self._cells(path) <= over]
        for path in paths:
            if path not in left:
                remove(path)
        if not left:
            self.store.locks.forget(f"evaluate-{training}-")

    def _refresh(self) -> None:
        over = self.store.over()
        for group in self.groups:
            for key in [key for key in group.cells if key in over]:
                del group.cells[key]
        self.groups = [group for group in self.groups if group.cells]

    def _open(self, only: str | None) -> Iterator[Job]:
        """What is neither done nor waits for other jobs."""
        self._refresh()
        groups = sorted(self.groups, key=lambda group: -group.cost)
        for group in groups:
            if group.key == (only or self._last):
                yield from self._evaluation(group)
        if only is not None:
            return
        waiting = {key for group in groups for key in group.needs if not self._trained(key)}
        costs = {key: self._needed[key].cost + sum(g.cost for g in groups if key in g.needs) for key in waiting}
        for key in sorted(waiting, key=lambda key: -costs[key]):
            yield Train(self._needed[key])
        for group in groups:
            if group.key != self._last:
                yield from self._evaluation(group)

    def _evaluation(self, group: Group) -> Iterator[Evaluate | Assemble]:
        """The chunks that are not there, or, when all are, the assembly."""
        if not all(self._trained(key) for key in group.needs):
            return
        parts, complete = self._parts(group), True
        for places in group.chunks:
            if missing := self._missing(group, places, parts):
                complete = False
                yield Evaluate(group, places, tuple(missing), self._path(group, places, missing))
        if complete and group.cells:
            yield Assemble(group, tuple(group.cells.values()))

    def _same(self, job: Job) -> bool:
        """Whether a job is still to be done as it was found, now that it is locked: somebody may have done it."""
        self._refresh()
        if isinstance(job, Train):
            return not self._trained(job.key) and any(job.key in group.needs for group in self.groups)
        if job.group not in self.groups:
            return False
        if isinstance(job, Assemble):
            return all(cell.key in job.group.cells for cell in job.cells)
        return self._missing(job.group, job.places, self._parts(job.group)) == list(job.cells)

    def _missing(self, group: Group, places: range, parts: dict[tuple[int, int], list[Path]]) -> list[Cell]:
        there = {key for path in parts[places.start, places.stop] for key in self._headers[path]}
        return [cell for key, cell in group.cells.items() if key not in there]

    def _parts(self, group: Group) -> dict[tuple[int, int], list[Path]]:
        """The files of a group's training, by their first episode and the one after the last."""
        found, identity = defaultdict(list), self._identity(group)
        for path in self.store.parts(group.key):
            _, places, how, *_ = path.name.split(".")
            start, _, stop = places.partition("-")
            if how == identity and self._cells(path):
                found[int(start), int(stop)].append(path)
        return found

    def _path(self, group: Group, places: range, cells: Sequence[Cell]) -> Path:
        which = digest_of(sorted(cell.key for cell in cells))
        name = f"{group.key}.{places.start}-{places.stop}.{self._identity(group)}.{which}.safetensors"
        return self.store.root / "progress" / name

    def _identity(self, group: Group) -> str:
        """What parts must have been computed with to be put together: these checkpoints, on that kind of device."""
        return digest_of([self._device, *(self._checksum(key) for key in sorted(group.needs))])[:8]

    def _checksum(self, training: str) -> str:
        path = self.store.root / checkpoint_name(training)
        try:
            seen = path.stat()
            known = self._identities.get(training)
            if known is None or known[0] != (seen.st_mtime_ns, seen.st_size):
                known = (seen.st_mtime_ns, seen.st_size), tensor_files.read_metadata(path)["checksum"]
                self._identities[training] = known
            return known[1]
        except (OSError, KeyError, ValueError, TypeError, AttributeError):
            return ""

    def _cells(self, path: Path) -> frozenset[str]:
        """The cells of a part; none if it is damaged, and then it is removed."""
        if path not in self._headers:
            try:
                body = json.loads(tensor_files.read_metadata(path)["body"])["dict"]
                self._headers[path] = frozenset(body["cells"])
            except FileNotFoundError:
                return frozenset()
            except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
                self._drop(path, error)
                return frozenset()
        return self._headers[path]

    def _drop(self, path: Path, error: Exception) -> None:
        _log.warning("%s: %s; these episodes are evaluated again", path, error)
        self._headers.pop(path, None)
        remove(path)

    def _trained(self, key: str) -> bool:
        return (self.store.root / checkpoint_name(key)).is_file()
