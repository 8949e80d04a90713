"""Zip and tar archives from strangers: checked whole before anything is read or written."""

from __future__ import annotations

import contextlib
import lzma
import ntpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import is_clutter

_UNFIT = re.compile(r"[:]|[ .]$|^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)
"""What writes elsewhere than into a file of that name on some system: streams, devices, what is cut off."""


class Limits(NamedTuple):
    """What an archive may hold before it is taken for a bomb."""

    files: int = 2_000_000
    total: int = 64 * 2**30
    """Bytes, unpacked."""
    ratio: float = 200.0
    """Unpacked to packed size, over the archive; counted from 1 MiB unpacked."""


class Archive:
    """An open archive whose entries have been checked."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
        self._path, self._archive = path, archive
        self.entries = entries
        """Its files, without hidden ones and macOS's extras."""

    def read(self, entry: zipfile.ZipInfo) -> bytes:
        """The content of a file.

        Raises:
            DataError: it is damaged.
        """
        with _told(self._path):
            return self._archive.read(entry)

    def copy(self, entry: zipfile.ZipInfo, place: Path) -> None:
        """Write a file to a place where there is none.

        Raises:
            DataError: it is damaged, there is one, or it cannot be written.
        """
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as file, _told(self._path, "unpacked"), self._archive.open(entry) as source:
                shutil.copyfileobj(source, file, 2**20)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(
                f"{self._path} holds '{entry.filename}' where another of its entries is already: not unpacked further"
            ) from error
        except OSError as error:
            raise DataError(f"cannot write {place}: {error.strerror or error}") from error


@contextmanager
def open_zip(path: Path, limits: Limits | None = None) -> Iterator[Archive]:
    """Open an archive, checked as a whole.

    Raises:
        DataError: no zip, truncated, an entry that would leave the folder or that some system could not write, a link,
            encrypted, packed in an unusual way, or a bomb.
    """
    with ExitStack() as stack:
        with _told(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        _check_size(path, entries, limits or Limits())
        for entry in archive.infolist():
            if "\\" in entry.filename and "/" not in entry.filename:  # by Windows PowerShell 5
                entry.filename = entry.filename.replace("\\", "/")
        entries = [entry for entry in entries if not entry.is_dir()]
        for entry in archive.infolist():
            if not _is_extra(entry.filename) or ".." in PurePosixPath(entry.filename).parts:
                _check_entry(path, entry)
        _check_names(path, [entry.filename for entry in entries])
        yield Archive(path, archive, [entry for entry in entries if not _is_extra(entry.filename)])


def extract(path: Path, target: Path, limits: Limits | None = None) -> None:
    """Unpack a zip or tar into the folder `target`, checked as in `open_zip`."""
    if path.is_file() and not zipfile.is_zipfile(path) and is_tar(path):
        _extract_tar(path, target, limits or Limits())
        return
    with open_zip(path, limits) as archive:
        for entry in archive.entries:
            archive.copy(entry, target.joinpath(*PurePosixPath(entry.filename).parts))


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, packed or not."""
    with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError):
        return tarfile.is_tarfile(path)
    return False


def _extract_tar(path: Path, target: Path, limits: Limits) -> None:
    """Unpack a tar, packed or not: its heads are checked first, and no more is unpacked than they promise."""
    with _told(path, "unpacked"), tarfile.open(path) as archive:
        members, total = [], 0
        for member in archive:
            members.append(member)
            total += member.size
            if len(members) > limits.files or total > limits.total:
                raise DataError(f"{path} would unpack to more than {limits.total} bytes or {limits.files} files")
            if total > 2**20 and total > limits.ratio * path.stat().st_size:
                raise DataError(f"{path} would unpack to more than {limits.ratio:.0f} times its size: not unpacked")
        members = [one for one in members if not _is_extra(one.name) or ".." in PurePosixPath(one.name).parts]
        for member in members:
            _check_name(path, member.name)
            if not (member.isreg() or member.isdir()):
                raise DataError(f"{path} holds '{member.name}', which is no file or folder: not unpacked")
        files = [member for member in members if member.isreg()]
        _check_names(path, [member.name for member in files])
        for member in files:
            place = target.joinpath(*PurePosixPath(member.name).parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            with place.open("xb") as file:
                shutil.copyfileobj(content, file, 2**20)  # type: ignore[arg-type]  # a regular file has one


@contextmanager
def _told(path: Path, done: str = "read") -> Iterator[None]:
    """What the zip module raises on damage, and it is much, as one DataError."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"{path} cannot be {done}: {error.strerror or error}") from error
        raise DataError(f"{path} {_what_is_it(path, error)}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, ArithmeticError,
            LookupError, RuntimeError, EOFError, MemoryError, ValueError) as error:  # fmt: skip  # by what is damaged
        raise DataError(f"{path} {_what_is_it(path, error)}") from error


def _check_size(path: Path, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    total = sum(entry.file_size for entry in entries)
    packed = min(sum(entry.compress_size for entry in entries), path.stat().st_size)
    if len(entries) > limits.files:
        raise DataError(f"{path} holds {len(entries)} files; at most {limits.files} are expected: not unpacked")
    if total > limits.total:
        raise DataError(f"{path} would unpack to {total} bytes; at most {limits.total} are expected: not unpacked")
    if total > 2**20 and total > limits.ratio * max(packed, 1):
        raise DataError(
            f"{path} would unpack to {total / max(packed, 1):.0f} times its size; at most {limits.ratio:.0f} times is "
            "expected of images: not unpacked"
        )


def _check_names(path: Path, names: list[str]) -> None:
    """Each once, whether or not the file system tells upper from lower case."""
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path} holds '{twice}' twice: not unpacked")
    spelt: dict[str, str] = {}
    for name in names:
        for place in (name, *map(str, PurePosixPath(name).parents)):
            other = spelt.setdefault(place.casefold(), place)
            if other != place:
                raise DataError(
                    f"{path} holds both '{other}' and '{place}', which many systems take for one: not unpacked; "
                    "unpack it yourself, rename one, and give the folder"
                )


def _check_name(path: Path, name: str) -> None:
    if not name.isprintable():
        raise DataError(f"{path} holds the name {name[:200]!r}; expected characters that can be printed: not unpacked")
    if name.startswith("/") or "\\" in name or ntpath.splitdrive(name)[0] or ".." in PurePosixPath(name).parts:
        raise DataError(
            f"{path} holds '{name}', which leads out of its folder: not unpacked; do not trust this archive"
        )
    bad = next((part for part in PurePosixPath(name).parts if _UNFIT.search(part)), None)
    if bad is not None:
        raise DataError(f"{path} holds {name!r}; not every system can have a file named {bad!r}: not unpacked")


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    _check_name(path, name)
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{path} holds the link '{name}'; only files are expected: not unpacked")
    if entry.flag_bits & 1:
        raise DataError(f"{path} is encrypted ('{name}'): unpack it yourself and give the folder")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{path} is packed by method {entry.compress_type} ('{name}'); expected deflate (8): unpack it yourself "
            "and give the folder"
        )


def _is_extra(name: str) -> bool:
    return any(is_clutter(part) for part in PurePosixPath(name).parts)


def _what_is_it(path: Path, error: BaseException) -> str:
    again = "; download or copy it again"
    with path.open("rb") as file:
        head = file.read(512)
    if looks_like_html(head):
        return "is a web page, not a zip (a log-in or error page, saved under the archive's name)" + again
    if not head:
        return "is empty, not a zip" + again
    if head.startswith(b"PK"):
        return f"is a damaged or truncated zip of {path.stat().st_size} bytes ({error})" + again
    if path.suffix.lower() in (".pkl", ".pickle", ".p", ".npz", ".gz", ".h5", ".hdf5", ".csv"):
        return f"is one file of a data set: give the folder that holds all of them, {path.absolute().parent}"
    return "is not a zip, a tar or a folder" + again


def looks_like_html(head: bytes) -> bool:
    """Whether a file that begins with `head` is a web page."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))
