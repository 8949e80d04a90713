"""The pictures of data sets that are spread as pickles."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_meta.contracts.tasks import Splits, check_disjoint
from robustbench_meta.data.archives import Limits, open_zip
from robustbench_meta.data.copies import Copies, image_digest, resolve_copies
from robustbench_meta.data.pictures import Pictures
from robustbench_meta.data.safe_pickle import MAX_BYTES, read_pickle
from robustbench_meta.data.series import Series
from robustbench_meta.errors import DataError

logger = logging.getLogger(__name__)

LAYOUTS = "{image_data, class_dict} or {data, labels}"
_SIDES = (4, 1024)


def read_series(series: Series, name: str, copies: Copies) -> Splits:
    """The three splits, with their images as they are in the files.

    Raises:
        DataError: a file that is no pickle of images in a known layout, images of several shapes, a class in two
            splits, or equal images where the rule is to refuse them.
    """
    read = {part: _pictures(_read(path), part, str(path)) for part, path in series.ordered()}
    shapes = {part: "×".join(map(str, pictures.images.shape[1:])) for part, pictures in read.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} {part} {shape}" for part, shape in shapes.items())
        raise DataError(f"the splits have images of different shapes: {told}; expected one")
    check_disjoint({f"{name} {part}": pictures.classes.tolist() for part, pictures in read.items()})
    sizes = [len(pictures.images) for pictures in read.values()]
    found = resolve_copies(
        np.concatenate([pictures.digests for pictures in read.values()]),
        np.repeat(list(read), sizes).tolist(),
        np.concatenate([np.repeat(pictures.classes, pictures.counts) for pictures in read.values()]).tolist(),
        np.concatenate([pictures.names for pictures in read.values()]).tolist(),
        copies, name,
    )  # fmt: skip
    stays = dict(zip(read, np.split(found.stays, np.cumsum(sizes)[:-1]), strict=True))
    return Splits(*(
        pictures.select(f"{name} {part}", range(len(pictures.classes)), stays[part], found.told[part])
        for part, pictures in read.items()
    ))  # fmt: skip


def _read(path: Path) -> Any:
    """What a pickle or an .npz holds."""
    if path.suffix.lower() != ".npz":
        return read_pickle(path)
    with open_zip(path, Limits(total=MAX_BYTES)):
        pass  # checked: no bomb
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not readable as arrays of numbers or text ({error}): get it again") from error


def _pictures(content: Any, part: str, where: str) -> Pictures:
    """The images of a file by class, channels first, named by split and place in the file."""
    if not isinstance(content, dict):
        raise DataError(f"{where} holds a {type(content).__name__}; expected a dict: {LAYOUTS}")
    content = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    if {"image_data", "class_dict"} <= content.keys():
        images = _images(content["image_data"], f"{where}: image_data")
        members = _members(content["class_dict"], len(images), f"{where}: class_dict")
    elif "labels" in content and (held := next((name for name in ("data", "images") if name in content), None)):
        images = _images(content[held], f"{where}: {held}")
        members = _by_label(content["labels"], len(images), f"{where}: labels")
    else:
        raise DataError(
            f"{where} is a dict of {', '.join(map(repr, list(content)[:8])) or 'nothing'}; expected {LAYOUTS}"
        )
    counts = np.array([len(places) for places in members.values()], dtype=np.int64)
    left = len(images) - int(counts.sum())
    if left:
        logger.warning("%s: %d of %d images belong to no class: left out", where, left, len(images))
    channels_first = images.transpose(0, 3, 1, 2)
    ordered = np.empty((len(images) - left, *channels_first.shape[1:]), dtype=np.uint8)
    for end, places in zip(np.cumsum(counts), members.values(), strict=True):
        ordered[end - len(places) : end] = channels_first[places]
    names = [f"{part} image {place} (class '{label}')" for label, places in members.items() for place in places]
    return Pictures(
        ordered,
        counts,
        np.array(list(members)),
        np.stack([image_digest(image.data) for image in ordered]),
        np.array(names),
    )


def _images(value: Any, where: str) -> np.ndarray:
    expected = "expected uint8 [images, height, width, 3] (or 1)"
    if not isinstance(value, np.ndarray):
        raise DataError(f"{where} is a {type(value).__name__}; {expected}")
    fits = value.dtype == np.uint8 and value.ndim == 4 and len(value) > 0 and value.shape[3] in (1, 3)
    if not fits:
        raise DataError(f"{where} is {value.dtype} {list(value.shape)}; {expected}")
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in value.shape[1:3]):
        raise DataError(f"{where} has images of {value.shape[1]}×{value.shape[2]} pixels; expected {_SIDES} a side")
    return value


def _members(value: Any, total: int, where: str) -> Mapping[str, np.ndarray]:
    """The places of the images of each class, from a dict of them."""
    if not isinstance(value, dict) or not value:
        raise DataError(f"{where} is {_told(value)}; expected a dict of the images' places by class")
    members = {_text(label): _whole_numbers(places, f"{where}[{label!r}]") for label, places in value.items()}
    if len(members) < len(value):
        raise DataError(f"{where} has two classes of one name")
    every = np.concatenate(list(members.values()))
    if every.min() < 0 or every.max() >= total:
        raise DataError(f"{where} names image {every.max() if every.min() >= 0 else every.min()}; there are {total}")
    if len(np.unique(every)) < len(every):
        raise DataError(f"{where} names an image twice: {np.sort(every)[:-1][np.diff(np.sort(every)) == 0][0]}")
    return members


def _by_label(value: Any, total: int, where: str) -> Mapping[str, np.ndarray]:
    """The places of the images of each class, from a label for each; in order of the numbers or names."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuSU":
        labels: list[Any] = value.tolist()
    elif isinstance(value, list | tuple) and all(type(label) in (int, str, bytes) for label in value):
        labels = list(value)
    else:
        raise DataError(f"{where} is {_told(value)}; expected a list of whole numbers or names")
    if len(labels) != total:
        raise DataError(f"{where} has {len(labels)} entries for {total} images")
    places: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    ordered = sorted(
        places, key=lambda label: (isinstance(label, int), label if isinstance(label, int) else 0, str(label))
    )
    members = {_text(label): np.array(places[label], dtype=np.int64) for label in ordered}
    if len(members) < len(places):
        raise DataError(f"{where} has a number and a name that are written alike")
    return members


def _whole_numbers(value: Any, where: str) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu" and len(value):
        return value.astype(np.int64)
    if isinstance(value, list | tuple) and value and all(type(place) is int and abs(place) < 2**62 for place in value):
        return np.array(value, dtype=np.int64)
    raise DataError(f"{where} is {_told(value)}; expected a list of whole numbers, not empty")


def _text(label: Any) -> str:
    text = label.decode("latin-1") if isinstance(label, bytes) else str(label)
    if len(text) > 200:
        raise DataError(f"a class has a name of {len(text)} characters: {text[:40]!r} …; expected at most 200")
    if not text.isprintable():
        raise DataError(f"a class has the name {text!r}; expected characters that can be printed")
    return text


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
