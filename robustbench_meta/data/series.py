"""Which data sets a folder has as pickles or .npz, by the names of its files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from robustbench_meta.data.copies import PARTS
from robustbench_meta.errors import DataError, unknown
from robustbench_meta.runtime.paths import contents

_WORDS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_FILE = re.compile(
    r"(?P<series>.*?)(?P<part>train|validation|valid|val|test)\.((pkl|pickle|p)(\.gz)?|npz)", re.IGNORECASE
)
_TIERED = re.compile(r"(train|val|test)_images(_png)?\.(pkl|npz)", re.IGNORECASE)
_BASE_CLASSES = "train_phase_"
"""Gidaris and Komodakis: NAME_train_phase_train is train, and its …_val and …_test are more images of these classes."""


class Series(NamedTuple):
    """The files of one data set."""

    name: str
    """What their names begin with, as in CIFAR_FS; 'data' where they are only train, val and test."""
    files: dict[str, Path]
    """By split."""

    def ordered(self) -> list[tuple[str, Path]]:
        """The files of train, validation and test."""
        return [(part, self.files[part]) for part in PARTS]


def find_series(folder: Path) -> list[Series]:
    """The data sets that a folder has as pickles, whole or not, by the names of the files.

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
