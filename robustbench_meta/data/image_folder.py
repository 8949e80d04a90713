"""Which images a folder holds, of which classes, in which splits: several layouts, one listing."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import NamedTuple

import numpy as np

from robustbench_meta.data.copies import PARTS
from robustbench_meta.data.image_decoding import SUFFIXES
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import contents
from robustbench_meta.runtime.seeds import seed_from

logger = logging.getLogger(__name__)

_WORDS = {
    "train": "train", "training": "train", "base": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test", "novel": "test",
}  # fmt: skip
TABLES = (".csv", ".pkl", ".pickle", ".p", ".gz", ".npz")
"""What marks a folder as that of a data set besides images."""
_COLUMNS = ["filename", "label", "split"]
_DEFAULT_SHARES, _DEFAULT_LEAST = (64, 16, 20), 5
_ADVICE = {
    (".h5", ".hdf5", ".mat"): "these are not read: write their images as files, a folder a class, with h5py and Pillow",
    (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"): "unpack archives first",
    (".pkl", ".pickle", ".p", ".npz"): "of pickles: use the data set pickled, with all three splits",
    (".json",): "lists in JSON are not read: make a CSV (filename,label,split) of them",
    (".parquet", ".arrow", ".tfrecord", ".tfrecords"): "these are not read: write their images as files",
}
"""What to do with files that people have instead of images."""


def part_of(name: str) -> str | None:
    """The split that a folder or table is called after: Train, val, meta-test, base, …; None: after none."""
    return _WORDS.get(name.lower().removeprefix("meta").lstrip("-_ "))


def inner(folder: Path) -> Path:
    """The data set's folder: where there is but one folder, beside notes at most, the one in it, and so on."""
    while True:
        there = contents(folder)
        folders = [path for path in there if path.is_dir()]
        data = any(path.suffix.lower() in (*SUFFIXES, *TABLES) for path in there if path.is_file())
        if len(folders) != 1 or data or part_of(folders[0].name):
            return folder
        if not (below := contents(folders[0])) or any(_is_image(path) for path in below):
            return folder  # the folder of a class
        folder = folders[0]


class ImageFile(NamedTuple):
    """One image file, its class, and the split of that class."""

    path: Path
    label: str
    part: str


class Listing(NamedTuple):
    """All images of a folder: in order of split, class and file name."""

    folder: Path
    pictures: list[ImageFile]

    def name_of(self, picture: ImageFile) -> str:
        """What messages call an image: its path in the folder."""
        return picture.path.relative_to(self.folder).as_posix()

    def labels(self, part: str) -> list[str]:
        """The classes of a split, in order."""
        return list(dict.fromkeys(picture.label for picture in self.pictures if picture.part == part))


def list_images(folder: Path, table: str, shares: Sequence[int] | None, seed: int) -> Listing:
    """List the images of a folder.

    Args:
        folder: with `table` (filename,label,split); or with train.csv, val.csv and test.csv (filename,label), there or
            in a sub-folder split; or with the sub-folders train, val and test, which have one folder a class; or with
            one CSV (filename,label,split); or with one folder a class. Or it has one folder, of which this holds.
        table: name of a split CSV in the folder, or "".
        shares: of the classes for train, validation and test, for the last layout; None: the usual ones.
        seed: which classes these are.

    Raises:
        DataError: no images, a split without classes, a class in two splits, files listed but missing, paths that
            leave the folder, folders inside the folder of a class.
    """
    try:
        folder = inner(folder)
        if table:
            pictures = _from_csv(folder, folder / _inside(table, folder), None)
        elif tables := _tables(folder):
            pictures = [picture for part, path in tables.items() for picture in _from_csv(folder, path, part)]
        elif parts := _split_folders(folder):
            pictures = [picture for part, path in parts.items() for picture in _from_folders(path, part)]
        elif whole := split_tables(folder):
            if len(whole) > 1:
                names = ", ".join(path.name for path in whole)
                raise DataError(f"{folder} has several tables of splits: choose one with the option csv, of {names}")
            pictures = _from_csv(folder, whole[0], None)
        else:
            pictures = _divide(_from_folders(folder, ""), shares, seed, folder)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    listing = Listing(folder, sorted(set(pictures), key=lambda one: (PARTS.index(one.part), one.label, one.path)))
    _check(listing)
    return listing


def split_tables(folder: Path) -> list[Path]:
    """The CSVs in a folder that have the columns filename, label and split."""
    found = []
    for path in contents(folder):
        if path.suffix.lower() == ".csv" and path.is_file():
            with path.open("rb") as file:
                first = file.readline(4096).decode("utf-8-sig", "replace").strip()
            if set(_COLUMNS) <= {column.strip().strip('"') for column in first.split(",")}:
                found.append(path)
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _tables(folder: Path) -> dict[str, Path]:
    """The tables of the three splits, by split; none where there is none of train."""
    for place in (folder, folder / "split", folder / "splits"):
        files = [path for path in contents(place) if path.suffix.lower() == ".csv"] if place.is_dir() else []
        if any(part_of(path.stem) == "train" for path in files):
            return _by_part(place, files, ".csv")
    return {}


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the three splits, by split; none where those of such a name are of classes."""
    folders = [path for path in contents(folder) if path.is_dir()]
    named = [path for path in folders if part_of(path.name)]
    if any(path.is_dir() for one in named for path in contents(one)):
        return _by_part(folder, folders, "")
    if len(named) == len(folders) and any(part_of(path.name) == "train" for path in named):
        raise DataError(f"{named[0]} holds no folders: expected one folder a class in each of train, val and test")
    return {}


def _by_part(folder: Path, paths: Sequence[Path], suffix: str) -> dict[str, Path]:
    found: dict[str, list[Path]] = {part: [] for part in PARTS}
    for path in paths:
        if part := part_of(path.stem if suffix else path.name):
            found[part].append(path)
    for part, mine in found.items():
        if len(mine) != 1:
            accepted = " or ".join(f"{word}{suffix}" for word in _WORDS if _WORDS[word] == part)
            there = " and ".join(path.name for path in mine) or f"no {accepted}"
            raise DataError(f"{folder} has {there}; expected one of {accepted}")
    return {part: mine[0] for part, mine in found.items()}


def _from_folders(folder: Path, part: str) -> list[ImageFile]:
    found: list[ImageFile] = []
    stray = [path for path in contents(folder) if _is_image(path)]
    others = 0
    for label in (path for path in contents(folder) if path.is_dir()):
        there = contents(label)
        if len(there) == 1 and there[0].is_dir() and there[0].name.lower() == "images":
            there = contents(there[0])
        images = [path for path in there if _is_image(path)]
        for path in (path for path in there if path.is_dir()):
            if any(_is_image(each) for each in path.rglob("*")):
                raise DataError(
                    f"{label} is the folder of a class, but '{path.name}' in it holds images, too: expected one folder "
                    "a class, with its images right in it; or name each image's class in a CSV (filename,label,split)"
                )
        if not images:
            raise DataError(
                f"{label} is the folder of a class, but holds no image ({', '.join(SUFFIXES)}): fill or remove it"
            )
        others += len(there) - len(images)
        found += [ImageFile(path, label.name, part) for path in images]
    if others:
        logger.warning("%s: %d files that are no images (%s) are left out", folder.name, others, ", ".join(SUFFIXES))
    if stray and found:
        logger.warning("%s: %d images in no folder of a class are left out", folder.name, len(stray))
    return found


def _divide(pictures: list[ImageFile], shares: Sequence[int] | None, seed: int, folder: Path) -> list[ImageFile]:
    """Give the classes to the splits by their shares, at least one to each; by default five, for 5-way tasks."""
    labels = sorted({picture.label for picture in pictures})
    if len(labels) < len(PARTS):
        raise DataError(
            f"{folder} has {len(labels)} classes (sub-folders with images); at least 3 are needed, one for each split: "
            "expected one folder a class, or sub-folders train, val and test, or train.csv, val.csv and test.csv"
            + _instead(folder)
        )
    least = 1 if shares else max(1, min(_DEFAULT_LEAST, len(labels) // len(PARTS)))
    shares = shares or _DEFAULT_SHARES
    wanted, counts = np.array(shares) / sum(shares) * len(labels), np.full(len(PARTS), least)
    while counts.sum() < len(labels):
        counts[np.argmax(wanted - counts)] += 1
    parts = np.repeat(PARTS, counts).tolist()
    order = np.random.Generator(np.random.Philox(seed_from("image-folder", seed))).permutation(len(labels))
    part = {labels[place]: named for place, named in zip(order, parts, strict=True)}
    return [picture._replace(part=part[picture.label]) for picture in pictures]


def _instead(folder: Path) -> str:
    """What a folder without classes holds instead, and what to do with it."""
    files = [path for path in contents(folder) if path.is_file()]
    if not files:
        return ""
    told = f"; it holds {', '.join(path.name for path in files[:4])}{' …' * (len(files) > 4)}"
    suffixes = {path.suffix.lower() for path in files}
    return told + next((f": {advice}" for mine, advice in _ADVICE.items() if suffixes & set(mine)), "")


def _from_csv(folder: Path, table: Path, part: str | None) -> list[ImageFile]:
    base = folder / "images" if (folder / "images").is_dir() else folder
    pictures = []
    for number, row in _read_csv(table, _COLUMNS if part is None else _COLUMNS[:2]):
        where = f"{table}, line {number}"
        named = part or part_of(row["split"])
        if named is None:
            raise DataError(f"{where}: split is {row['split']!r}; expected train, val (or validation) or test")
        pictures.append(ImageFile(base / _inside(row["filename"], where), row["label"], named))
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise DataError(f"{table} lists {len(missing)} files that are not there, the first is {missing[0]}")
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
        raise DataError(f"cannot read {path} as CSV in UTF-8: {error}") from error
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
