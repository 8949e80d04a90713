"""CIFAR-100 (Krizhevsky 2009) from its official archive for Python, of which CIFAR-FS and FC100 are made."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from robustbench_meta.data.array_cache import file_digest
from robustbench_meta.data.copies import image_digest
from robustbench_meta.data.pictures import Pictures, cached_pictures
from robustbench_meta.data.safe_pickle import load_pickle
from robustbench_meta.errors import DataError

ARCHIVE = "cifar-100-python.tar.gz"
_FILES = ("meta", "train", "test")
_MOST = 256 * 2**20
"""Bytes of a file; that of the training images has 155 million."""


def find_cifar100(folder: Path) -> Path | None:
    """The archive, or a folder with what is in it, in `folder`; None if neither is there."""
    places = (folder / ARCHIVE, folder / "cifar-100-python", folder)
    return next(
        (place for place in places if place.is_file() or all((place / name).is_file() for name in _FILES)), None
    )


def read_cifar100(place: Path) -> Pictures:
    """The 600 images of each of the 100 classes, of both parts.

    Raises:
        DataError: it is damaged, or something else.
    """
    files = [place] if place.is_file() else [place / name for name in _FILES]
    return cached_pictures("cifar100", {"files": file_digest(*files)}, lambda: _decoded(place))


def _decoded(place: Path) -> Pictures:
    content = {name: _dict(data, f"{place}: {name}") for name, data in _contents(place).items()}
    try:
        classes = [str(name) for name in content["meta"]["fine_label_names"]]
        by_class: dict[str, list[np.ndarray]] = {name: [] for name in sorted(classes)}
        names: dict[str, list[str]] = {name: [] for name in by_class}
        for part in ("train", "test"):
            images = np.asarray(content[part]["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            for image, label, name in zip(
                images, content[part]["fine_labels"], content[part]["filenames"], strict=True
            ):
                by_class[classes[label]].append(image)
                names[classes[label]].append(f"{classes[label]}/{name}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{place} is not CIFAR-100 for Python ({type(error).__name__}: {error})") from error
    digests = [image_digest(image.tobytes()) for group in by_class.values() for image in group]
    return Pictures.stack(by_class, digests, [name for group in names.values() for name in group])


def _contents(place: Path) -> dict[str, bytes]:
    try:
        if place.is_dir():
            return {name: (place / name).read_bytes() for name in _FILES}
        found: dict[str, bytes] = {}
        with tarfile.open(place) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                file = tar.extractfile(member) if member.isreg() and member.size <= _MOST and name in _FILES else None
                if file is not None:
                    found[name] = file.read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{place} cannot be read ({error}): get it again") from error
    if missing := [name for name in _FILES if name not in found]:
        raise DataError(f"{place} has no file {', '.join(missing)}; expected the archive {ARCHIVE}")
    return found


def _dict(data: bytes, where: str) -> dict[str, Any]:
    content = load_pickle(io.BytesIO(data), where)
    if not isinstance(content, dict):
        raise DataError(f"{where} holds a {type(content).__name__}; expected a dict")
    return content
