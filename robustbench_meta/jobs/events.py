"""What workers do, as typed events: each worker appends its own to a file, and anybody may read all of them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustbench_meta.runtime.atomic_files import cannot_write
from robustbench_meta.runtime.interrupts import Stop

PACE_SECONDS = 0.5
"""Between two reports of the same progress; the first and the last one always come, and all with new metrics."""
FOLDER = "events"
"""Of a results folder; it has a folder for each run."""


@dataclass(frozen=True)
class Event:
    """Something that happened, at a time in seconds since 1970."""

    time: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True)
class RunStarted(Event):
    """A run begins: the facts of the hook `run_started`."""

    run: dict[str, Any]
    cells: int
    work: list[dict[str, Any]]
    results: str
    trainings: dict[str, Any]
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class RunFinished(Event):
    """A run is over."""

    finished: int
    failed: int


@dataclass(frozen=True)
class WorkerStarted(Event):
    """A worker begins."""

    host: str
    pid: int


@dataclass(frozen=True)
class Idle(Event):
    """A worker has nothing to do at the moment."""


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
    """A worker is done with its job."""


@dataclass(frozen=True)
class TrainingProgress(Event):
    """A training is at a step; see the hook."""

    training: str
    key: str
    step: int
    steps: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class EvaluationProgress(Event):
    """So many (episode, attack) pairs of a training's cells are evaluated, by whomever; see the hook."""

    training: str
    done: int
    total: int


@dataclass(frozen=True)
class CellEntered(Event):
    """A worker is at a cell from now on."""

    cell: str


@dataclass(frozen=True)
class CellLeft(Event):
    """A worker is at that cell no more."""

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
    """A log message of a worker."""

    name: str
    level: int
    message: str


@dataclass(frozen=True)
class Warned(Event):
    """A warning of a worker."""

    text: str
    category: str
    filename: str
    lineno: int


@dataclass(frozen=True)
class Printed(Event):
    """Whole lines that a worker printed."""

    stream: str
    text: str


_KINDS = {kind.__name__: kind for kind in Event.__subclasses__()}


class EventLog:
    """The events of one worker; forks of it may append, too.

    Args:
        path: of the file; made.
        stop: a signal that ends work at once waits until an event is written.
        after: called after each event.
        clock: gives seconds.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(
        self, path: Path, stop: Stop | None = None, after: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.path, self._stop, self._after, self._clock = path, stop or Stop(), after, clock
        self._last: dict[tuple[str, str], tuple[float, Any]] = {}
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error

    def emit(self, event: Event) -> None:
        """Append an event; of progress no more than anyone wants to see.

        Raises:
            StorageError: it cannot be written.
        """
        if isinstance(event, TrainingProgress | EvaluationProgress) and not self._due(event):
            return
        line = json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n"
        with self._stop.shielded():
            try:
                os.write(self._file, line.encode())
            except OSError as error:
                raise cannot_write(self.path, error) from error
            if self._after is not None:
                self._after()

    def close(self) -> None:
        """Append no more."""
        os.close(self._file)

    def _due(self, event: TrainingProgress | EvaluationProgress) -> bool:
        if isinstance(event, TrainingProgress):
            edge, told = event.step in {0, event.steps}, event.metrics
        else:
            edge, told = event.done in {0, event.total}, {}
        name, now = (type(event).__name__, event.training), self._clock()
        if not edge and name in self._last:
            last, before = self._last[name]
            if now - last < PACE_SECONDS and told == before:
                return False
        self._last[name] = now, told
        return True


class EventReader:
    """The events of all workers of one run, in the order in which each worker wrote them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, int] = {}
        """By worker: the bytes of its file that were read."""

    def new(self) -> Iterator[tuple[str, Event]]:
        """What has come since the last time, with the worker that wrote it."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith(".jsonl"):
                    yield from self._of(entry)

    def _of(self, entry: os.DirEntry[str]) -> Iterator[tuple[str, Event]]:
        worker = entry.name.removesuffix(".jsonl")
        before = self._read.get(worker, 0)
        if os.stat(entry.path).st_size <= before:  # an entry's own stat may be that of long ago
            return
        with open(entry.path, "rb") as file:
            file.seek(before)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[worker] = before + len(whole)
        for line in whole.splitlines():
            event = _event(line)
            if event is not None:
                yield worker, event


def _event(line: bytes) -> Event | None:
    """The event of a line; None for what another version wrote."""
    try:
        found: Mapping[str, Any] = json.loads(line)
        kind = _KINDS[found["event"]]
        return kind(**{name: value for name, value in found.items() if name != "event"})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
