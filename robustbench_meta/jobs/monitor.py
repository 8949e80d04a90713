"""Follows the events of a run's workers: what each is doing, what takes too long, and what hooks and users learn."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_meta.jobs import events
from robustbench_meta.jobs.events import Event, EventReader
from robustbench_meta.jobs.output import repeat

if TYPE_CHECKING:
    from robustbench_meta.experiment.grid import Cell
    from robustbench_meta.registry.registry import Registry
    from robustbench_meta.results.store import Store


@dataclass
class WorkerState:
    """What a worker is doing, by its last events."""

    last_event_at: float = 0.0
    """On the monitor's clock."""
    time: float = 0.0
    """The same in seconds since 1970, as the worker says."""
    place: str = ""
    """HOST:PID; empty before it looks for its first job."""
    doing: str = "starting"
    job: events.JobStarted | None = None
    cell: str | None = None
    since: float = 0.0
    """When it entered its cell."""
    first_step: int | None = None
    advanced: bool = False
    """Whether its training got further than where it began."""
    idle: bool = False


class Monitor:
    """The state of all workers of a run, from the events in its folder; `on_event` is called with each of them."""

    def __init__(
        self, folder: Path, cell_timeout: float | None = None, on_event: Callable[[Event], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.folder, self.cell_timeout = folder, cell_timeout
        self.workers: dict[str, WorkerState] = {}
        self.started: set[str] = set()
        """All workers that ever looked for jobs."""
        self.failures: dict[str, events.WorkerFailed] = {}
        """What ended workers, by their names."""
        self._reader, self._on_event, self._clock = EventReader(folder), on_event, clock
        self._spent: dict[str, float] = defaultdict(float)
        """The seconds that each cell has taken so far, without those of workers that are computing it now."""

    def poll(self) -> None:
        """Read the events since the last time."""
        for worker, event in self._reader.new():
            self._update(worker, event)
            if self._on_event is not None:
                self._on_event(event)

    def _update(self, worker: str, event: Event) -> None:
        now = self._clock()
        state = self.workers.setdefault(worker, WorkerState())
        state.last_event_at, state.time = now, event.time
        match event:
            case events.WorkerStarted():
                self.started.add(worker)
                state.place, state.doing = f"{event.host}:{event.pid}", "nothing yet"
            case events.JobStarted():
                episodes = f", episodes {event.start} to {event.stop}" if event.kind == "evaluate" else ""
                state.doing = f"{event.kind} {event.training}{episodes}"
                state.job, state.cell, state.first_step, state.advanced, state.idle = event, None, None, False, False
            case events.JobFinished():
                state.job, state.cell, state.idle, state.doing = None, None, False, "between two jobs"
            case events.Idle():
                state.job, state.cell, state.idle, state.doing = None, None, True, "waits for others"
            case events.CellEntered():
                state.cell, state.since = event.cell, now
            case events.CellLeft():
                state.cell = None
                self._spent[event.cell] += event.seconds
            case events.TrainingProgress():
                state.first_step = event.step if state.first_step is None else state.first_step
                state.advanced = event.step > state.first_step
            case events.WorkerFailed():
                self.failures[worker] = event

    def overdue(self, worker: str) -> str | None:
        """Why a worker is to be killed because of the cell timeout; None if it is not."""
        state, limit = self.workers.get(worker), self.cell_timeout
        if limit is None or state is None or state.job is None:
            return None
        now = self._clock()
        if state.cell is not None:
            others = [each for each in self.workers.values() if each.cell == state.cell]
            seconds = self._spent[state.cell] + sum(now - each.since for each in others)
            return f"it took longer than --cell-timeout {limit:g} s" if seconds > limit else None
        silent = now - state.last_event_at
        if silent <= limit:
            return None
        what = "meta-training made no step" if state.job.kind == "train" else "the evaluation said nothing"
        return f"{what} for {silent:.0f} s, longer than --cell-timeout {limit:g}"

    def gone(self, worker: str) -> WorkerState | None:
        """Forget a worker that ended, and those that it had forked; its last state."""
        self.poll()
        for name in [name for name in self.workers if name.startswith(f"{worker}.")]:
            del self.workers[name]
        return self.workers.pop(worker, None)


@dataclass
class Summary:
    """How many of a run's cells are finished, and which failed."""

    finished: int = 0
    skipped: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    """In this run."""
    failed_before: list[tuple[Cell, str]] = field(default_factory=list)
    """In an earlier one; not tried again."""


class Reporter:
    """Calls the plugins' hooks with what workers do, repeats what they print, and counts in `summary`."""

    def __init__(self, registry: Registry, store: Store, cells: Mapping[str, Cell], summary: Summary) -> None:
        self._registry, self._store, self._cells, self._summary = registry, store, cells, summary
        self._warnings: dict[str, dict[Any, Any]] = {}
        self.over: set[str] = set()
        """The cells that this run has finished or failed."""

    def __call__(self, event: Event) -> None:
        """Report an event."""
        facts = {name: value for name, value in vars(event).items() if name != "time"}
        if isinstance(event, events.TrainingProgress):
            self._registry.emit("training_progress", **facts)
        elif isinstance(event, events.EvaluationProgress):
            self._registry.emit("evaluation_progress", **facts)
        elif isinstance(event, events.CellFinished) and event.cell not in self.over:
            record = self._store.record(event.cell)
            if record is not None:
                self.over.add(event.cell)
                self._summary.finished += 1
                self._registry.emit("cell_finished", record=record)
        elif isinstance(event, events.CellFailed) and event.cell not in self.over:
            self.over.add(event.cell)
            cell = self._cells[event.cell]
            self._summary.failed.append((cell, event.reason))
            facts |= {"cell": cell.spec.model_dump(mode="json"), "labels": cell.labels}
            self._registry.emit("cell_failed", **facts)
        else:
            repeat(event, self._warnings)
