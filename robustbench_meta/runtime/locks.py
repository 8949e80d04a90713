"""Who works on what, among several runs on one results folder: locks that end with their holder."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import filelock

from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.runtime.atomic_files import FULL, cannot_write

_log = logging.getLogger(__name__)
LEASE = "ROBUSTBENCH_META_LOCKS"
"""The environment variable that, set to `lease`, has locks be leases also where the system has its own."""
LEASE_SECONDS = 30.0
"""How long nobody has heard of the holder of a lease before it is taken for dead; it tells thrice as often."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


def training_lock(key: str) -> str:
    """The name of the lock of a training."""
    return f"train-{key}"


class Locks:
    """Locks by name, in a folder; the same for all processes that use the folder, on any machine.

    They are the system's (flock): however its holder ends, the lock is free. On file systems without these a lock is
    a lease: a file that its holder touches every ten seconds, and that another may take when it was not touched for
    thirty, by the clock of who waits.

    Raises:
        BenchError: the environment asks for another kind of lock than there is.
    """

    def __init__(self, folder: Path) -> None:
        if os.environ.get(LEASE, "") not in {"", "lease"}:
            raise BenchError(f"{LEASE}={os.environ[LEASE]}: expected lease, or nothing for the system's own locks")
        self._folder = folder
        self._held: dict[str, filelock.BaseFileLock] = {}
        self._tried: dict[str, filelock.BaseFileLock] = {}
        """Of leases: what was seen of their holder so far."""

    def take(self, name: str) -> bool:
        """Take a lock if nobody has it, this object included.

        Raises:
            StorageError: the lock's file cannot be written.
        """
        if name in self._held:
            return False
        path = self._folder / f"{name}.lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = self._tried.pop(name) if name in self._tried else self._lock(path)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                self._tried[name] = lock
                return False
        except OSError as error:
            raise cannot_write(path, error) from error
        except filelock.LeaseSettingsMismatch as error:
            raise StorageError(
                f"another version of this program is at work in {self._folder.parent}: {error}"
            ) from error
        self._held[name] = lock
        return True

    def give_back(self, name: str) -> None:
        """Release a lock."""
        with contextlib.suppress(OSError):  # it ends with this process at the latest
            self._held.pop(name).release()

    def give_back_all(self) -> None:
        """Release all locks."""
        for name in list(self._held):
            self.give_back(name)

    def after_fork(self) -> None:
        """This process is a copy: its locks are those of the other, which must not be released here."""
        self._inherited = self._held
        self._held, self._tried = {}, {}

    def forget(self, start: str) -> None:
        """Remove the files of all locks whose names begin so, which nobody will need."""
        for path in self._folder.glob(f"{start}*"):
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def tried(self, name: str) -> Iterator[bool]:
        """Inside, whether the lock could be taken at once."""
        taken = self.take(name)
        try:
            yield taken
        finally:
            if taken:
                self.give_back(name)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Inside, no other process is inside for the same name; wait for it."""
        while not self.take(name):
            time.sleep(0.05)
        try:
            yield
        finally:
            self.give_back(name)

    def _lock(self, path: Path) -> filelock.BaseFileLock:
        if _hard_locks(self._folder):
            return filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
        return filelock.SoftFileLease(
            path.with_suffix(".lease"), lease_duration=LEASE_SECONDS, heartbeat_interval=LEASE_SECONDS / 3, timeout=0,
            thread_local=False,
        )  # fmt: skip


@cache
def _hard_locks(folder: Path) -> bool:
    """Whether the file system has locks of its own."""
    if os.environ.get(LEASE) == "lease":
        return False
    handle, path = tempfile.mkstemp(prefix=".probe-", suffix=".lock", dir=folder)
    os.close(handle)
    try:
        with filelock.FileLock(path, timeout=0, fallback_to_soft=False):
            return True
    except (OSError, NotImplementedError) as error:
        number = getattr(error, "errno", None)
        if number in FULL or (number is not None and number not in _NO_LOCKS):
            raise
        _log.warning(
            "%s: its file system has no locks (%s): several runs in it tell by leases who does what", folder.parent,
            getattr(error, "strerror", None) or error,
        )  # fmt: skip
        return False
    finally:
        Path(path).unlink(missing_ok=True)
