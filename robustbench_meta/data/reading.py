"""Reading the images of a listing: resized, with the digests that tell equal ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image, ImageOps

from robustbench_meta.data.array_cache import file_digest
from robustbench_meta.data.copies import Copies, image_digest, resolve_copies
from robustbench_meta.data.image_decoding import longest_side, read_image, read_image_bytes
from robustbench_meta.data.image_folder import ImageFile, Listing
from robustbench_meta.data.pictures import Pictures

USUAL_SIDE = 84
"""Of few-shot benchmarks with larger images."""
Fit = Literal["squash", "crop"]


def state_of(listing: Listing) -> list[object]:
    """What tells whether a listing's images are still the same: names, classes, sizes, times and inodes.

    Size and time of modification alone would be those of another folder whose files were made alike (by a script, or
    unpacked); an inode with its time of change is of one file, wherever its folder is moved.
    """
    stats = ((picture, picture.path.stat()) for picture in listing.pictures)
    files = [
        (
            listing.name_of(picture),
            picture.label,
            picture.part,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
            stat.st_ino,
        )
        for picture, stat in stats
    ]
    return [file_digest(Path(__file__)), PIL.__version__, files]


def read_listing(listing: Listing, size: int | None, channels: int, fit: Fit, copies: Copies) -> Pictures:
    """Decode all images into [images, channels, size, size]; equal ones are refused before that, if they are to be.

    Without a size it is the longest side of all images, at most 84: nothing is blown up beyond what there is.

    Raises:
        DataError: an image that cannot be read, or equal ones where the rule is to refuse them.
    """
    pictures, names = listing.pictures, [listing.name_of(picture) for picture in listing.pictures]

    def look(picture: ImageFile) -> tuple[np.ndarray, int]:
        data = read_image_bytes(picture.path)
        return image_digest(data), longest_side(data) if size is None else size

    with ThreadPoolExecutor() as pool:
        digests, sides = zip(*pool.map(look, pictures), strict=True)
        if copies == "refuse":
            parts, labels = [picture.part for picture in pictures], [picture.label for picture in pictures]
            resolve_copies(np.stack(digests), parts, labels, names, copies, str(listing.folder))
        side = size or max(4, min(USUAL_SIDE, max(sides)))

        def decode(picture: ImageFile) -> np.ndarray:
            return _resized(read_image_bytes(picture.path), str(picture.path), side, channels, fit)

        by_class: dict[str, list[np.ndarray]] = {}
        for picture, image in zip(pictures, pool.map(decode, pictures), strict=True):
            by_class.setdefault(picture.label, []).append(image)
    return Pictures.stack(by_class, digests, names)


def _resized(data: bytes, where: str, size: int, channels: int, fit: Fit) -> np.ndarray:
    image = read_image(data, where, "RGB" if channels == 3 else "L")
    if fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    else:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None]
