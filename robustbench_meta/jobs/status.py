"""What the event files of a results folder say of its runs; no import of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.jobs.events import (
    FOLDER,
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
    RunFinished,
    RunStarted,
    TrainingProgress,
    WorkerStarted,
)
from robustbench_meta.jobs.time_left import RunProgress
from robustbench_meta.runtime.locks import Locks


def run_lock(folder: Path) -> str:
    """The name of the lock that a run holds, by the folder of its events."""
    return f"run-{folder.name}"


@dataclass
class WorkerStatus:
    """What a worker is doing."""

    time: float = 0.0
    """When it was last heard of, in seconds since 1970."""
    place: str = ""
    doing: str = "starting"
    cell: str | None = None


@dataclass
class RunStatus:
    """One run, as its events tell it."""

    name: str
    reader: EventReader
    progress: RunProgress = field(init=False)
    workers: dict[str, WorkerStatus] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Which cells, and why."""
    over: set[str] = field(default_factory=set)
    alive: bool = False
    """Whether the process that was started is there."""
    ended: bool = False
    now: float = 0.0

    def __post_init__(self) -> None:
        self.progress = RunProgress(lambda: self.now)

    @property
    def state(self) -> str:
        """`running`, `finished` or `interrupted`."""
        if self.alive:
            return "running"
        return "finished" if self.ended and self.progress.cells_over >= self.progress.cells else "interrupted"

    def update(self) -> None:
        """Take note of what has happened since the last time."""
        for worker, event in sorted(self.reader.new(), key=lambda each: each[1].time):
            self.now = max(self.now, event.time)
            self._run(event)
            if worker != "driver":
                self._worker(self.workers.setdefault(worker, WorkerStatus()), event)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        progress = self.progress
        return {
            "name": self.name, "state": self.state, "cells": progress.cells, "cells_over": progress.cells_over,
            "failed": [{"cell": what, "reason": reason} for what, reason in self.failed],
            "share_done": progress.fraction,
            "under_way": [
                {"stage": each.stage, "training": each.title, "done": each.done, "total": each.total}
                for each in progress.stretches
            ],
            "workers": [{"name": name, **vars(worker)} for name, worker in sorted(self.workers.items())],
        }  # fmt: skip

    def _run(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.progress.begin(event.cells, event.work)
        elif isinstance(event, RunFinished):
            self.ended = True
        elif isinstance(event, TrainingProgress):
            self.progress.reach("train", event.training, event.step, event.steps, event.metrics)
        elif isinstance(event, EvaluationProgress):
            self.progress.reach("test", event.training, event.done, event.total)
        elif isinstance(event, CellFinished | CellFailed) and event.cell not in self.over:
            self.over.add(event.cell)
            failed = event if isinstance(event, CellFailed) else None
            self.progress.cell_over(failed.training if failed is not None else None)
            if failed is not None:
                labels = failed.labels
                what = f"{labels['attack']} eps={labels['eps']} {labels['support']}/{labels['query']}"
                self.failed.append((f"{what} on {failed.training}", failed.reason))

    @staticmethod
    def _worker(worker: WorkerStatus, event: Event) -> None:
        worker.time = event.time
        if isinstance(event, WorkerStarted):
            worker.place, worker.doing = f"{event.host}:{event.pid}", "nothing yet"
        elif isinstance(event, JobStarted):
            places = f", episodes {event.start} to {event.stop}" if event.kind == "evaluate" else ""
            worker.doing, worker.cell = f"{event.kind} {event.training}{places}", None
        elif isinstance(event, JobFinished):
            worker.doing, worker.cell = "between two jobs", None
        elif isinstance(event, Idle):
            worker.doing, worker.cell = "waits for others", None
        elif isinstance(event, CellEntered):
            worker.cell = event.cell
        elif isinstance(event, CellLeft):
            worker.cell = None


class Folder:
    """The runs of a results folder.

    Raises:
        BenchError: there is no such folder.
    """

    def __init__(self, results: Path) -> None:
        if not results.is_dir():
            raise BenchError(f"{results}: no such folder; expected the --results of a run")
        self._events, self._locks = results / FOLDER, Locks(results / ".locks")
        self._runs: dict[str, RunStatus] = {}

    def look(self, all_runs: bool = False) -> list[RunStatus]:
        """Those that are under way, and the last one whatever it is; or all, oldest first."""
        folders = sorted(self._events.iterdir()) if self._events.is_dir() else []
        found = []
        for folder in folders:
            alive = self._alive(folder)
            if alive or all_runs or folder == folders[-1]:
                run = self._runs.setdefault(folder.name, RunStatus(folder.name, EventReader(folder)))
                run.alive = alive
                run.update()
                found.append(run)
        return found

    def _alive(self, folder: Path) -> bool:
        try:
            with self._locks.tried(run_lock(folder)) as free:
                return not free
        except StorageError:
            return False  # a folder that may not be written: nobody can tell
