"""A worker process: makes the grid from its recipe, then does tasks until there are none.

It speaks with its driver over a pipe. It sends (kind, facts): `idle` when it wants a task, the events of the
work, and `log`, `warning` and `print` for what it has to say, so that this looks as if nothing ran elsewhere. It
gets a task, or None for the end. At SIGTERM it keeps what is under way and ends.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any

from robustbench_meta.cores import computing_alone
from robustbench_meta.devices import choose_device
from robustbench_meta.executors import Hear, Recipe, Task
from robustbench_meta.grid import prepare
from robustbench_meta.lanes import Lanes
from robustbench_meta.registry import load_registry
from robustbench_meta.shelf import Folder
from robustbench_meta.stopping import Stop, Stopped
from robustbench_meta.work import Workplace, do_task

PACE_SECONDS = 0.1
"""Between two reports of progress; the first and the last one always come."""


def serve(pipe: Connection, recipe: Recipe, lanes: Any, level: int) -> None:
    """The whole life of a worker.

    Args:
        pipe: to the driver.
        recipe: of the run.
        lanes: a shared value: how many threads this worker may use at the moment.
        level: of the log messages that the driver wants.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver, which ends its workers
    _end_with_parent()
    stop = Stop()
    line = _Line(pipe, stop)
    try:
        with stop.listening(signals=(signal.SIGTERM,)):
            with muted(), stop.at_once():  # the driver has made the same grid, and said what there is to say about it
                place = _workplace(recipe, Lanes(lambda: int(lanes.value)), stop)
            with speaking_through(line.tell, level), computing_alone(place.device):
                line.tell("idle")
                while (task := _next(pipe, stop)) is not None:
                    do_task(place, task, Paced(line.tell))
                    line.tell("idle")
    except Stopped:
        line.tell("stopped")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver is gone
    except Exception as error:  # whatever it is, the driver tells it
        line.tell("error", kind=type(error).__name__, message=str(error), trace=traceback.format_exc())


def _workplace(recipe: Recipe, lanes: Lanes, stop: Stop) -> Workplace:
    grid = prepare(recipe.run, load_registry(recipe.plugins, local=recipe.local_plugins), recipe.data_root)
    return Workplace(grid, Folder(recipe.results), choose_device(recipe.device), lanes, stop=stop, watches=True)


def _next(pipe: Connection, stop: Stop) -> Task | None:
    with stop.at_once():
        task: Task | None = pipe.recv()
        return task


def _end_with_parent() -> None:
    """End this process at once when the driver is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watch the driver", daemon=True).start()


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


class _Line:
    """The pipe to the driver, for all threads of this process."""

    def __init__(self, pipe: Connection, stop: Stop) -> None:
        self._pipe, self._stop, self._lock = pipe, stop, threading.Lock()

    def tell(self, kind: str, /, **facts: Any) -> None:
        """Send one message."""
        if threading.current_thread() is threading.main_thread():
            with self._stop.shielded(), self._lock:
                self._pipe.send((kind, facts))
        else:
            with self._lock:
                self._pipe.send((kind, facts))


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
