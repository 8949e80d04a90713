"""The memory of a process and of all that it started, together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_PROC = Path("/proc")


def tree_mib(root: int) -> float | None:
    """What these processes have now; of pages that several share each counts its part (PSS). None where not Linux."""
    found = [_own_mib(pid) for pid in _tree(root)]
    known = [mib for mib in found if mib is not None]
    return sum(known) if known else None


class Watch:
    """Looks at a process and all that it starts again and again, while the block lasts.

    Args:
        root: the process.
        seconds: between two looks; a look takes some milliseconds of one core.
    """

    def __init__(self, root: int, seconds: float) -> None:
        self.peak_mib: float | None = None
        """The most that they had together when looked at."""
        self._root, self._seconds, self._over = root, seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
