"""Where the work of a run is given out, and where all that becomes of it arrives: records, failures, events."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from robustbench_meta.checkpoints import checkpoint_name, state_name
from robustbench_meta.executors import Task
from robustbench_meta.grid import Cell, Grid
from robustbench_meta.locking import cell_lock, training_lock
from robustbench_meta.parts import part_name
from robustbench_meta.stopping import Stop
from robustbench_meta.store import Store

_log = logging.getLogger(__name__)
AGAIN_SECONDS = 0.5
"""How long a task that another run is at work on is left alone before it is looked at again."""
MOST_LOSSES = 5
"""How often in a row a task is begun again whose worker was lost with its machine before it got any further."""


@dataclass
class Summary:
    """What became of a run's cells."""

    finished: int = 0
    skipped: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    """In this run."""
    failed_before: list[tuple[Cell, str]] = field(default_factory=list)
    """In an earlier one; not tried again."""


@dataclass
class _Busy:
    """A worker's task."""

    task: Task
    locks: list[str]
    open: set[str]
    """The cells that nothing has been heard of yet."""
    heard: float
    """When it was last heard of."""
    at: dict[str, float] = field(default_factory=dict)
    """The cells that were under way then, with the seconds that each had taken."""
    reached: int | None = None
    """The first step, or number of episodes, that was told."""
    advanced: bool = False
    """Whether it has got further since."""
    pages: list[str] = field(default_factory=list)
    """What is kept of it that is of no use any more."""

    def hear(self, now: float, reached: int | None) -> None:
        """Something was heard of it, perhaps how far it has got."""
        self.heard = now
        if reached is not None:
            self.reached = reached if self.reached is None else self.reached
            self.advanced = self.advanced or reached > self.reached


class Tells(Protocol):
    """A registry, or what stands between it and a desk."""

    def tell(self, event: str, /, **facts: Any) -> None:
        """Tell the plugins of an event."""
        ...


class Desk:
    """Gives out the tasks of a run, and writes down what is told of them.

    Several desks, of several runs, may share a results folder: each cell and each checkpoint is locked while somebody
    is at work on it. What another run does is waited for, last.

    Args:
        grid: the run.
        registry: the plugins that hear the events.
        store: where everything goes.
        tasks: what is to be done.
        stop: whether to stop.
        cell_timeout: the seconds that a cell's evaluation may take, or a meta-step; None: any.
        clock: gives seconds.
    """

    def __init__(
        self, grid: Grid, registry: Tells, store: Store, tasks: Iterable[Task], *, stop: Stop | None = None,
        cell_timeout: float | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.stop, self.cell_timeout = Stop() if stop is None else stop, cell_timeout
        self.summary = Summary()
        self._store, self._registry, self._clock = store, registry, clock
        self._cells = {cell.key: cell for cell in grid.cells}
        self._waiting = list(tasks)
        self._missing = {task.training for task in self._waiting if not task.cells}
        """The checkpoints that nobody has finished yet."""
        self._busy: dict[Hashable, _Busy] = {}
        self._last: dict[Hashable, str] = {}
        """The training that each worker was last at."""
        self._elsewhere: dict[Task, float] = {}
        """When to look again at what another run is at work on."""
        self._losses: dict[tuple[str, tuple[str, ...]], int] = {}
        """How often a task's worker was lost since it last got further."""
        self._tested: dict[str, dict[tuple[str, ...], tuple[int, int]]] = {}
        """How far each evaluation of a training is, by its cells: one may be split, see `tasks_of`."""
        self._said = False

    @property
    def open(self) -> bool:
        """Whether anything is still to do or under way."""
        return bool(self._waiting or self._busy)

    @property
    def waiting(self) -> Sequence[Task]:
        """What nobody has begun."""
        return self._waiting

    def next(self, worker: Hashable) -> Task | None:
        """A task for a worker that has none; None: there is none at the moment, but perhaps later, if `open`.

        The costliest first; but what a worker has trained it evaluates next.

        Raises:
            StorageError: a lock cannot be written.
        """
        now = self._clock()
        for task in sorted(self._waiting, key=lambda task: (task.training != self._last.get(worker), -task.cost)):
            if self._missing.isdisjoint(task.needs) and self._elsewhere.get(task, now) <= now:
                begun = self._begin(worker, task)
                if begun is not None:
                    return begun
        if not self._busy and self._elsewhere and not self._said:
            self._said = True
            _log.warning("another run in %s is at work on what is left: waiting for it", self._store.root)
        return None

    def supplies(self, task: Task) -> dict[str, bytes]:
        """What a worker that does not see the results folder needs for a task, by its name on a `Shelf`."""
        names = [checkpoint_name(key) for key in task.needs]
        names += self._store.shelf.names(part_name(task.training)) if task.cells else [state_name(task.training)]
        found = {name: self._store.shelf.read(name) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def hear(self, worker: Hashable, event: str, /, **facts: Any) -> None:
        """Take note of an event of a worker's task.

        Besides the hooks `training_progress` and `evaluation_progress`: `trained(key)`, its checkpoint is kept;
        `training_failed(key, reason, traceback="", lasting=True)`; `cell_finished(record)`; `cell_failed`, as that;
        `at(cells)`, the cells that are under way with the seconds that each has taken so far; `pages(names)`, what is
        kept and of no use once the task is over; and of workers that do not see the results folder,
        `kept(name, data)` and `dropped(name)`, see `Shelf`.

        Raises:
            StorageError: something cannot be written.
        """
        busy = self._busy.get(worker)
        if busy is not None:
            busy.hear(self._clock(), facts.get("step", facts.get("done")))
        if event == "at":
            if busy is not None:
                busy.at = dict(facts["cells"])
        elif event == "pages":
            if busy is not None:
                busy.pages = list(facts["names"])
        elif event == "kept":
            self._store.shelf.write(facts["name"], facts["data"])
        elif event == "dropped":
            self._store.shelf.remove(facts["name"])
        elif event == "trained":
            self._missing.discard(facts["key"])
        elif event == "training_failed":
            self._training_failed(**facts)
        elif event == "cell_finished":
            self._close(busy, facts["record"]["key"])
            self._finished(facts["record"])
        elif event == "cell_failed":
            self._close(busy, facts["key"])
            self._failed(**facts)
        else:
            self._registry.tell(event, **self._summed(busy, **facts))

    def _summed(self, busy: _Busy | None, **facts: Any) -> dict[str, Any]:
        """Of what an evaluation tells: how far all evaluations of its training are together."""
        if busy is None or "done" not in facts:
            return facts
        known = self._tested.setdefault(busy.task.training, {})
        known[busy.task.cells] = facts["done"], facts["total"]
        waiting = [key for task in self._waiting if task.training == busy.task.training for key in task.cells]
        rest = sum(self._cells[key].spec.episodes for key in waiting)
        done, total = (sum(counts) for counts in zip(*known.values(), strict=True))
        return {**facts, "done": done, "total": total + rest}

    def over(self, worker: Hashable) -> None:
        """A worker is done with its task."""
        with self._leaving(worker) as busy:
            self._conclude(busy)

    def died(self, worker: Hashable, how: str, *, guilty: bool = True) -> None:
        """A worker is no more; what it was at fails, and others do the rest of its task.

        Args:
            worker: which; with or without a task.
            how: the reason.
            guilty: False if the work is not to blame, as when a machine is lost.
        """
        if worker not in self._busy:
            return
        with self._leaving(worker) as busy:
            if busy.task.cells and not busy.open:
                self._conclude(busy)
                return
            self._forget_tested(busy)
            if not guilty:
                self._lost(busy, how)
            elif not busy.task.cells:
                self._training_failed(busy.task.training, how)
            else:
                self._blame(busy, [key for key in busy.at if key in busy.open], how)

    def overdue(self, worker: Hashable) -> str | None:
        """Why a worker is to be ended because of the cell timeout; None if it is not."""
        busy = self._busy.get(worker)
        if busy is None or self.cell_timeout is None:
            return None
        silent = self._clock() - busy.heard
        if not busy.at:
            if silent > self.cell_timeout:
                what = "the evaluation said nothing" if busy.task.cells else "meta-training made no step"
                return f"{what} for {silent:.0f} s, longer than --cell-timeout {self.cell_timeout:g}"
            return None
        longest = max(busy.at.values()) + silent
        if longest > self.cell_timeout:
            return f"it took longer than --cell-timeout {self.cell_timeout:g} s"
        return None

    def expired(self, worker: Hashable, how: str) -> None:
        """A worker was ended because it was `overdue`: the cells that took too long fail, others do the rest."""
        with self._leaving(worker) as busy:
            self._forget_tested(busy)
            if not busy.task.cells:
                self._training_failed(busy.task.training, how)
                return
            silent, limit = self._clock() - busy.heard, self.cell_timeout or 0.0
            slow = [key for key, seconds in busy.at.items() if seconds + silent > limit and key in busy.open]
            for key in slow[1:]:
                self._failed(key, how)
                busy.open.discard(key)
            self._blame(busy, slow[:1], how)

    @contextlib.contextmanager
    def _leaving(self, worker: Hashable) -> Iterator[_Busy]:
        """A worker has its task no more; its locks are free when what became of it is written."""
        busy = self._busy.pop(worker)
        try:
            yield busy
        finally:
            for name in busy.locks:
                self._store.locks.give_back(name)

    def _forget_tested(self, busy: _Busy) -> None:
        """Its rest is begun anew, and told then."""
        self._tested.get(busy.task.training, {}).pop(busy.task.cells, None)

    def _conclude(self, busy: _Busy) -> None:
        """A task is over."""
        for key in sorted(busy.open):
            self._failed(key, "its worker said nothing of it; this is a bug")
        for name in busy.pages:
            self._store.shelf.remove(name)

    def _blame(self, busy: _Busy, culprits: Sequence[str], how: str) -> None:
        """The cell that is to blame fails; if it is not known which, each is done by itself."""
        if len(busy.open) == 1:
            culprits = list(busy.open)
        if len(culprits) == 1:
            self._failed(culprits[0], how)
            busy.open.discard(culprits[0])
            self._again(busy)
        else:
            _log.warning("%s; doing its %d cells one by one, to see which it is", how, len(busy.open))
            self._again(busy, apart=True)

    def _lost(self, busy: _Busy, how: str) -> None:
        """A task's worker was lost: it is begun again, but not for ever if it gets no further."""
        what = (busy.task.training, busy.task.cells)
        self._losses[what] = 1 if busy.advanced else self._losses.get(what, 0) + 1
        if self._losses[what] > MOST_LOSSES:
            self._give_up(busy, f"{how}, for the {self._losses[what]}th time without getting any further")
        else:
            _log.warning("%s; beginning again with what was kept", how)
            self._again(busy)

    def _begin(self, worker: Hashable, task: Task) -> Task | None:
        """Lock what a task is about; what others are at stays for later, what they have done needs no more doing."""
        self._elsewhere.pop(task, None)
        self._waiting.remove(task)
        names = {key: cell_lock(key) for key in task.cells} or {task.training: training_lock(task.training)}
        taken = [key for key, name in names.items() if self._store.locks.take(name)]
        left = [key for key in names if key not in taken]
        if left:
            later = replace(task, cells=tuple(left)) if task.cells else task
            self._waiting.append(later)
            self._elsewhere[later] = self._clock() + AGAIN_SECONDS
        todo = [key for key in taken if not self._done_elsewhere(task, key)]
        for key in taken:
            if key not in todo:
                self._store.locks.give_back(names[key])
        if not todo:
            return None
        begun = replace(task, cells=tuple(todo)) if task.cells else task
        self._busy[worker] = _Busy(begun, [names[key] for key in todo], set(begun.cells), self._clock())
        self._last[worker] = task.training
        return begun

    def _done_elsewhere(self, task: Task, key: str) -> bool:
        """Whether another run has done it in the meantime; then its outcome is ours."""
        if not task.cells:
            if self._store.has_checkpoint(key):
                self._missing.discard(key)
                return True
            return False
        if self._store.has(key):
            self.summary.skipped += 1
            return True
        if (reason := self._store.failure(key)) is not None:
            self.summary.failed_before.append((self._cells[key], reason))
            return True
        return False

    def _again(self, busy: _Busy, *, apart: bool = False) -> None:
        """The rest of a task is to be done by somebody; or each cell of it by itself."""
        left = [key for key in busy.task.cells if key in busy.open]
        if not busy.task.cells:
            self._waiting.append(busy.task)
        elif apart:
            self._waiting += [replace(busy.task, cells=(key,)) for key in left]
        elif left:
            self._waiting.append(replace(busy.task, cells=tuple(left)))

    def _give_up(self, busy: _Busy, reason: str) -> None:
        if not busy.task.cells:
            self._training_failed(busy.task.training, reason)
        for key in sorted(busy.open):
            self._failed(key, reason)

    def _close(self, busy: _Busy | None, key: str) -> None:
        if busy is not None:
            busy.open.discard(key)
            busy.at.pop(key, None)

    def _training_failed(self, key: str, reason: str, traceback: str = "", lasting: bool = True) -> None:
        """All cells that wait for a checkpoint that will not come fail."""
        for task in [task for task in self._waiting if key in task.needs]:
            self._waiting.remove(task)
            self._elsewhere.pop(task, None)
            kept = tuple(cell for cell in task.cells if not self._wants(cell, key))
            for cell in task.cells:
                if cell not in kept:
                    whose = "" if self._cells[cell].training.key == key else "surrogate: "
                    self._failed(cell, whose + reason, traceback, lasting)
            if kept:
                self._waiting.append(replace(task, cells=kept, needs=tuple(each for each in task.needs if each != key)))

    def _wants(self, cell: str, key: str) -> bool:
        surrogate = self._cells[cell].surrogate
        return self._cells[cell].training.key == key or (surrogate is not None and surrogate.key == key)

    def _finished(self, record: dict[str, Any]) -> None:
        self._store.write_record(record)
        self.summary.finished += 1
        self._registry.tell("cell_finished", record=record)

    def _failed(self, key: str, reason: str, traceback: str = "", lasting: bool = True) -> None:
        """A cell failed; one that failed for a passing reason is tried again by the next run."""
        cell = self._cells[key]
        about = cell.spec.model_dump(mode="json")
        if lasting:
            written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            told = {"reason": reason, "traceback": traceback, "labels": cell.labels, "written": written}
            self._store.write_failure(key, {**told, "spec": about})
        self.summary.failed.append((cell, reason))
        self._registry.tell("cell_failed", cell=about, labels=cell.labels, training=cell.training.title, reason=reason)
