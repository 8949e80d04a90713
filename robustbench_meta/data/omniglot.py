"""Reading Omniglot as it is distributed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
import PIL
from PIL import Image, ImageOps

from robustbench_meta.data.archives import Limits, open_zip
from robustbench_meta.data.array_cache import file_digest
from robustbench_meta.data.copies import image_digest
from robustbench_meta.data.image_decoding import read_image, read_image_bytes
from robustbench_meta.data.omniglot_parts import CHARACTERS, OmniglotHalf
from robustbench_meta.data.pictures import Pictures, cached_pictures
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import is_clutter

DRAWINGS = 20
SIDE = 28
_LIMITS = Limits(files=60_000, total=512 * 2**20, ratio=50)
_PLACE = re.compile(r"[^/]+/character\d\d/[^/]+\.png")


def read_half(part: OmniglotHalf) -> Pictures:
    """All characters of a part, 'Alphabet/character01', as 28×28 pictures with bright ink; kept between runs.

    Raises:
        DataError: damaged, or not 964 (659) characters of 20 drawings.
    """
    state = file_digest(part.path) if part.path.suffix == ".zip" else _state_of_folder(part.path)
    key = {"part": part.name, "state": state, "code": file_digest(Path(__file__)), "pillow": PIL.__version__}
    return cached_pictures("omniglot", key, lambda: _decode(part))


def _state_of_folder(folder: Path) -> list[tuple[str | int, ...]]:
    stats = ((path.relative_to(folder).as_posix(), path.stat()) for path in _drawings(folder))
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats]


def _drawings(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if not is_clutter(path.name))


def _decode(part: OmniglotHalf) -> Pictures:
    with _open(part) as (names, read):
        drawings = sorted(name for name in names if _PLACE.fullmatch(name))
        by_class = {label: list(group) for label, group in groupby(drawings, lambda name: name.rpartition("/")[0])}
        _check_counts(part, by_class)
        contents = {name: read(name) for name in drawings}
        return Pictures.stack(
            {label: [rasterize(contents[n], f"{part.path}: {n}") for n in group] for label, group in by_class.items()},
            [image_digest(contents[name]) for name in drawings], drawings,
        )  # fmt: skip


def rasterize(data: bytes, where: str) -> np.ndarray:
    """A drawing as uint8 [1, 28, 28], ink 255: resized in grey with Lanczos' filter."""
    ink = ImageOps.invert(read_image(data, where, "L", max_pixels=2**20))
    return np.asarray(ink.resize((SIDE, SIDE), Image.Resampling.LANCZOS))[None]


def _check_counts(part: OmniglotHalf, by_class: dict[str, list[str]]) -> None:
    odd = [f"{label} has {len(group)}" for label, group in by_class.items() if len(group) != DRAWINGS]
    if odd:
        raise DataError(f"{part.path}: {odd[0]} drawings; every character of Omniglot has {DRAWINGS}: get it again")
    if len(by_class) != CHARACTERS[part.name]:
        raise DataError(
            f"{part.path} holds {len(by_class)} characters; {part.name} has {CHARACTERS[part.name]} "
            "(Alphabet/character01/0001_01.png, …): get it again"
        )


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
        inside = {_below(part.name, entry.filename): entry for entry in archive.entries}
        yield inside, lambda name: archive.read(inside[name])


def _below(name: str, entry: str) -> str:
    parts = PurePosixPath(entry).parts
    return "/".join(parts[1:] if parts[0] == name else parts)
