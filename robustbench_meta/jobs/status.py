"""What the event files of a results folder say of its runs; no import of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.jobs import events
from robustbench_meta.jobs.events import Event
from robustbench_meta.jobs.monitor import Monitor, WorkerState
from robustbench_meta.jobs.time_left import RunProgress
from robustbench_meta.runtime.locks import Locks


def run_lock(folder: Path) -> str:
    """The name of the lock of a running run, by the folder of its events."""
    return f"run-{folder.name}"


class RunStatus:
    """One run, by its events.

    Args:
        folder: of the events.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._now = 0.0  # by the last event: a run that is over takes no more time
        self.progress = RunProgress(lambda: self._now)
        self.failed: list[tuple[str, str]] = []
        """Which cells, and why."""
        self.alive = False
        """Whether the process that was started still runs."""
        self._new: list[Event] = []
        self._monitor = Monitor(folder, on_event=self._new.append)
        self._over: set[str] = set()
        self._ended = False

    @property
    def workers(self) -> dict[str, WorkerState]:
        """By their names, in order."""
        return {name: self._monitor.workers[name] for name in sorted(self._monitor.workers) if name != "driver"}

    @property
    def state(self) -> str:
        """`running`, `finished` or `interrupted`."""
        if self.alive:
            return "running"
        return "finished" if self._ended and self.progress.cells_over >= self.progress.cells else "interrupted"

    def update(self) -> None:
        """Read the events since the last time."""
        self._monitor.poll()
        for event in sorted(self._new, key=lambda event: event.time):
            self._now = max(self._now, event.time)
            self._note(event)
        self._new.clear()

    def plain(self) -> dict[str, Any]:
        """For programs."""
        progress = self.progress
        return {
            "name": self.name, "state": self.state, "cells": progress.cells, "cells_over": progress.cells_over,
            "failed": [{"cell": what, "reason": reason} for what, reason in self.failed],
            "share_done": progress.fraction,
            "running": [
                {"stage": each.stage, "training": each.title, "done": each.done, "total": each.total}
                for each in progress.running
            ],
            "workers": [
                {"name": name, "time": each.time, "place": each.place, "doing": each.doing, "cell": each.cell}
                for name, each in self.workers.items()
            ],
        }  # fmt: skip

    def _note(self, event: Event) -> None:
        match event:
            case events.RunStarted():
                self.progress.begin(event.cells, event.work)
            case events.RunFinished():
                self._ended = True
            case events.TrainingProgress():
                self.progress.reach("train", event.training, event.step, event.steps, event.metrics)
            case events.EvaluationProgress():
                self.progress.reach("test", event.training, event.done, event.total)
            case events.CellFinished() if event.cell not in self._over:
                self._over.add(event.cell)
                self.progress.cell_over()
            case events.CellFailed() if event.cell not in self._over:
                self._over.add(event.cell)
                self.progress.cell_over(failed_of=event.training)
                labels = event.labels
                what = f"{labels['attack']} eps={labels['eps']} {labels['support']}/{labels['query']}"
                self.failed.append((f"{what} on {event.training}", event.reason))


class Folder:
    """The runs of a results folder.

    Raises:
        BenchError: there is no such folder.
    """

    def __init__(self, results: Path) -> None:
        if not results.is_dir():
            raise BenchError(f"{results}: no such folder; expected the --results of a run")
        self._events, self._locks = results / events.FOLDER, Locks(results / ".locks")
        self._runs: dict[str, RunStatus] = {}

    def look(self, all_runs: bool = False) -> list[RunStatus]:
        """The runs that go on, and the last one whatever it is; or all, oldest first."""
        folders = sorted(self._events.iterdir()) if self._events.is_dir() else []
        runs = []
        for folder in folders:
            alive = self._alive(folder)
            if alive or all_runs or folder == folders[-1]:
                run = self._runs.setdefault(folder.name, RunStatus(folder))
                run.alive = alive
                run.update()
                runs.append(run)
        return runs

    def _alive(self, folder: Path) -> bool:
        try:
            with self._locks.tried(run_lock(folder)) as free:
                return not free
        except StorageError:
            return False  # a folder that may not be written: nobody can tell
