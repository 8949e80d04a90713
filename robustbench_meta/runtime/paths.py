"""Where data sets lie."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from robustbench_meta.errors import DataError

ENVIRONMENT = "ROBUSTBENCH_META_DATA"


def data_root(explicit: Path | None) -> Path:
    """The folder that holds data sets: --data-root, else $ROBUSTBENCH_META_DATA, else the user's data folder.

    It need not exist: downloading and adding make it.

    Raises:
        DataError: it begins with the home folder of somebody who is not known here, or there is no home folder at all.
    """
    path = explicit if explicit is not None else os.environ.get(ENVIRONMENT)
    return expanded(Path(path)) if path else of_user(platformdirs.user_data_dir, ENVIRONMENT)


def of_user(folder: Callable[[str], str], variable: str) -> Path:
    """A folder of the user's own.

    Raises:
        DataError: the user has no home folder: HOME is not set, and the list of users does not have them.
    """
    try:
        return Path(folder("robustbench_meta"))
    except RuntimeError as error:
        raise DataError(f"this system knows no home folder of yours; set HOME, or {variable} to a folder") from error


def expanded(path: Path) -> Path:
    """The path with `~` and `~name` replaced by the home folder.

    Raises:
        DataError: nobody of that name is known here.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: this system knows no home folder '{path.parts[0]}'; give the whole path") from error


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


_CLUTTER = frozenset(("__macosx", "icon\r", "thumbs.db", "desktop.ini"))


def is_clutter(name: str) -> bool:
    """Whether a file or folder is hidden, or of a system's own: never part of a data set, wherever it lies."""
    return name.startswith(".") or name.casefold() in _CLUTTER


def contents(folder: Path) -> list[Path]:
    """What lies in a folder, in order, without clutter.

    Raises:
        DataError: a link leads nowhere.
    """
    paths = [path for path in sorted(folder.iterdir()) if not is_clutter(path.name)]
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to {os.readlink(path)}, which is not there: restore or remove it")
    return paths


def find_folder(plugin: str, path: str, root: Path | None) -> Path:
    """The folder of the option `path`: an absolute one, one below the data root, or one from here.

    Raises:
        DataError: there is none, or both of the latter.
    """
    if not path:
        raise DataError(f"{plugin}: which folder? Give its option path, as in --dataset {plugin}:path=my-images")
    given = expanded(Path(path))
    places = [given] if given.is_absolute() else [data_root(root) / given, given]
    there = {place.resolve(): place for place in places if place.is_dir()}
    if len(there) > 1 and path.startswith("."):
        return given
    if len(there) > 1:
        raise DataError(
            f"{plugin}: path={path} is both {data_root(root) / given} and {given.absolute()}: give the absolute path"
        )
    if not there:
        raise DataError(
            f"{plugin}: there is no folder {', nor '.join(str(place.absolute()) for place in places)}; "
            "`bench data list` shows what is there"
        )
    return next(iter(there.values()))


def spelling(folder: Path, root: Path | None) -> str:
    """The one way to write a folder: below the data root if it lies there, else from the top, without links.

    A link stays where what it leads to has a name that is not UTF-8, which records cannot hold.
    """
    place = folder.resolve()
    try:
        str(place).encode()
    except UnicodeEncodeError:
        place = folder.absolute()
    with contextlib.suppress(DataError, ValueError):
        return place.relative_to(data_root(root).resolve()).as_posix()
    return str(place)
