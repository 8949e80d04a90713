"""Omniglot as it is distributed: two parts, each a zip or an extracted folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps

from robustbench_meta.data.archives import Limits, open_zip
from robustbench_meta.data.array_cache import file_digest
from robustbench_meta.data.copies import image_digest
from robustbench_meta.data.image_decoding import read_image, read_image_bytes
from robustbench_meta.data.pictures import Pictures, cached_pictures
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import is_clutter

CHARACTERS = {"images_background": 964, "images_evaluation": 659}
"""Characters by part."""
DRAWINGS = 20
SIDE = 28
_LIMITS = Limits(files=60_000, total=512 * 2**20, ratio=50)
_PLACE = re.compile(r"[^/]+/character\d\d/[^/]+\.png")


class OmniglotHalf(NamedTuple):
    """One half of Omniglot on disk."""

    name: str
    """images_background or images_evaluation."""
    path: Path
    """The zip or the folder."""


def find_parts(root: Path) -> list[OmniglotHalf]:
    """The parts that are there, in `root`, `root`/omniglot or `root`/omniglot-py (torchvision's), zips first."""
    found = []
    for name in CHARACTERS:
        places = [root / sub / file for sub in ("", "omniglot", "omniglot-py") for file in (f"{name}.zip", name)]
        there = [place for place in places if (place.is_file() if place.suffix == ".zip" else place.is_dir())]
        found += [OmniglotHalf(name, there[0])] if there else []
    return found


def need_parts(root: Path) -> list[OmniglotHalf]:
    """Both parts.

    Raises:
        DataError: one or both are missing; where they were looked for, and how to get them.
    """
    parts = find_parts(root)
    missing = [f"{name}.zip" for name in CHARACTERS if name not in {part.name for part in parts}]
    if missing:
        raise DataError(
            f"omniglot: {' and '.join(missing)} (or the extracted folder) not found in "
            f"{root}{'' if root.is_dir() else ' (no such folder)'}, nor in its sub-folders omniglot and omniglot-py: "
            "run `bench data download omniglot`, or `bench data add omniglot FOLDER`, or name it with --data-root"
        )
    return parts


def read_half(part: OmniglotHalf) -> Pictures:
    """All characters of a part, 'Alphabet/character01', as 28×28 pictures with bright ink; kept between runs.

    Raises:
        DataError: damaged, or not 964 (659) characters of 20 drawings.
    """
    if part.path.suffix == ".zip":
        state: object = file_digest(part.path)
    else:
        stats = [(path.relative_to(part.path).as_posix(), path.stat()) for path in _drawings(part.path)]
        state = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats]
    key = {"part": part.name, "state": state, "code": file_digest(Path(__file__)), "pillow": PIL.__version__}
    return cached_pictures("omniglot", key, lambda: _decode(part))


def _drawings(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if not is_clutter(path.name))


def _decode(part: OmniglotHalf) -> Pictures:
    with _open(part) as (names, read):
        drawings = sorted(name for name in names if _PLACE.fullmatch(name))
        by_class = {label: list(group) for label, group in groupby(drawings, lambda name: name.rpartition("/")[0])}
        odd = [f"{label} has {len(group)}" for label, group in by_class.items() if len(group) != DRAWINGS]
        if odd:
            raise DataError(f"{part.path}: {odd[0]} drawings; every character of Omniglot has {DRAWINGS}: get it again")
        if len(by_class) != CHARACTERS[part.name]:
            raise DataError(
                f"{part.path} holds {len(by_class)} characters; {part.name} has {CHARACTERS[part.name]} "
                "(Alphabet/character01/0001_01.png, …): get it again"
            )
        contents = {name: read(name) for name in drawings}
        return Pictures.stack(
            {label: [_rasterize(contents[n], f"{part.path}: {n}") for n in group] for label, group in by_class.items()},
            [image_digest(contents[name]) for name in drawings], drawings,
        )  # fmt: skip


def _rasterize(data: bytes, where: str) -> np.ndarray:
    """A drawing as uint8 [1, 28, 28], ink 255: resized in grey with Lanczos' filter."""
    ink = ImageOps.invert(read_image(data, where, "L", max_pixels=2**20))
    return np.asarray(ink.resize((SIDE, SIDE), Image.Resampling.LANCZOS))[None]


@contextmanager
def _open(part: OmniglotHalf) -> Iterator[tuple[Iterable[str], Callable[[str], bytes]]]:
    """The names of a part's files below its folder, and how to read one."""
    if part.path.suffix != ".zip":
        nested = part.path / part.name  # as Windows unpacks
        folder = nested if nested.is_dir() else part.path
        names = (path.relative_to(folder).as_posix() for path in _drawings(folder))
        yield names, lambda name: read_image_bytes(folder / name)
        return
    with open_zip(part.path, _LIMITS) as archive:
        # zips made inside the folder have no images_background/ in front
        inside = {str(PurePosixPath(entry.filename)).removeprefix(f"{part.name}/"): entry for entry in archive.entries}
        yield inside, lambda name: archive.read(inside[name])
