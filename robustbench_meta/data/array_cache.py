"""Arrays that are slow to make, kept between runs; losing or damaging them costs time only."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import platformdirs

from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import expanded, of_user

logger = logging.getLogger(__name__)

ENVIRONMENT = "ROBUSTBENCH_META_CACHE"
Arrays = dict[str, np.ndarray]


def cache_dir() -> Path:
    """Where caches lie: $ROBUSTBENCH_META_CACHE, else the user's cache folder.

    Raises:
        DataError: somebody's home folder is not known here.
    """
    given = os.environ.get(ENVIRONMENT)
    return expanded(Path(given)) if given else of_user(platformdirs.user_cache_dir, ENVIRONMENT)


def cache_file(name: str, key: Mapping[str, object]) -> Path:
    """The file for `name` made under the circumstances `key`: any change of them is another file."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:20]
    return cache_dir() / f"{name}-{digest}.npz"


def cached(name: str, key: Mapping[str, object], make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` returns, from the cache if they are there and whole.

    An unwritable or damaged cache is logged and otherwise without effect. Nothing is ever unpickled.
    """
    try:
        path = cache_file(name, key)
    except DataError as error:
        logger.warning("nothing is kept for the next run: %s", error)
        return make()
    arrays = _read(path)
    if arrays is None:
        arrays = make()
        _write(path, arrays)
    return arrays


def file_digest(*files: Path) -> str:
    """A digest of the contents of files, in this order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:20]


def _read(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("the cache %s is damaged (%s): made anew", path, error)
        return None


def _write(path: Path, arrays: Arrays) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
        temporary.replace(path)
    except OSError as error:
        logger.warning("the cache %s cannot be written (%s): the next run makes it anew", path, error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
