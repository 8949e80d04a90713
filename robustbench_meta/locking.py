"""One process at a time makes a file that several may want; the others wait for it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import filelock

_log = logging.getLogger(__name__)
PATIENCE_SECONDS = 1.0
"""How long a process waits before it says so."""


@contextlib.contextmanager
def alone_at(path: Path, who: str) -> Iterator[None]:
    """Inside, no other process is inside for the same path.

    The lock is the system's, on a hidden file beside `path` that stays there; it is given back however its holder
    ends. On file systems that have none, nobody waits, and a warning says so once.

    Args:
        path: the file to be made or read.
        who: wants it, in the message that tells of a long wait.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    locked = _lock(lock, path, who)
    try:
        yield
    finally:
        if locked:
            lock.release()


def _lock(lock: filelock.BaseFileLock, path: Path, who: str) -> bool:
    try:
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=PATIENCE_SECONDS)
            return True
        _log.warning("%s waits for another process, which is making the same file: %s", who, path)
        lock.acquire(poll_interval=0.2)
        return True
    except (OSError, NotImplementedError) as error:
        _tell_unlocked(path.parent, getattr(error, "strerror", None) or str(error))
        return False


@cache
def _tell_unlocked(folder: Path, reason: str) -> None:
    _log.warning("%s: files cannot be locked there (%s); two processes may do the same work", folder, reason)
