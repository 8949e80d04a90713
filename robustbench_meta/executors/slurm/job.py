"""One job of Slurm: it does one task from a results folder that it shares with the driver.

It tells the driver what becomes of the task by lines of JSON, appended to a file of its own: the events of the work,
and `started`, `log`, `warning`, `print`; the last is `over`, `stopped` (what was under way is kept, and another job
can go on from there) or `error`. At SIGUSR2, which Slurm sends before the time is up, and at SIGTERM, which it sends
before it takes the node away, it keeps what is under way and ends; so it does when the driver is heard of no more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_meta.checkpoints import checkpoint_name
from robustbench_meta.cores import computing_alone
from robustbench_meta.devices import choose_device
from robustbench_meta.errors import BenchError, DeviceLostError, StorageError
from robustbench_meta.executors import Recipe, Task
from robustbench_meta.executors.remote import installed, unlike
from robustbench_meta.executors.speech import muted, speaking_through
from robustbench_meta.files import cannot_write, write_text
from robustbench_meta.grid import prepare
from robustbench_meta.lanes import Lanes
from robustbench_meta.registry import load_registry
from robustbench_meta.shelf import Folder
from robustbench_meta.spec import RunSpec
from robustbench_meta.stopping import Stop, Stopped
from robustbench_meta.work import Workplace, do_task

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
PACE_SECONDS = 1.0
"""Between two reports of progress; the first and the last one always come."""
BEAT_SECONDS = 5.0
"""Between two signs of life of the driver."""
DEAD_SECONDS = 120.0
"""How long the driver gives no sign of life before a job ends."""
SEEN_SECONDS = 60.0
"""How long a network file system may take to show a file that another node has written."""


@dataclass(frozen=True)
class Order:
    """What a job is told: all of it plain data, sent as JSON."""

    recipe: Recipe
    """Its folders are absolute."""
    task: Task
    spool: Path
    """The file of the job's events."""
    heart: Path
    """The file that the driver touches."""
    plans: Path
    """The folder of the plans that all jobs use."""
    cores: int
    level: int
    """Of the log messages that the driver wants."""
    versions: Mapping[str, str]
    """The driver's."""

    def text(self) -> str:
        """As JSON."""
        recipe = {**_plain(self.recipe), "run": self.recipe.run.model_dump(mode="json")}
        return json.dumps({**_plain(self), "recipe": recipe, "task": _plain(self.task)})

    @classmethod
    def read(cls, text: str) -> Order:
        """From JSON."""
        told = json.loads(text)
        recipe, task = told.pop("recipe"), told.pop("task")
        folders = {name: Path(recipe[name]) if recipe[name] else None for name in ("plugins", "data_root")}
        recipe |= {**folders, "run": RunSpec(**recipe["run"]), "results": Path(recipe["results"])}
        task |= {"cells": tuple(task["cells"]), "needs": tuple(task["needs"])}
        paths = {name: Path(told[name]) for name in ("spool", "heart", "plans")}
        return cls(**{**told, **paths, "recipe": Recipe(**recipe), "task": Task(**task)})


def _plain(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass, folders as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(thing).items()}


def work(text: str) -> None:
    """The whole life of a job.

    Args:
        text: an order.
    """
    order, stop = Order.read(text), Stop()
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))  # Slurm tells them too
    spool = Spool(order.spool, stop)
    try:
        with stop.listening(signals=SIGNALS):
            spool.tell("started", host=socket.gethostname(), pid=os.getpid())
            _check_versions(order.versions)
            heart = Heart(order.heart, _stop_this_process)
            with muted(), stop.at_once():  # the driver has made the same grid, and said what there is to say about it
                place = _workplace(order, stop)
                if not heart.beats(stop):
                    raise Stopped
                _await([order.recipe.results / checkpoint_name(key) for key in order.task.needs])
            with heart.watched(), speaking_through(spool.tell, order.level), computing_alone(place.device):
                do_task(place, order.task, spool.tell)
            spool.tell("over")
    except (Stopped, KeyboardInterrupt, DeviceLostError):
        spool.tell("stopped", by=stop.signal)
    except Exception as error:  # whatever it is, the driver tells it
        spool.tell("error", kind=type(error).__name__, message=str(error), trace=traceback.format_exc())


def _check_versions(expected: Mapping[str, str]) -> None:
    reason = unlike(expected, installed())
    if reason is not None:
        raise BenchError(
            f"the node {socket.gethostname()} has other versions than the machine where bench was started: {reason}; "
            f"use the same environment on both (there: {sys.executable})"
        )


def _stop_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _workplace(order: Order, stop: Stop) -> Workplace:
    recipe, lanes = order.recipe, Lanes(lambda: order.cores)
    grid = prepare(recipe.run, load_registry(recipe.plugins, local=recipe.local_plugins), recipe.data_root)
    book = PlanFolder(order.plans)
    device = choose_device(recipe.device)
    return Workplace(grid, Folder(recipe.results), device, lanes, stop=stop, book=book, watches=True)


def _await(paths: list[Path], seconds: float = SEEN_SECONDS) -> None:
    """Wait until this node sees files that another has written; the work says what is wrong with those it does not."""
    until = time.monotonic() + seconds
    for path in paths:
        while path.name not in os.listdir(path.parent) and time.monotonic() < until:  # reading the folder refreshes it
            time.sleep(0.5)


class Spool:
    """The file through which a job tells the driver its events, a line of JSON each, for all threads.

    What must not be lost is on the disk when `tell` returns; of progress no more is told than anyone wants to see.
    """

    def __init__(self, path: Path, stop: Stop, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._stop, self._clock = path, stop, clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    def tell(self, event: str, /, **facts: Any) -> None:
        """Append one event.

        Raises:
            StorageError: it cannot be written.
        """
        if event == "log":
            record = facts["record"]
            if record.name.startswith("submitit"):
                return  # it has a file of its own
            facts = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname,
                     "msg": record.getMessage()}  # fmt: skip
        passing = event in {"training_progress", "evaluation_progress", "at"}
        if passing and not self._due(event, facts):
            return
        line = json.dumps({"event": event, "facts": facts}, default=_number).encode() + b"\n"
        if threading.current_thread() is threading.main_thread():
            with self._stop.shielded(), self._lock:
                self._write(line, passing)
        else:
            with self._lock:
                self._write(line, passing)

    def _due(self, event: str, facts: Mapping[str, Any]) -> bool:
        done, total = facts.get("step", facts.get("done")), facts.get("steps", facts.get("total"))
        now = self._clock()
        ends = done is not None and done == total
        if event in self._last and not ends and now - self._last[event] < PACE_SECONDS:
            return False
        self._last[event] = now
        return True

    def _write(self, line: bytes, passing: bool) -> None:
        try:
            written = self._file.write(line)
            if written != len(line):
                raise StorageError(f"cannot write {self._path}: no room for a whole line; free some space")
            if not passing:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error


def _number(value: Any) -> Any:
    """A number of torch or numpy as one of Python's; anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


class Tail:
    """Reads the lines that another machine appends to a file, as they become visible here."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What has come since the last time; a line that is not whole yet comes later."""
        try:
            os.listdir(self._path.parent)  # a network file system may remember that there was no such file
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return
        data = data.partition(b"\0")[0]  # the length can be known before what is written there
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            self._read += len(line)
            with contextlib.suppress(ValueError, KeyError, TypeError):
                told = json.loads(line)
                yield str(told["event"]), dict(told["facts"])


class Heart:
    """The driver as its jobs see it: a file that it touches. Clocks of machines are not compared.

    Args:
        path: the file.
        end: called, in a thread, when the driver is gone.
    """

    def __init__(self, path: Path, end: Callable[[], None]) -> None:
        self._path, self._end = path, end
        self._seen = self._touched()

    def beats(self, stop: Stop, seconds: float = DEAD_SECONDS) -> bool:
        """Wait for the next sign of life; False if none comes in so many seconds."""
        until = time.monotonic() + seconds
        while (touched := self._touched()) in {None, self._seen}:
            stop.check()
            if time.monotonic() > until:
                return False
            time.sleep(0.2)
        self._seen = touched
        return True

    @contextlib.contextmanager
    def watched(self, seconds: float = DEAD_SECONDS) -> Iterator[None]:
        """Inside, `end` is called when no sign of life has come for so many seconds."""
        over = threading.Event()

        def watch() -> None:
            since = time.monotonic()
            while not over.wait(min(BEAT_SECONDS, seconds / 4)):
                if (touched := self._touched()) not in {None, self._seen}:
                    self._seen, since = touched, time.monotonic()
                elif time.monotonic() - since > seconds:
                    self._end()
                    return

        thread = threading.Thread(target=watch, name="watch the driver", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _touched(self) -> int | None:
        try:
            with self._path.open("rb") as file:  # opened, so that a network file system asks its server
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None


class PlanFolder:
    """The book of plans of all jobs of a results folder: what the first has settled all use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> str | None:
        """See `robustbench_meta.tuning.Book.read`."""
        with contextlib.suppress(OSError, ValueError):
            return self._path(name).read_text(encoding="utf-8")
        return None

    def settle(self, name: str, text: str) -> str:
        """See `robustbench_meta.tuning.Book.settle`."""
        path = self._path(name)
        mine = path.with_name(f".{name}.{socket.gethostname()}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(mine, text)
            with contextlib.suppress(FileExistsError):
                os.link(mine, path)  # fails if it is there, on network file systems too
        except OSError as error:
            logging.getLogger(__name__).debug("%s cannot be written: %s", path, error)
        finally:
            mine.unlink(missing_ok=True)
        return self.read(name) or text

    def names(self) -> list[str]:
        """All that is in it."""
        return [path.stem for path in sorted(self.folder.glob("[!.]*.json"))]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"
