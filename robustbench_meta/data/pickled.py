"""Data sets that are distributed as pickles or .npz, one file a split: found by the names of the files, and read."""

from __future__ import annotations

import logging
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustbench_meta.contracts.tasks import Splits, check_disjoint
from robustbench_meta.data.archives import Limits, open_zip
from robustbench_meta.data.copies import PARTS, Copies, image_digest
from robustbench_meta.data.pictures import Pictures
from robustbench_meta.data.safe_pickle import MAX_BYTES, read_pickle
from robustbench_meta.errors import DataError, unknown
from robustbench_meta.runtime.paths import contents

logger = logging.getLogger(__name__)

_WORDS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_FILE = re.compile(
    r"(?P<series>.*?)(?P<part>train|validation|valid|val|test)\.((pkl|pickle|p)(\.gz)?|npz)", re.IGNORECASE
)
_TIERED = re.compile(r"(train|val|test)_images(_png)?\.(pkl|npz)", re.IGNORECASE)
_BASE_CLASSES = "train_phase_"
"""Gidaris and Komodakis: NAME_train_phase_train is train, and its …_val and …_test are more images of these classes."""
_LAYOUTS = "{image_data, class_dict} or {data, labels}"
_SIDES = (4, 1024)


class Series(NamedTuple):
    """The files of one data set."""

    name: str
    """What their names begin with, as in CIFAR_FS; 'data' where they are only train, val and test."""
    files: dict[str, Path]
    """By split."""


def find_series(folder: Path) -> list[Series]:
    """The data sets that a folder has as pickles, complete or not, by the names of the files.

    Raises:
        DataError: two files of one split.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in contents(folder) if folder.is_dir() else []:
        match = _FILE.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        start, part = match["series"], _WORDS[match["part"].lower()]
        if start.endswith(_BASE_CLASSES):
            if part != "train":
                continue
            start = start.removesuffix(_BASE_CLASSES)
        files = found.setdefault(start.rstrip("-_. ") or "data", {})
        if part in files:
            raise DataError(f"{folder} has two files of the split {part}: {files[part].name} and {path.name}; keep one")
        files[part] = path
    return [Series(name, files) for name, files in sorted(found.items())]


def choose_series(folder: Path, wanted: str) -> Series:
    """The data set of that name, or the only one; with all three splits.

    Raises:
        DataError: none, several, none of that name, or a split is missing.
    """
    there = {series.name: series for series in find_series(folder)}
    if tiered := next((path for path in contents(folder) if _TIERED.fullmatch(path.name)), None):
        raise DataError(
            f"{folder} has {tiered.name}, as tieredImageNet is spread: compressed images, with labels apart; these are "
            "not read: write the images as files, a folder a class in train, val and test, and use image-folder"
        )
    if not there:
        raise DataError(
            f"{folder} has no pickles of a data set; expected three files as mini-imagenet-cache-train.pkl, …-val.pkl "
            "and …-test.pkl, or CIFAR_FS_train.pickle, CIFAR_FS_val.pickle and CIFAR_FS_test.pickle"
        )
    if wanted and wanted not in there:
        raise DataError(f"{folder}: {unknown('series', wanted, there)}")
    if not wanted and len(there) > 1:
        raise DataError(f"{folder} has several data sets: choose one with the option series, of {', '.join(there)}")
    series = there[wanted] if wanted else next(iter(there.values()))
    missing = [part for part in PARTS if part not in series.files]
    if missing:
        names = ", ".join(path.name for path in series.files.values())
        raise DataError(f"{folder} has no file of the split {' and '.join(missing)} beside {names}: get it, too")
    return series


def read_series(series: Series, name: str, copies: Copies) -> Splits:
    """The three splits, with their images as they are in the files.

    Raises:
        DataError: a file that is no pickle of images in a known layout, images of several shapes, a class in two
            splits, or equal images where the rule is to refuse them.
    """
    files = {part: _images_and_members(_read(series.files[part]), str(series.files[part])) for part in PARTS}
    shapes = {part: images.shape[1:] for part, (images, _) in files.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {part} {c}×{h}×{w}" for part, (h, w, c) in shapes.items())
        raise DataError(f"the splits have images of different shapes: {listed}; expected one")
    check_disjoint({f"{name} {part}": members for part, (_, members) in files.items()})
    by_class: dict[str, list[np.ndarray]] = {}
    digests, names = [], []
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for part, (images, members) in files.items():
        for label, places in members.items():
            parts[part].append(len(by_class))
            by_class[label] = list(images[places].transpose(0, 3, 1, 2))
            digests += [image_digest(images[place].tobytes()) for place in places]
            names += [f"{part} image {place} (class '{label}')" for place in places]
    return Pictures.stack(by_class, digests, names).split(name, parts, copies)


def _read(path: Path) -> Any:
    if path.suffix.lower() != ".npz":
        return read_pickle(path)
    with open_zip(path, Limits(total=MAX_BYTES)):
        pass  # checked: no bomb
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not readable as arrays of numbers or text ({error}): get it again") from error


def _images_and_members(content: Any, where: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The images of a file, uint8 [images, height, width, channels], and which of them each class has."""
    if not isinstance(content, dict):
        raise DataError(f"{where} holds a {type(content).__name__}; expected a dict: {_LAYOUTS}")
    content = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    key = next((key for key in ("data", "images") if key in content), "")
    if {"image_data", "class_dict"} <= content.keys():
        images = _images(content["image_data"], f"{where}: image_data")
        members = _by_class(content["class_dict"], len(images), f"{where}: class_dict")
    elif key and "labels" in content:
        images = _images(content[key], f"{where}: {key}")
        members = _by_label(content["labels"], len(images), f"{where}: labels")
    else:
        raise DataError(
            f"{where} is a dict of {', '.join(map(repr, list(content)[:8])) or 'nothing'}; expected {_LAYOUTS}"
        )
    left = len(images) - sum(map(len, members.values()))
    if left:
        logger.warning("%s: %d of %d images belong to no class: left out", where, left, len(images))
    return images, members


def _images(value: Any, where: str) -> np.ndarray:
    expected = "expected uint8 [images, height, width, 3] (or 1)"
    if not isinstance(value, np.ndarray):
        raise DataError(f"{where} is a {type(value).__name__}; {expected}")
    if not (value.dtype == np.uint8 and value.ndim == 4 and len(value) > 0 and value.shape[3] in (1, 3)):
        raise DataError(f"{where} is {value.dtype} {list(value.shape)}; {expected}")
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in value.shape[1:3]):
        raise DataError(f"{where} has images of {value.shape[1]}×{value.shape[2]} pixels; expected {_SIDES} a side")
    return value


def _by_class(value: Any, total: int, where: str) -> dict[str, np.ndarray]:
    """The places of the images of each class, from a dict of them."""
    if not isinstance(value, dict) or not value:
        raise DataError(f"{where} is {_shown(value)}; expected a dict of the images' places by class")
    members = {_text(label): _whole_numbers(places, f"{where}[{label!r}]") for label, places in value.items()}
    if len(members) < len(value):
        raise DataError(f"{where} has two classes of one name")
    every, counts = np.unique(np.concatenate(list(members.values())), return_counts=True)
    if every[0] < 0 or every[-1] >= total:
        raise DataError(f"{where} names image {every[-1] if every[0] >= 0 else every[0]}; there are {total}")
    if counts.max() > 1:
        raise DataError(f"{where} names an image twice: {every[counts > 1][0]}")
    return members


def _by_label(value: Any, total: int, where: str) -> dict[str, np.ndarray]:
    """The places of the images of each class, from a label for each; in order of the numbers or names."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuSU":
        value = value.tolist()
    if not isinstance(value, list | tuple) or any(type(label) not in (int, str, bytes) for label in value):
        raise DataError(f"{where} is {_shown(value)}; expected a list of whole numbers or names")
    if len(value) != total:
        raise DataError(f"{where} has {len(value)} entries for {total} images")
    places: dict[Any, list[int]] = {}
    for place, label in enumerate(value):
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
    raise DataError(f"{where} is {_shown(value)}; expected a list of whole numbers, not empty")


def _text(label: Any) -> str:
    text = label.decode("latin-1") if isinstance(label, bytes) else str(label)
    if len(text) > 200:
        raise DataError(f"a class has a name of {len(text)} characters: {text[:40]!r} …; expected at most 200")
    if not text.isprintable():
        raise DataError(f"a class has the name {text!r}; expected characters that can be printed")
    return text


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple | dict) else "")
