"""Reading the images of a listing: resized, and none of them twice."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image, ImageOps

from robustbench_meta.data.cache import digest_of
from robustbench_meta.data.folders import Listing, Picture
from robustbench_meta.data.images import read_bytes, read_image
from robustbench_meta.data.pictures import Pictures
from robustbench_meta.errors import DataError

logger = logging.getLogger(__name__)

Fit = Literal["squash", "crop"]


def state_of(listing: Listing) -> list[object]:
    """What tells whether a listing's images are still the same: names, classes, sizes, times and inodes.

    Size and time of modification alone would be those of another folder whose files were made alike (by a script, or
    unpacked); an inode with its time of change is of one file, wherever its folder is moved.
    """
    stats = ((picture, picture.path.stat()) for picture in listing.pictures)
    files = [
        (
            picture.path.relative_to(listing.folder).as_posix(),
            picture.label,
            picture.part,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
            stat.st_ino,
        )
        for picture, stat in stats
    ]
    return [digest_of(Path(__file__)), PIL.__version__, files]


def read_listing(listing: Listing, size: int, channels: int, fit: Fit) -> Pictures:
    """Decode all images into [images, channels, size, size].

    An image that is byte for byte another one of its class is left out, with a warning: else it could be
    support and query of one task.

    Raises:
        DataError: an image that cannot be read, or the same one under two classes (and so possibly in two splits).
    """

    def read(picture: Picture) -> tuple[bytes, np.ndarray]:
        data = read_bytes(picture.path)
        return hashlib.sha256(data).digest(), _resized(data, str(picture.path), size, channels, fit)

    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(read, listing.pictures))
    by_class: dict[str, list[np.ndarray]] = {}
    for i in _without_twins(listing.pictures, (digest for digest, _ in contents)):
        by_class.setdefault(listing.pictures[i].label, []).append(contents[i][1])
    return Pictures.stack(by_class)


def _without_twins(pictures: list[Picture], digests: Iterable[bytes]) -> list[int]:
    """The places of pictures that are not copies of an earlier one."""
    first: dict[bytes, int] = {}
    copies = []
    for i, digest in enumerate(digests):
        original = pictures[first.setdefault(digest, i)]
        if original.label != pictures[i].label:
            raise DataError(
                f"{original.path} ({original.part}, class '{original.label}') and {pictures[i].path} "
                f"({pictures[i].part}, class '{pictures[i].label}') are the same image: remove one or both"
            )
        if first[digest] != i:
            copies.append(f"{pictures[i].path} = {original.path}")
    if copies:
        logger.warning(
            "%d copies of images of the same class are left out: %s%s", len(copies), copies[0], " …"[: len(copies)]
        )
    return sorted(first.values())


def _resized(data: bytes, where: str, size: int, channels: int, fit: Fit) -> np.ndarray:
    image = read_image(data, where, "RGB" if channels == 3 else "L")
    if fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    else:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None]
