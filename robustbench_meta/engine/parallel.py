"""Forked processes that share out the chunks of one meta-step; how many there are changes no number.

Not threads: Python lets one of them run at a time between two operations of torch, and with small networks that is most
of the time. Not spawned processes: these would take seconds to import torch and load the data.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from robustbench_meta.errors import BenchError, keep_traceback, located
from robustbench_meta.runtime.devices import peak_resident
from robustbench_meta.runtime.interrupts import begin_fork, how_it_ended

Item = TypeVar("Item")
Result = TypeVar("Result")
_work: Callable[[Any], Any] | None = None
"""In a process of a pool: what it does."""


@cache
def forks() -> bool:
    """Whether processes may be forked here: on Linux, unless torch sees a CUDA device, which does not survive it."""
    return sys.platform == "linux" and not torch.cuda.is_available()


class Cores:
    """How many cores there are for the work at hand.

    Args:
        count: gives that; it may change at any time.
        after_fork: called in each process of a pool, for what it logs and prints.
    """

    def __init__(self, count: Callable[[], int] = lambda: 1, after_fork: Callable[[], None] | None = None) -> None:
        self._count, self.after_fork = count, after_fork
        self.peak = 0
        """The most memory, in bytes, that a process of a pool held since this was set to 0."""

    def count(self) -> int:
        """How many at the moment; one where processes cannot be forked, and in a process of a pool."""
        return max(1, self._count()) if forks() and _work is None else 1


class Pool(Generic[Item, Result]):
    """Copies of this process, forked now, that do `work` on items.

    What `work` refers to is as it was at the fork, except tensors in shared memory (see `shared`). They end with this
    process, and Ctrl-C is not for them.

    Args:
        work: what each does with an item; its result is pickled.
        count: how many processes.
        cores: records the memory that they took.
    """

    def __init__(self, work: Callable[[Item], Result], count: int, cores: Cores) -> None:
        self.count, self._cores = count, cores
        self._executor = ProcessPoolExecutor(
            count, multiprocessing.get_context("fork"), _begin, (work, os.getpid(), cores.after_fork)
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until a copy ignores it
        try:
            with warnings.catch_warnings():  # threads that are here are not used in the copies
                warnings.simplefilter("ignore", DeprecationWarning)
                self._executor.submit(_nothing)
            self._processes = dict(self._executor._processes)
        except OSError as error:
            raise BenchError(f"cannot start a process to share the work ({error}); use OMP_NUM_THREADS=1") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def map(self, items: Sequence[Item]) -> list[Result]:
        """The results in the order of the items; the first item that fails (in that order) raises its error here.

        Raises:
            BenchError: a process died.
        """
        results: list[Result] = []
        try:
            for result, peak in self._executor.map(_call, items):
                results.append(pickle.loads(result))  # written by a copy of this process
                self._cores.peak = max(self._cores.peak, peak)
        except BrokenProcessPool as broken:
            raise BenchError(
                f"a process that shared the work {how_it_ended(self._exit_code())}; if memory ran out, use fewer: "
                "--jobs 1, OMP_NUM_THREADS=1"
            ) from broken
        return results

    def _exit_code(self) -> int | None:
        """Of a process that died; the executor's thread waits for it as well, so it may be known a moment later."""
        for _ in range(100):
            if codes := [process.exitcode for process in self._processes.values() if process.exitcode]:
                return codes[0]
            time.sleep(0.02)
        return None

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.kill()
        self._executor.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any], parent: int, after_fork: Callable[[], None] | None) -> None:
    global _work  # noqa: PLW0603  # a process of a pool does one thing
    _work = work
    begin_fork(parent)
    torch.set_num_threads(1)
    if after_fork is not None:
        after_fork()


def _nothing() -> None:
    """Have the processes started."""


def _call(item: Any) -> tuple[bytes, int]:
    assert _work is not None
    try:
        value = _work(item)
    except Exception as error:
        raise _travelling(error) from None
    return pickle.dumps(value), peak_resident() or 0  # not as multiprocessing pickles tensors, a file for each


def _travelling(error: Exception) -> Exception:
    """The error, or what it says if it cannot be pickled."""
    keep_traceback(error)
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        told = BenchError(located(error))
        vars(told).update(vars(error))
        return told


def shared(like: Tensor) -> Tensor:
    """A copy in memory that stays shared with processes that are forked afterwards."""
    if like.numel() == 0:
        return like.detach().clone()
    memory = mmap.mmap(-1, like.numel() * like.element_size())
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape).copy_(like.detach())
