"""The memory of a process and of all that it started, and what of the CPU others take."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def tree_mib(root: int) -> float | None:
    """What these processes have now; of pages that several share each counts its part (PSS). None where not Linux."""
    found = [_own_mib(pid) for pid in _tree(root)]
    known = [mib for mib in found if mib is not None]
    return sum(known) if known else None


class Watch:
    """Looks at a process and all that it starts every so many seconds, while the block lasts."""

    def __init__(self, root: int, seconds: float) -> None:
        self.peak_mib: float | None = None
        """The most that they had together when looked at."""
        self._root, self._seconds, self._over = root, seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        self._look()
        while not self._over.wait(self._seconds):
            self._look()

    def _look(self) -> None:
        now = tree_mib(self._root)
        if now is not None:
            self.peak_mib = max(now, self.peak_mib or 0.0)


def _tree(root: int) -> Iterator[int]:
    yield root
    for children in _PROC.glob(f"{root}/task/*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            for pid in children.read_text().split():
                yield from _tree(int(pid))


def _own_mib(pid: int) -> float | None:
    with contextlib.suppress(OSError, StopIteration):
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
    return None


class Others:
    """How much of the CPU is taken by processes that are none of ours, since this was made."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), _ticks_of_others()

    def cores(self) -> float | None:
        """In cores, on average, what a virtual machine's host takes among it; None where not Linux."""
        now = _ticks_of_others()
        if now is None or self._before is None:
            return None
        seconds = (now - self._before) / os.sysconf("SC_CLK_TCK")
        return max(0.0, seconds / (time.perf_counter() - self._started))


def _ticks_of_others() -> int | None:
    """Of all cores together, less those of this process and of all that it started."""
    try:
        user, nice, system, _, _, *rest = map(int, (_PROC / "stat").read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return user + nice + system + sum(rest) - sum(map(_ticks, _tree(os.getpid())))


def _ticks(pid: int) -> int:
    """Of a process and of its children that are over."""
    with contextlib.suppress(OSError):
        return sum(map(int, (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:15]))
    return 0
