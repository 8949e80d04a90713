"""What workers do, as typed events: each worker appends its own to a file, which everybody may read."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustbench_meta.runtime.atomic_files import cannot_write
from robustbench_meta.runtime.interrupts import Stop

PACE_SECONDS = 0.5
"""Between two reports of the same progress; the first and the last, and any with new metrics, are always written."""
FOLDER = "events"
"""Of a results folder; it has a folder for each run."""


@dataclass(frozen=True)
class Event:
    """Something that happened, at a time in seconds since 1970."""

    time: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True)
class RunStarted(Event):
    """The facts of the hook `run_started`."""

    run: dict[str, Any]
    cells: int
    work: list[dict[str, Any]]
    results: str
    trainings: dict[str, Any]


@dataclass(frozen=True)
class RunFinished(Event):
    """A run is over, or was interrupted in good order."""


@dataclass(frozen=True)
class WorkerStarted(Event):
    """A worker looks for its first job."""

    host: str
    pid: int


@dataclass(frozen=True)
class Idle(Event):
    """A worker waits for jobs of others."""


@dataclass(frozen=True)
class JobStarted(Event):
    """A worker begins a job: `train`, `evaluate` (episodes start to stop) or `assemble`."""

    kind: str
    key: str
    """Of the training."""
    training: str
    """Its title."""
    start: int = 0
    stop: int = 0
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobFinished(Event):
    """A worker has done its job."""


@dataclass(frozen=True)
class TrainingProgress(Event):
    """The facts of the hook `training_progress`."""

    training: str
    key: str
    step: int
    steps: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class EvaluationProgress(Event):
    """The (episode, attack) pairs of a training that all workers have evaluated; see the hook."""

    training: str
    done: int
    total: int


@dataclass(frozen=True)
class CellEntered(Event):
    """A worker begins to compute a cell, in its current job."""

    cell: str


@dataclass(frozen=True)
class CellLeft(Event):
    """A worker has computed that cell."""

    cell: str
    seconds: float


@dataclass(frozen=True)
class CellFinished(Event):
    """A cell's record is on disk."""

    cell: str


@dataclass(frozen=True)
class CellFailed(Event):
    """A cell failed, and a note of it is on disk."""

    cell: str
    labels: dict[str, Any]
    training: str
    reason: str


@dataclass(frozen=True)
class WorkerFailed(Event):
    """A worker ends because of an error that is no cell's."""

    kind: str
    message: str
    trace: str


@dataclass(frozen=True)
class Logged(Event):
    """A log message."""

    name: str
    level: int
    message: str


@dataclass(frozen=True)
class Warned(Event):
    """A warning."""

    text: str
    category: str
    filename: str
    lineno: int


@dataclass(frozen=True)
class Printed(Event):
    """Whole lines on stdout or stderr."""

    stream: str
    text: str


_KINDS = {kind.__name__: kind for kind in Event.__subclasses__()}


class EventLog:
    """The events of one worker; its forks may append, too. `after` is called after each event.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(
        self, path: Path, stop: Stop | None = None, after: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.path, self._stop, self._after, self._clock = path, stop or Stop(), after, clock
        self._last: dict[tuple[type[Event], str], tuple[float, Any]] = {}
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error

    def emit(self, event: Event) -> None:
        """Append an event; of progress, one every `PACE_SECONDS`.

        Raises:
            StorageError: it cannot be written.
        """
        if isinstance(event, TrainingProgress):
            due = self._due(event, event.training, event.step in {0, event.steps}, event.metrics)
        elif isinstance(event, EvaluationProgress):
            due = self._due(event, event.training, event.done in {0, event.total}, {})
        else:
            due = True
        if not due:
            return
        line = json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n"
        with self._stop.shielded():  # a signal that ends work at once waits until the line is written
            try:
                os.write(self._file, line.encode())
            except OSError as error:
                raise cannot_write(self.path, error) from error
            if self._after is not None:
                self._after()

    def close(self) -> None:
        """Append no more."""
        os.close(self._file)

    def _due(self, event: Event, training: str, first_or_last: bool, metrics: dict[str, float]) -> bool:
        name, now = (type(event), training), self._clock()
        last, before = self._last.get(name, (float("-inf"), None))
        if not first_or_last and now - last < PACE_SECONDS and metrics == before:
            return False
        self._last[name] = now, metrics
        return True


class EventReader:
    """The events of all workers of one run, in the order in which each worker wrote them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}
        """By worker: the bytes of its file that were read."""

    def new(self) -> Iterator[tuple[str, Event]]:
        """The events since the last call, each with the name of its worker; of a half-written line nothing."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._folder.glob("*.jsonl")):
                offset = self._offsets.get(path.stem, 0)
                if path.stat().st_size <= offset:
                    continue
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                self._offsets[path.stem] = offset + len(whole)
                for line in whole.splitlines():
                    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # of another version
                        facts = json.loads(line)
                        event = _KINDS[facts.pop("event")](**facts)
                        yield path.stem, event
