"""Where data sets lie."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

ENVIRONMENT = "ROBUSTBENCH_META_DATA"


def data_root(explicit: Path | None) -> Path:
    """The folder that holds data sets: --data-root, else $ROBUSTBENCH_META_DATA, else the user's data folder.

    It need not exist: downloading and adding make it.
    """
    given = explicit if explicit is not None else os.environ.get(ENVIRONMENT)
    return Path(given).expanduser() if given else Path(platformdirs.user_data_dir("robustbench_meta"))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
