"""Follows the events of a run's workers: what each is at, what takes too long, and what hooks and users hear."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from robustbench_meta.experiment.grid import Cell
from robustbench_meta.jobs.events import (
    CellEntered,
    CellFailed,
    CellFinished,
    CellLeft,
    EvaluationProgress,
    Event,
    EventReader,
    Idle,
    JobFinished,
    JobStarted,
    TrainingProgress,
    WorkerFailed,
    WorkerStarted,
)
from robustbench_meta.jobs.output import Replay
from robustbench_meta.results.store import Store


@dataclass
class WorkerState:
    """What a worker is at, by its last events."""

    last_event_at: float
    """When it was last heard of, on the monitor's clock."""
    time: float
    """The same in seconds since 1970, as the worker says."""
    job: JobStarted | None = None
    cell: str | None = None
    since: float = 0.0
    """When it came to its cell."""
    first_step: int | None = None
    advanced: bool = False
    """Whether its training got further than where it began."""
    idle: bool = False


class Monitor:
    """The state of all workers of a run.

    Args:
        folder: of the run's events.
        cell_timeout: the seconds that a cell's evaluation may take, or a meta-step; None: any.
        on_event: called with each event.
        clock: gives seconds.
    """

    def __init__(
        self, folder: Path, cell_timeout: float | None = None, on_event: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.folder, self.cell_timeout = folder, cell_timeout
        self.workers: dict[str, WorkerState] = {}
        self.started: set[str] = set()
        """The workers that came to look for jobs."""
        self.failures: dict[str, WorkerFailed] = {}
        """What ended workers, by their names."""
        self._reader, self._on_event, self._clock = EventReader(folder), on_event, clock
        self._spent: dict[str, float] = defaultdict(float)
        """The seconds that each cell has taken so far, but for those who are at it now."""

    def poll(self) -> None:
        """Take note of what has happened since the last time."""
        for worker, event in self._reader.new():
            self._note(worker, event)
            if self._on_event is not None:
                self._on_event(event)

    def _note(self, worker: str, event: Event) -> None:
        now = self._clock()
        state = self.workers.setdefault(worker, WorkerState(now, event.time))
        state.last_event_at, state.time = now, event.time
        if isinstance(event, JobStarted):
            state.job, state.cell, state.first_step, state.advanced, state.idle = event, None, None, False, False
        elif isinstance(event, JobFinished | Idle):
            state.job, state.cell, state.idle = None, None, isinstance(event, Idle)
        elif isinstance(event, CellEntered):
            state.cell, state.since = event.cell, now
        elif isinstance(event, CellLeft):
            state.cell = None
            self._spent[event.cell] += event.seconds
        elif isinstance(event, WorkerStarted):
            self.started.add(worker)
        elif isinstance(event, WorkerFailed):
            self.failures[worker] = event
        elif isinstance(event, TrainingProgress):
            state.first_step = event.step if state.first_step is None else state.first_step
            state.advanced = event.step > state.first_step

    def overdue(self, worker: str) -> str | None:
        """Why a worker is to be ended because of the cell timeout; None if it is not."""
        state, limit = self.workers.get(worker), self.cell_timeout
        if limit is None or state is None or state.job is None:
            return None
        now = self._clock()
        if state.cell is not None:
            at_it = [each for each in self.workers.values() if each.cell == state.cell]
            seconds = self._spent[state.cell] + sum(now - each.since for each in at_it)
            return f"it took longer than --cell-timeout {limit:g} s" if seconds > limit else None
        silent = now - state.last_event_at
        if silent <= limit:
            return None
        what = "meta-training made no step" if state.job.kind == "train" else "the evaluation said nothing"
        return f"{what} for {silent:.0f} s, longer than --cell-timeout {limit:g}"

    def gone(self, worker: str) -> WorkerState | None:
        """A worker ended, and those that it had forked; its last state."""
        self.poll()
        for name in [name for name in self.workers if name.startswith(f"{worker}.")]:
            del self.workers[name]
        return self.workers.pop(worker, None)


@dataclass
class Summary:
    """What became of a run's cells."""

    finished: int = 0
    skipped: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    """In this run."""
    failed_before: list[tuple[Cell, str]] = field(default_factory=list)
    """In an earlier one; not tried again."""


class EventSink(Protocol):
    """A registry."""

    def emit(self, event: str, /, **facts: Any) -> None:
        """Call an event hook of all plugins."""
        ...


class Reporter:
    """Calls the hooks with what workers do, repeats what they say, and counts.

    Args:
        registry: the plugins that hear the events.
        store: with the records.
        cells: of the run, by key.
        summary: is added to.
    """

    def __init__(self, registry: EventSink, store: Store, cells: Mapping[str, Cell], summary: Summary) -> None:
        self._registry, self._store, self._cells, self._summary = registry, store, cells, summary
        self._replay = Replay()
        self.over: set[str] = set()
        """The cells that this run has finished or failed."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, TrainingProgress):
            self._registry.emit(
                "training_progress", training=event.training, key=event.key, step=event.step, steps=event.steps,
                metrics=event.metrics,
            )  # fmt: skip
        elif isinstance(event, EvaluationProgress):
            self._registry.emit("evaluation_progress", training=event.training, done=event.done, total=event.total)
        elif isinstance(event, CellFinished) and event.cell not in self.over:
            record = self._store.record(event.cell)
            if record is not None:
                self.over.add(event.cell)
                self._summary.finished += 1
                self._registry.emit("cell_finished", record=record)
        elif isinstance(event, CellFailed) and event.cell not in self.over:
            self.over.add(event.cell)
            cell = self._cells[event.cell]
            self._summary.failed.append((cell, event.reason))
            self._registry.emit(
                "cell_failed", cell=cell.spec.model_dump(mode="json"), labels=cell.labels, training=event.training,
                reason=event.reason,
            )  # fmt: skip
        else:
            self._replay(event)
