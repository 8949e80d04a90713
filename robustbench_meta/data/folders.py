"""Which images a folder holds, of which classes, in which splits: three layouts, one listing."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import NamedTuple

import numpy as np

from robustbench_meta.data.copies import PARTS
from robustbench_meta.data.images import SUFFIXES
from robustbench_meta.errors import DataError
from robustbench_meta.seeds import seed_from

logger = logging.getLogger(__name__)

_WORDS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class Picture(NamedTuple):
    """One image file, its class, and the split of that class."""

    path: Path
    label: str
    part: str


class Listing(NamedTuple):
    """All images of a folder: in order of split, class and file name."""

    folder: Path
    pictures: list[Picture]

    def name_of(self, picture: Picture) -> str:
        """What messages call an image: its path in the folder."""
        return picture.path.relative_to(self.folder).as_posix()

    def labels(self, part: str) -> list[str]:
        """The classes of a split, in order."""
        return list(dict.fromkeys(picture.label for picture in self.pictures if picture.part == part))


def list_images(folder: Path, table: str, shares: Sequence[int], seed: int) -> Listing:
    """List the images of a folder.

    Args:
        folder: with `table` (filename,label,split); or with train.csv, val.csv and test.csv (filename,label);
            or with the sub-folders train, val and test, which have one folder a class; or with one folder a class.
        table: name of a split CSV in the folder, or "".
        shares: of the classes for train, validation and test, for the last layout.
        seed: which classes these are.

    Raises:
        DataError: no images, a split without classes, a class in two splits, files listed but missing, paths that
            leave the folder.
    """
    if table:
        pictures = _from_csv(folder, table, None)
    elif (folder / "train.csv").is_file():
        tables = _split_names(folder, ".csv")
        pictures = [picture for name, part in tables.items() for picture in _from_csv(folder, f"{name}.csv", part)]
    elif (folder / "train").is_dir():
        parts = _split_names(folder, "")
        pictures = [picture for name, part in parts.items() for picture in _from_folders(folder / name, part)]
    else:
        pictures = _divide(_from_folders(folder, ""), shares, seed, folder)
    listing = Listing(folder, sorted(set(pictures), key=lambda one: (PARTS.index(one.part), one.label, one.path)))
    _check(listing)
    return listing


def _split_names(folder: Path, suffix: str) -> dict[str, str]:
    names = {word: part for word, part in _WORDS.items() if (folder / f"{word}{suffix}").exists()}
    for part in PARTS:
        words = [f"{word}{suffix}" for word in names if names[word] == part]
        if len(words) != 1:
            accepted = " or ".join(f"{word}{suffix}" for word in _WORDS if _WORDS[word] == part)
            raise DataError(f"{folder} has {' and '.join(words) or 'no ' + accepted}; expected one of {accepted}")
    return names


def _from_folders(folder: Path, part: str) -> list[Picture]:
    found, others = [], 0
    for label in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = [path for path in label.rglob("*") if path.is_file() and not path.name.startswith(".")]
        images = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(
                f"{label} is the folder of a class, but holds no image ({', '.join(SUFFIXES)}): fill or remove it"
            )
        others += len(files) - len(images)
        found += [Picture(path, label.name, part) for path in images]
    if others:
        logger.warning("%s: %d files that are no images (%s) are left out", folder, others, ", ".join(SUFFIXES))
    return found


def _divide(pictures: list[Picture], shares: Sequence[int], seed: int, folder: Path) -> list[Picture]:
    """Give the classes to the splits by their shares, at least one to each."""
    labels = sorted({picture.label for picture in pictures})
    if len(labels) < len(PARTS):
        raise DataError(
            f"{folder} has {len(labels)} classes (sub-folders with images); at least 3 are needed, one for each split: "
            "expected one folder a class, or sub-folders train, val and test, or train.csv, val.csv and test.csv"
        )
    wanted, counts = np.array(shares) / sum(shares) * len(labels), np.ones(len(PARTS), dtype=int)
    while counts.sum() < len(labels):
        counts[np.argmax(wanted - counts)] += 1
    parts = np.repeat(PARTS, counts).tolist()
    order = np.random.Generator(np.random.Philox(seed_from("image-folder", seed))).permutation(len(labels))
    part = {labels[place]: named for place, named in zip(order, parts, strict=True)}
    return [picture._replace(part=part[picture.label]) for picture in pictures]


def _from_csv(folder: Path, table: str, part: str | None) -> list[Picture]:
    base = folder / "images" if (folder / "images").is_dir() else folder
    rows = _read_csv(folder / _inside(table, folder), ["filename", "label"] + (["split"] if part is None else []))
    pictures = []
    for number, row in rows:
        where = f"{folder / table}, line {number}"
        named = part or _WORDS.get(row["split"].lower())
        if named is None:
            raise DataError(f"{where}: split is {row['split']!r}; expected train, val (or validation) or test")
        pictures.append(Picture(base / _inside(row["filename"], where), row["label"], named))
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise DataError(f"{folder / table} lists {len(missing)} files that are not there, the first is {missing[0]}")
    return pictures


def _read_csv(path: Path, columns: list[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV by line number: these columns, all filled."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            absent = [column for column in columns if column not in (reader.fieldnames or [])]
            if absent:
                raise DataError(f"{path} has no column {' and '.join(absent)}; its first line is {reader.fieldnames}")
            rows = [(reader.line_num, {column: (row[column] or "").strip() for column in columns}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    for number, row in rows:
        if not all(row.values()):
            raise DataError(f"{path}, line {number}: expected {', '.join(columns)}; got {list(row.values())}")
    return rows


def _inside(name: str, where: object) -> PurePath:
    """A relative path that does not climb."""
    path = PurePath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise DataError(f"{where}: '{name}' leads out of the folder of images; expected a path inside it")
    return path


def _check(listing: Listing) -> None:
    owner: dict[str, str] = {}
    for picture in listing.pictures:
        if owner.setdefault(picture.label, picture.part) != picture.part:
            raise DataError(
                f"{listing.folder}: class '{picture.label}' is both in {owner[picture.label]} and in {picture.part}; "
                "splits must share no class"
            )
    for part in PARTS:
        if not listing.labels(part):
            raise DataError(f"{listing.folder}: the split {part} has no class with images")
