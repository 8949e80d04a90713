"""Zip archives from strangers: checked whole before anything is read or written."""

from __future__ import annotations

import ntpath
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from robustbench_meta.errors import DataError


class Limits(NamedTuple):
    """What an archive may hold before it is taken for a bomb."""

    files: int = 2_000_000
    total: int = 64 * 2**30
    """Bytes, unpacked."""
    ratio: float = 200.0
    """Unpacked to packed size, over the archive; counted from 1 MiB unpacked."""


@contextmanager
def open_zip(path: Path, limits: Limits | None = None) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Open an archive and its files (folders, hidden files and macOS's extras left out), checked.

    Raises:
        DataError: no zip, truncated, an entry that would leave the folder, a link, encrypted, or a bomb;
            also when an entry proves damaged (CRC) inside the `with` block.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_size(path, entries, limits or Limits())
            for entry in entries:
                _check_entry(path, entry)
            yield archive, [entry for entry in entries if not _is_extra(entry.filename)]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{path} {_what_is_it(path, error)}; download or copy it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def extract(path: Path, target: Path, limits: Limits | None = None) -> None:
    """Unpack an archive into the folder `target`, checked as in `open_zip`."""
    with open_zip(path, limits) as (archive, entries):
        for entry in entries:
            place = target.joinpath(*PurePosixPath(entry.filename).parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, place.open("xb") as file:
                shutil.copyfileobj(source, file, 2**20)


def _check_size(path: Path, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    total = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if len(entries) > limits.files:
        raise DataError(f"{path} holds {len(entries)} files; at most {limits.files} are expected: not unpacked")
    if total > limits.total:
        raise DataError(f"{path} would unpack to {total} bytes; at most {limits.total} are expected: not unpacked")
    if total > 2**20 and total > limits.ratio * max(packed, 1):
        raise DataError(
            f"{path} would unpack to {total / max(packed, 1):.0f} times its size; at most {limits.ratio:.0f} times is "
            "expected of images: not unpacked"
        )
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} holds '{twice}' twice: not unpacked")


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if name.startswith("/") or "\\" in name or ntpath.splitdrive(name)[0] or ".." in PurePosixPath(name).parts:
        raise DataError(
            f"{path} holds '{name}', which leads out of its folder: not unpacked; do not trust this archive"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{path} holds the link '{name}'; only files are expected: not unpacked")
    if entry.flag_bits & 1:
        raise DataError(f"{path} is encrypted ('{name}'): unpack it yourself and give the folder")


def _is_extra(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _what_is_it(path: Path, error: BaseException) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if looks_like_html(head):
        return "is a web page, not a zip (a log-in or error page, saved under the archive's name)"
    if not head:
        return "is empty, not a zip"
    if head.startswith(b"PK"):
        return f"is a damaged or truncated zip of {path.stat().st_size} bytes ({error})"
    return f"is not a zip ({error})"


def looks_like_html(head: bytes) -> bool:
    """Whether a file that begins with `head` is a web page."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))
