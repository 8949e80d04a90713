"""Forked processes that share out the pieces of one piece of work; how many there are changes no number.

Not threads: Python lets one of them run at a time between two operations of torch, and with small networks
that is most of the time. Not spawned processes: these would take seconds to import torch and load the data.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import pickle
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from robustbench_meta.errors import BenchError

Item = TypeVar("Item")
Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: which signal a process gets when its parent is gone."""


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

    def count(self) -> int:
        """How many at the moment; one where processes cannot be forked."""
        return max(1, self._count()) if forks() else 1


class Crew(Generic[Item, Result]):
    """Copies of this process, forked now, that do `work` on items.

    What `work` refers to is as it was at the fork, except tensors in shared memory.

    Args:
        work: what each does with an item; its result is pickled.
        count: how many processes.
    """

    def __init__(self, work: Callable[[Item], Result], count: int) -> None:
        self._hands: list[tuple[ForkProcess, Connection]] = []
        fork = multiprocessing.get_context("fork")
        for _ in range(count):
            ours, theirs = fork.Pipe()
            process = fork.Process(target=_serve, args=(work, theirs), daemon=True)
            with warnings.catch_warnings():  # threads that are here are not used in the copies
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._hands.append((process, ours))
        weakref.finalize(self, _end, self._hands)

    def __enter__(self) -> Crew[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()

    def map(self, items: Sequence[Item]) -> Iterator[Result]:
        """The results in the order of the items; the first item that fails (in that order) raises its error here.

        Raises:
            BenchError: a process died.
        """
        waiting = list(enumerate(items))[::-1]
        results: dict[int, tuple[bool, Any]] = {}
        busy: dict[Connection, int] = {}
        for _, pipe in self._hands:
            self._give(pipe, waiting, busy)
        for index in range(len(items)):
            while index not in results:
                ready = wait(list(busy))
                for pipe in [pipe for pipe in busy if pipe in ready]:
                    results[busy[pipe]] = self._take(pipe)
                    self._give(pipe, waiting, busy)
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
        """The next item, if there is one."""
        busy.pop(pipe, None)
        if waiting:
            index, item = waiting.pop()
            pipe.send_bytes(pickle.dumps(item))
            busy[pipe] = index

    def _take(self, pipe: Connection) -> tuple[bool, Any]:
        try:
            good, value = pickle.loads(pipe.recv_bytes())  # written by a copy of this process
            return bool(good), value
        except (EOFError, ConnectionError):
            process = next(process for process, ours in self._hands if ours is pipe)
            process.join(5)
            code = process.exitcode
            how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
            return False, BenchError(
                f"a process that shared the work ended {how}; if memory ran out, use fewer: --jobs 1, OMP_NUM_THREADS=1"
            )


def _end(hands: list[tuple[ForkProcess, Connection]]) -> None:
    for process, pipe in hands:
        pipe.close()
        process.kill()
    for process, _ in hands:
        process.join()
    hands.clear()


def _serve(work: Callable[[Any], Any], pipe: Connection) -> None:
    """The life of a copy."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was forked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.disable()  # a handler may wait for a thread that is not in this copy
    while True:
        try:
            item = pickle.loads(pipe.recv_bytes())  # written by the process that was forked
        except (EOFError, ConnectionError):
            return
        try:
            answer = pickle.dumps((True, work(item)))
        except BaseException as error:
            answer = _failure(error)
        pipe.send_bytes(answer)


def _failure(error: BaseException) -> bytes:
    try:
        told = pickle.dumps((False, error))
        pickle.loads(told)  # our own
        return told
    except Exception:  # an error that cannot travel
        return pickle.dumps((False, BenchError(f"{type(error).__name__}: {error}")))
