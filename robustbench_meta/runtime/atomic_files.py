"""Files that are either whole or not there, also after a power failure."""

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


def write_atomically(path: Path, write: Callable[[Path], object], *, kept: bool = True, sync: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it.

    When this returns, the file survives a crash of the machine. Without `sync` it may then be damaged, which is faster,
    and enough for what has a checksum and can be computed again. `kept`: see `cannot_write`.

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
            with contextlib.suppress(OSError):  # neither Windows nor all network file systems can
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
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
    write_atomically(path, lambda part: part.write_bytes(data), sync=sync)


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
    """Remove the temporary files of processes that were killed while they wrote."""
    with contextlib.suppress(OSError):
        for part in folder.glob(".*.part"):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink(missing_ok=True)
