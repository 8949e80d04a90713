"""Where data sets lie."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from robustbench_meta.errors import DataError

ENVIRONMENT = "ROBUSTBENCH_META_DATA"


def data_root(explicit: Path | None) -> Path:
    """The folder that holds data sets: --data-root, else $ROBUSTBENCH_META_DATA, else the user's data folder.

    It need not exist: downloading and adding make it.

    Raises:
        DataError: it begins with the home folder of somebody who is not known here.
    """
    given = explicit if explicit is not None else os.environ.get(ENVIRONMENT)
    return expanded(Path(given)) if given else Path(platformdirs.user_data_dir("robustbench_meta"))


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
