"""Files that are either whole or not there, also after the power went."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from robustbench_meta.errors import StorageError

_STALE_SECONDS = 3600.0
"""The age from which on a temporary file is taken to be that of a process that was killed."""
FULL = {errno.ENOSPC, errno.EDQUOT}
"""What the system says when there is no room."""


def write_atomically(path: Path, write: Callable[[Path], None], *, kept: bool = True, sync: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    When this returns, the file survives a crash of the machine, as far as its disk keeps its word. Without `sync` it
    may then be damaged, which costs less where it has a checksum and can be computed again.

    Args:
        path: of the file.
        write: given the temporary file's path.
        kept: see `cannot_write`.
        sync: whether to wait for the disk.

    Raises:
        StorageError: the folder cannot be written, or the disk is full; `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            write(part)
            if sync:
                with part.open("rb") as file:
                    os.fsync(file.fileno())
            part.chmod(0o644)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error, kept=kept) from error


def cannot_write(path: Path, error: OSError, *, kept: bool = True) -> StorageError:
    """The message for a file that cannot be written; `kept`: it is one of a run, whose finished cells are there."""
    what = "free some space" if error.errno in FULL else "see to it that this folder can be written, or choose another"
    return StorageError(
        f"cannot write {path}: {error.strerror or error}; {what}, then rerun the same command"
        + (" to resume" if kept else "")
    )


def write_text(path: Path, text: str) -> None:
    """Write text, in UTF-8, with a line's end."""
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file atomically; see `write_atomically`."""

    def fill(part: Path) -> None:
        part.write_bytes(data)

    write_atomically(path, fill, sync=sync)


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None if there is none.

    Raises:
        StorageError: it is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files that processes left which were killed while they wrote."""
    with contextlib.suppress(OSError):
        for part in folder.glob(".*.part"):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Write down that a name in the folder has changed, where the system can."""
    with contextlib.suppress(OSError):  # neither Windows nor all network file systems can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
