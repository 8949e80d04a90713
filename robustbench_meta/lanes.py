"""Forked processes that share out the pieces of one piece of work; how many there are changes no number.

Not threads: Python lets one of them run at a time between two operations of torch, and with small networks
that is most of the time. Not spawned processes: these would take seconds to import torch and load the data.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from robustbench_meta.deaths import how_it_ended
from robustbench_meta.devices import peak_resident
from robustbench_meta.errors import BenchError, keep_traceback, located

Item = TypeVar("Item")
Result = TypeVar("Result")


class DeathError(BenchError):
    """A process that shared the work died."""

    item: Any = None
    """What it was at work on."""


_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent is gone."""


@cache
def forks() -> bool:
    """Whether processes may be forked here: on Linux, unless torch sees a CUDA device, which does not survive it."""
    return sys.platform == "linux" and not torch.cuda.is_available()


class Lanes:
    """How many processes may work side by side.

    Args:
        count: how many cores there are for this work at the moment; it may change at any time.
    """

    def __init__(self, count: Callable[[], int] = lambda: 1) -> None:
        self._count = count
        self.peak = 0
        """The most memory, in bytes, that a single process of a crew held since this was set to 0."""

    def count(self) -> int:
        """How many at the moment; one where processes cannot be forked."""
        return max(1, self._count()) if forks() and not multiprocessing.current_process().daemon else 1


class Crew(Generic[Item, Result]):
    """Copies of this process, forked now, that do `work` on items.

    What `work` refers to is as it was at the fork, except tensors in shared memory.

    Args:
        work: what each does with an item; its result is pickled.
        count: how many processes.
        lanes: is told the memory that they took.

    Raises:
        BenchError: no process can be forked.
    """

    def __init__(self, work: Callable[[Item], Result], count: int, lanes: Lanes | None = None) -> None:
        self._hands: list[tuple[ForkProcess, Connection]] = []
        self._lanes = lanes or Lanes()
        weakref.finalize(self, _end, self._hands)
        try:
            for _ in range(count):
                self._hands.append(_fork(work, [pipe for _, pipe in self._hands]))
        except OSError as error:
            self.dismiss()
            raise BenchError(f"cannot start a process to share the work ({error}); use OMP_NUM_THREADS=1") from error

    def __enter__(self) -> Crew[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()

    def map(self, items: Sequence[Item]) -> Iterator[Result]:
        """The results in the order of the items; the first item that fails (in that order) raises its error here.

        Raises:
            DeathError: a process died.
        """
        if not self._hands:
            raise BenchError("these processes have been dismissed")
        waiting = list(enumerate(items))[::-1]
        results: dict[int, tuple[bool, Any]] = {}
        busy: dict[Connection, int] = {}
        for _, pipe in self._hands:
            self._give(pipe, waiting, busy)
        for index in range(len(items)):
            while index not in results:
                ready = wait(list(busy))
                for pipe in [pipe for pipe in busy if pipe in ready]:
                    at = busy.pop(pipe)
                    results[at] = answer = self._take(pipe)
                    if isinstance(answer[1], DeathError):
                        answer[1].item = items[at]
                    if answer[0]:
                        self._give(pipe, waiting, busy)
                    else:
                        waiting.clear()
            good, value = results.pop(index)
            if not good:
                self.dismiss()
                raise value
            yield value

    def dismiss(self) -> None:
        """End all processes."""
        _end(self._hands)

    @staticmethod
    def _give(pipe: Connection, waiting: list[tuple[int, Item]], busy: dict[Connection, int]) -> None:
        """The next item, if there is one; if its process is dead, reading its answer will tell."""
        if waiting:
            index, item = waiting.pop()
            busy[pipe] = index
            with contextlib.suppress(ConnectionError):
                pipe.send_bytes(pickle.dumps(item))

    def _take(self, pipe: Connection) -> tuple[bool, Any]:
        try:
            good, value, said = pickle.loads(pipe.recv_bytes())  # written by a copy of this process
            self._lanes.peak = max(self._lanes.peak, said.peak)
            said.again()
            return bool(good), value
        except (EOFError, ConnectionError):
            process = next(process for process, ours in self._hands if ours is pipe)
            process.join(5)
            return False, DeathError(
                f"a process that shared the work {how_it_ended(process.exitcode)}; if memory ran out, use fewer: "
                "--jobs 1, OMP_NUM_THREADS=1"
            )


def _end(hands: list[tuple[ForkProcess, Connection]]) -> None:
    for process, pipe in hands:
        pipe.close()
        process.kill()
    for process, _ in hands:
        process.join()
    hands.clear()


def _fork(work: Callable[[Any], Any], others: Sequence[Connection]) -> tuple[ForkProcess, Connection]:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_serve, args=(work, theirs, [ours, *others], os.getpid()), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the copy has said what it does with it
    try:
        with warnings.catch_warnings():  # threads that are here are not used in the copies
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


@dataclass
class _Said:
    """What a copy has said since its last answer, and the most memory that it held."""

    log: list[tuple[str, int, str]] = field(default_factory=list)
    out: str = ""
    err: str = ""
    peak: int = 0

    def again(self) -> None:
        """Say it here."""
        for name, level, message in self.log:
            logging.getLogger(name).log(level, "%s", message)
        for text, stream in ((self.out, sys.stdout), (self.err, sys.stderr)):
            if text:
                stream.write(text)


class _Listening(logging.Handler):
    """Keeps what is logged, warned and printed in a copy, until its next answer."""

    def __init__(self) -> None:
        super().__init__()
        for logger in logging.root.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                logger.handlers.clear()  # they may wait for a thread that is not in this copy
        logging.root.handlers[:] = [self]
        logging.captureWarnings(True)
        self._begin()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._log.append((record.name, record.levelno, record.getMessage()))

    def said(self) -> _Said:
        """All of it, and begin anew."""
        told = _Said(self._log, self._out.getvalue(), self._err.getvalue(), peak_resident() or 0)
        self._begin()
        return told

    def _begin(self) -> None:
        self._log: list[tuple[str, int, str]] = []
        sys.stdout, sys.stderr = self._out, self._err = io.StringIO(), io.StringIO()


def _serve(work: Callable[[Any], Any], pipe: Connection, others: Sequence[Connection], parent: int) -> None:
    """The life of a copy."""
    for number in (signal.SIGINT, signal.SIGTERM):  # these are for the process that was forked
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it was gone before it could be watched
    for other in others:
        other.close()
    torch.set_num_threads(1)
    listening = _Listening()
    while True:
        try:
            item = pickle.loads(pipe.recv_bytes())  # written by the process that was forked
        except (EOFError, ConnectionError):
            return
        value: Any
        try:
            good, value = True, work(item)
        except BaseException as error:
            good, value = False, _travelling(error)
        pipe.send_bytes(pickle.dumps((good, value, listening.said())))


def _travelling(error: BaseException) -> BaseException:
    """The error, or what it says if it cannot be pickled."""
    keep_traceback(error)
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        told = BenchError(located(error))
        vars(told).update(vars(error))
        return told
