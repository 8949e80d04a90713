"""What workers have to say, whole and in order: sent by them, and said by their driver as if nothing ran elsewhere."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any

from robustbench_meta import errors
from robustbench_meta.errors import BenchError
from robustbench_meta.executors import Hear
from robustbench_meta.stopping import Stop

PACE_SECONDS = 0.1
"""Between two reports of progress; the first and the last one always come."""


class Line:
    """The pipe to the driver, for all threads of a worker: it sends (kind, facts)."""

    def __init__(self, pipe: Connection, stop: Stop) -> None:
        self._pipe, self._stop, self._lock = pipe, stop, threading.Lock()

    def tell(self, kind: str, /, **facts: Any) -> None:
        """Send one message, whole also when the work is told to stop."""
        if threading.current_thread() is threading.main_thread():
            with self._stop.shielded(), self._lock:
                self._pipe.send((kind, facts))
        else:
            with self._lock:
                self._pipe.send((kind, facts))

    def next(self) -> Any:
        """What the driver sends next, waited for."""
        with self._stop.at_once():
            return self._pipe.recv()


class Paced:
    """Passes events on; of progress no more than anyone wants to see."""

    def __init__(self, hear: Hear, clock: Callable[[], float] = time.monotonic) -> None:
        self._hear, self._clock = hear, clock
        self._last: dict[str, float] = {}

    def __call__(self, event: str, /, **facts: Any) -> None:
        """See `Hear`."""
        if event in {"training_progress", "evaluation_progress"}:
            done, total = facts.get("step", facts.get("done")), facts.get("steps", facts.get("total"))
            now = self._clock()
            if event in self._last and done != total and now - self._last[event] < PACE_SECONDS:
                return
            self._last[event] = now
        self._hear(event, **facts)


class _LogMessages(QueueHandler):
    """Sends log records to the driver."""

    def __init__(self, tell: Hear) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # the queue is for `enqueue`, which needs none
        self._tell = tell

    def enqueue(self, record: logging.LogRecord) -> None:
        self._tell("log", record=record)


class _Print(io.TextIOBase):
    """Sends what is printed to the driver, by whole lines, lest it runs through the driver's progress bars."""

    def __init__(self, tell: Hear, stream: str) -> None:
        self._tell, self._stream, self._begun = tell, stream, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._tell("print", stream=self._stream, text=whole + newline)
        return len(text)


@contextlib.contextmanager
def speaking_through(tell: Hear, level: int) -> Iterator[None]:
    """Log messages, warnings and what is printed go to the driver, as the events `log`, `warning` and `print`."""

    def warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        tell("warning", text=str(message), category=category.__name__, filename=filename, lineno=lineno)

    logging.basicConfig(level=level, format="%(message)s", handlers=[_LogMessages(tell)], force=True)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Print(tell, "stdout")),
        contextlib.redirect_stderr(_Print(tell, "stderr")),
    ):
        warnings.showwarning = warn  # type: ignore[assignment]  # as the documentation of warnings has it
        yield


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing that is said inside is heard."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


class Voice:
    """Says on this machine what workers elsewhere have to say, as if nothing ran elsewhere."""

    def __init__(self) -> None:
        self._shown: dict[str, dict[Any, Any]] = {}
        """What the module warnings keeps of the warnings that were shown, by file."""
        self._sayings: dict[str, Callable[..., None]] = {"log": _log_here, "warning": self._warn, "print": _print_here}

    def says(self, kind: str, facts: Mapping[str, Any]) -> bool:
        """Say it, if that message is something to say."""
        if kind in self._sayings:
            self._sayings[kind](**facts)
        return kind in self._sayings

    def _warn(self, text: str, category: str, filename: str, lineno: int) -> None:
        """Warn as the worker did; the same warning of several workers is shown once."""
        known = getattr(builtins, category, UserWarning)
        warnings.warn_explicit(text, known, filename, lineno, registry=self._shown.setdefault(filename, {}))


def _log_here(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _print_here(stream: str, text: str) -> None:
    getattr(sys, stream).write(text)


def raised(kind: str, message: str, trace: str) -> Exception:
    """What was raised in a worker: ours as it was, anything else as a bug."""
    ours = getattr(errors, kind, None)
    error: Exception = RuntimeError(f"{kind}: {message}")
    if isinstance(ours, type) and issubclass(ours, BenchError):
        error = ours(message)
    error.add_note(f"In a worker:\n{trace}")
    return error
