"""Which cell each process of an evaluation is at, and how long it has been: for those who watch from outside."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_NOWHERE = -1


class Whereabouts:
    """Seconds that each cell has taken, and the cells under way, in memory that forked processes share.

    Args:
        portions: how many portions the work has; each is done by one process at a time.
        cells: their keys.
    """

    moved: Callable[[], None] | None = None
    """Called when this very process has come to a cell, or left it."""

    def __init__(self, portions: int, cells: Sequence[str]) -> None:
        self._cells, self._process = list(cells), os.getpid()
        self._at = _shared(portions, np.int64)
        self._at[:] = _NOWHERE
        self._since = _shared(portions, np.float64)
        self._spent = _shared(portions * max(len(cells), 1), np.float64).reshape(portions, -1)

    @contextlib.contextmanager
    def at(self, portion: int, cell: str) -> Iterator[None]:
        """Inside, this process is at that cell, on that portion. A process that dies there stays there."""
        index = self._cells.index(cell)
        self._since[portion], self._at[portion] = time.monotonic(), index
        self._tell()
        try:
            yield
        finally:
            self._spent[portion, index] += time.monotonic() - self._since[portion]
            self._at[portion] = _NOWHERE
            self._tell()

    def _tell(self) -> None:
        if self.moved is not None and os.getpid() == self._process:
            self.moved()

    def cell(self, portion: int) -> str | None:
        """The cell that is under way on a portion."""
        index = int(self._at[portion])
        return None if index == _NOWHERE else self._cells[index]

    def leave(self, portion: int) -> None:
        """Nobody is at that portion any more: its process died."""
        self._at[portion] = _NOWHERE

    def under_way(self) -> dict[str, float]:
        """The cells at which somebody is, and the seconds that each has taken on all episodes so far."""
        now, found = time.monotonic(), dict[str, float]()
        for portion in np.flatnonzero(self._at != _NOWHERE):
            index = int(self._at[portion])
            if index != _NOWHERE:  # it may have left in between
                key = self._cells[index]
                found.setdefault(key, float(self._spent[:, index].sum()))
                found[key] += now - float(self._since[portion])
        return found


def _shared(count: int, kind: type[np.generic]) -> np.ndarray:
    memory = mmap.mmap(-1, max(count, 1) * np.dtype(kind).itemsize)
    return np.frombuffer(memory, dtype=kind, count=count)
