"""Untrusted zip and tar archives: checked as a whole before anything is read or written."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import is_clutter

_UNPORTABLE = re.compile(r"[:]|[ .]$|^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)
"""Names that some system writes elsewhere than into a file of that name: streams, devices, what it cuts off."""


class Limits(NamedTuple):
    """The most that an archive may hold; more is a bomb."""

    files: int = 2_000_000
    total: int = 64 * 2**30
    """Bytes, unpacked."""
    ratio: float = 200.0
    """Unpacked to packed size, over the archive; counted from 1 MiB unpacked."""

    def check(self, path: Path, files: int, total: int, packed: int) -> None:
        """Raise DataError if an archive with this content exceeds a limit."""
        if files > self.files:
            raise DataError(f"{path} holds {files} files; at most {self.files} are expected: not unpacked")
        if total > self.total:
            raise DataError(f"{path} would unpack to {total} bytes; at most {self.total} are expected: not unpacked")
        if total > 2**20 and total > self.ratio * max(packed, 1):
            raise DataError(
                f"{path} would unpack to {total / max(packed, 1):.0f} times its size; at most {self.ratio:.0f} times "
                "is expected of images: not unpacked"
            )


class ZipContents(NamedTuple):
    """An open zip whose entries have been checked."""

    path: Path
    archive: zipfile.ZipFile
    entries: list[zipfile.ZipInfo]
    """Its files, without hidden ones and what systems leave behind."""

    def read(self, entry: zipfile.ZipInfo) -> bytes:
        """The content of a file; DataError if it is damaged."""
        with _readable(self.path):
            return self.archive.read(entry)


@contextmanager
def open_zip(path: Path, limits: Limits | None = None) -> Iterator[ZipContents]:
    """Open a zip, checked as a whole.

    Raises:
        DataError: no zip, truncated, an entry that would leave the folder or that some system could not write, a link,
            encrypted, packed in an unusual way, or a bomb.
    """
    with ExitStack() as stack:
        with _readable(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        packed = min(sum(entry.compress_size for entry in entries), path.stat().st_size)
        (limits or Limits()).check(path, len(entries), sum(entry.file_size for entry in entries), packed)
        for entry in archive.infolist():
            if "\\" in entry.filename and "/" not in entry.filename:  # by Windows PowerShell 5
                entry.filename = entry.filename.replace("\\", "/")
            if not _is_extra(entry.filename):
                _check_name(path, entry.filename)
                _check_entry(path, entry)
        entries = [entry for entry in entries if not entry.is_dir()]
        _check_distinct(path, [entry.filename for entry in entries])
        yield ZipContents(path, archive, [entry for entry in entries if not _is_extra(entry.filename)])


def extract(path: Path, target: Path, limits: Limits | None = None) -> None:
    """Unpack a zip or tar into the folder `target`, checked as in `open_zip`; no file is overwritten."""
    if path.is_file() and not zipfile.is_zipfile(path) and is_tar(path):
        with _readable(path, "unpacked"), tarfile.open(path) as tar:
            for member in _checked_members(path, tar, limits or Limits()):
                _copy(path, member.name, lambda member=member: tar.extractfile(member), target)  # type: ignore[misc]  # a default argument binds it
        return
    with open_zip(path, limits) as contents:
        for entry in contents.entries:
            _copy(path, entry.filename, lambda entry=entry: contents.archive.open(entry), target)  # type: ignore[misc]  # as above


def is_tar(path: Path) -> bool:
    """Whether a file is a tar, packed or not."""
    with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError):
        return tarfile.is_tarfile(path)
    return False


def looks_like_html(head: bytes) -> bool:
    """Whether a file that begins with `head` is a web page."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def _checked_members(path: Path, tar: tarfile.TarFile, limits: Limits) -> list[tarfile.TarInfo]:
    """The files of a tar, whose headers are checked as they are read: it may be packed."""
    members, total = [], 0
    for member in tar:
        members.append(member)
        total += member.size
        limits.check(path, len(members), total, path.stat().st_size)
    members = [member for member in members if not _is_extra(member.name)]
    for member in members:
        _check_name(path, member.name)
        if not (member.isreg() or member.isdir()):
            raise DataError(f"{path} holds '{member.name}', which is no file or folder: not unpacked")
    files = [member for member in members if member.isreg()]
    _check_distinct(path, [member.name for member in files])
    return files


def _copy(path: Path, name: str, opened: Callable[[], IO[bytes] | Any], target: Path) -> None:
    """Write a file of an archive below `target`, where there must be none."""
    place = target.joinpath(*PurePosixPath(name).parts)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file, _readable(path, "unpacked"), opened() as source:
            shutil.copyfileobj(source, file, 2**20)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(
            f"{path} holds '{name}' where another of its entries is already: not unpacked further"
        ) from error
    except OSError as error:
        raise DataError(f"cannot write {place}: {error.strerror or error}") from error


@contextmanager
def _readable(path: Path, action: str = "read") -> Iterator[None]:
    """Turn the many exceptions that a damaged archive raises into DataError."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"{path} cannot be {action}: {error.strerror or error}") from error
        raise DataError(f"{path} {_what_is_it(path, error)}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, ArithmeticError,
            LookupError, RuntimeError, EOFError, MemoryError, ValueError) as error:  # fmt: skip  # by what is damaged
        raise DataError(f"{path} {_what_is_it(path, error)}") from error


def _is_extra(name: str) -> bool:
    """Whether a file is clutter, which is not unpacked; a name that climbs is none, so that it is refused."""
    parts = PurePosixPath(name).parts
    return any(map(is_clutter, parts)) and ".." not in parts


def _check_distinct(path: Path, names: Sequence[str]) -> None:
    """Raise unless each name occurs once, also where a file system does not tell upper from lower case."""
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path} holds '{twice}' twice: not unpacked")
    spelled: dict[str, str] = {}
    for name in names:
        for place in (name, *map(str, PurePosixPath(name).parents)):
            other = spelled.setdefault(place.casefold(), place)
            if other != place:
                raise DataError(
                    f"{path} holds both '{other}' and '{place}', which many systems take for one: not unpacked; "
                    "unpack it yourself, rename one, and give the folder"
                )


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not name.isprintable():
        raise DataError(f"{path} holds the name {name[:200]!r}; expected characters that can be printed: not unpacked")
    if name.startswith("/") or "\\" in name or ntpath.splitdrive(name)[0] or ".." in parts:
        raise DataError(
            f"{path} holds '{name}', which leads out of its folder: not unpacked; do not trust this archive"
        )
    bad = next((part for part in parts if _UNPORTABLE.search(part)), None)
    if bad is not None:
        raise DataError(f"{path} holds {name!r}; not every system can have a file named {bad!r}: not unpacked")


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{path} holds the link '{name}'; only files are expected: not unpacked")
    if entry.flag_bits & 1:
        raise DataError(f"{path} is encrypted ('{name}'): unpack it yourself and give the folder")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{path} is packed by method {entry.compress_type} ('{name}'); expected deflate (8): unpack it yourself "
            "and give the folder"
        )


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
