"""Arrays that are slow to make, cached between runs; losing or damaging them costs time only."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import platformdirs

from robustbench_meta.errors import DataError, StorageError
from robustbench_meta.runtime.atomic_files import write_atomically
from robustbench_meta.runtime.paths import expanded, of_user

logger = logging.getLogger(__name__)

ENVIRONMENT = "ROBUSTBENCH_META_CACHE"
Arrays = dict[str, np.ndarray]


def cache_dir() -> Path:
    """The folder of caches: $ROBUSTBENCH_META_CACHE, else the user's cache folder.

    Raises:
        DataError: somebody's home folder is not known here.
    """
    given = os.environ.get(ENVIRONMENT)
    return expanded(Path(given)) if given else of_user(platformdirs.user_cache_dir, ENVIRONMENT)


def cached(name: str, key: Mapping[str, object], make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` returns, from the cache if they are there and intact, under everything they depend on.

    An unwritable or damaged cache is logged and otherwise without effect. Nothing is ever unpickled.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:20]
    try:
        path = cache_dir() / f"{name}-{digest}.npz"
    except DataError as error:
        logger.warning("nothing is kept for the next run: %s", error)
        return make()
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("the cache %s is damaged (%s): made anew", path, error)
    arrays = make()

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options

    try:
        write_atomically(path, write, sync=False)
    except StorageError as error:
        logger.warning("the cache %s cannot be written (%s): the next run makes it anew", path, error.__cause__)
    return arrays


def file_digest(*files: Path) -> str:
    """A digest of the contents of files, in this order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:20]
