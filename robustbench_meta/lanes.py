"""Threads that share out the pieces of one piece of work; how many there are changes no number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()


def in_lane() -> bool:
    """Whether this thread is one of several lanes."""
    return getattr(_here, "lane", False)


class Lanes:
    """Threads that work on items side by side, each item on one thread.

    Args:
        count: how many threads there may be; it may change at any time.
    """

    def __init__(self, count: Callable[[], int] = lambda: 1) -> None:
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 0

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
        """The results in the order of the items; the first item that fails (in that order) raises its error here.

        Autograd is on in the threads if it is on here.
        """
        if threads <= 1:
            yield from map(function, items)
            return
        gradients = torch.is_grad_enabled()

        def work(item: Item) -> Result:
            with torch.set_grad_enabled(gradients):
                return function(item)

        futures = [self._threads_for(threads).submit(work, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            _abandon(futures)

    def _threads_for(self, threads: int) -> ThreadPoolExecutor:
        if self._pool is None or self._threads != threads:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lane", initializer=_enter)
            self._threads = threads
        return self._pool


def _enter() -> None:
    _here.lane = True


def _abandon(futures: Sequence[Future[Result]]) -> None:
    """Start none that has not begun, and wait for the others: nobody shall go on behind the caller's back."""
    for future in futures:
        future.cancel()
    for future in futures:
        if not future.cancelled():
            future.exception()
