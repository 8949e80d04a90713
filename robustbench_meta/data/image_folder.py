"""Folders of images: which images of which classes are in which splits (several layouts), and reading them."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PureWindowsPath
from typing import Literal, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps

from robustbench_meta.data.array_cache import file_digest
from robustbench_meta.data.copies import PARTS, Copies, image_digest, resolve_copies
from robustbench_meta.data.image_decoding import SUFFIXES, longest_side, read_image, read_image_bytes
from robustbench_meta.data.pictures import Pictures
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
_USUAL_SIDE = 84
"""Of few-shot benchmarks with larger images."""
_ADVICE = {
    (".h5", ".hdf5", ".mat"): "these are not read: write their images as files, a folder a class, with h5py and Pillow",
    (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"): "unpack archives first",
    (".pkl", ".pickle", ".p", ".npz"): "of pickles: use the data set pickled, with all three splits",
    (".json",): "lists in JSON are not read: make a CSV (filename,label,split) of them",
    (".parquet", ".arrow", ".tfrecord", ".tfrecords"): "these are not read: write their images as files",
}
"""What to do with files that people have instead of images."""


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

    def state(self) -> list[object]:
        """What changes with the images: names, classes, sizes, times and inodes.

        Size and time of modification alone would be those of another folder whose files were made alike (by a script,
        or unpacked); an inode with its time of change is of one file, wherever its folder is moved.
        """
        files = []
        for picture in self.pictures:
            stat = picture.path.stat()
            changes = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            files.append((self.name_of(picture), picture.label, picture.part, *changes))
        return [file_digest(Path(__file__)), PIL.__version__, files]

    def read(self, size: int | None, channels: int, fit: Literal["squash", "crop"], copies: Copies) -> Pictures:
        """Decode all images into [images, channels, size, size]; equal ones are refused before, if they are to be.

        Without a size it is the longest side of all images, at most 84: nothing is blown up beyond what there is.

        Raises:
            DataError: an image that cannot be read, or equal ones where the rule is to refuse them.
        """
        names = [self.name_of(picture) for picture in self.pictures]
        paths, labels, parts = zip(*self.pictures, strict=True)

        def look(path: Path) -> tuple[np.ndarray, int]:
            data = read_image_bytes(path)
            return image_digest(data), longest_side(data) if size is None else size

        with ThreadPoolExecutor() as pool:
            digests, sides = zip(*pool.map(look, paths), strict=True)
            if copies == "refuse":
                resolve_copies(np.stack(digests), parts, labels, names, copies, str(self.folder))
            side = size or max(4, min(_USUAL_SIDE, max(sides)))

            def decode(path: Path) -> np.ndarray:
                image = read_image(read_image_bytes(path), str(path), "RGB" if channels == 3 else "L")
                if fit == "crop":
                    image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
                else:
                    image = image.resize((side, side), Image.Resampling.LANCZOS)
                return np.ascontiguousarray(np.asarray(image).reshape(side, side, channels).transpose(2, 0, 1))

            by_class: dict[str, list[np.ndarray]] = {}
            for label, image in zip(labels, pool.map(decode, paths), strict=True):
                by_class.setdefault(label, []).append(image)
        return Pictures.stack(by_class, digests, names)


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
    owner: dict[str, str] = {}
    for _, label, part in listing.pictures:
        if owner.setdefault(label, part) != part:
            raise DataError(
                f"{folder}: class '{label}' is both in {owner[label]} and in {part}; splits must share no class"
            )
    for part in PARTS:
        if part not in owner.values():
            raise DataError(f"{folder}: the split {part} has no class with images")
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


def _tables(folder: Path) -> Mapping[str, Path]:
    """The tables of the three splits, by split; none where there is none of train."""
    for place in (folder, folder / "split", folder / "splits"):
        files = [path for path in contents(place) if path.suffix.lower() == ".csv"] if place.is_dir() else []
        if any(part_of(path.stem) == "train" for path in files):
            return _by_part(place, files, ".csv")
    return {}


def _split_folders(folder: Path) -> Mapping[str, Path]:
    """The folders of the three splits, by split; none where those of such a name are of classes."""
    folders = [path for path in contents(folder) if path.is_dir()]
    named = [path for path in folders if part_of(path.name)]
    if any(path.is_dir() for one in named for path in contents(one)):
        return _by_part(folder, folders, "")
    if len(named) == len(folders) and any(part_of(path.name) == "train" for path in named):
        raise DataError(f"{named[0]} holds no folders: expected one folder a class in each of train, val and test")
    return {}


def _by_part(folder: Path, paths: Sequence[Path], suffix: str) -> Mapping[str, Path]:
    chosen = {}
    for part in PARTS:
        mine = [path for path in paths if part_of(path.stem if suffix else path.name) == part]
        if len(mine) != 1:
            accepted = " or ".join(f"{word}{suffix}" for word in _WORDS if _WORDS[word] == part)
            there = " and ".join(path.name for path in mine) or f"no {accepted}"
            raise DataError(f"{folder} has {there}; expected one of {accepted}")
        chosen[part] = mine[0]
    return chosen


def _from_folders(folder: Path, part: str) -> list[ImageFile]:
    """One folder a class."""
    found: list[ImageFile] = []
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
    stray = sum(_is_image(path) for path in contents(folder))
    if others:
        logger.warning("%s: %d files that are no images (%s) are left out", folder.name, others, ", ".join(SUFFIXES))
    if stray and found:
        logger.warning("%s: %d images in no folder of a class are left out", folder.name, stray)
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
    suffixes = {path.suffix.lower() for path in files}
    advice = next((f": {advice}" for mine, advice in _ADVICE.items() if suffixes & set(mine)), "")
    return f"; it holds {', '.join(path.name for path in files[:4])}{' …' * (len(files) > 4)}{advice}"


def _from_csv(folder: Path, table: Path, part: str | None) -> list[ImageFile]:
    """The images in a table, all of the split `part`; None: its column `split` says which."""
    base = folder / "images" if (folder / "images").is_dir() else folder
    pictures = []
    for where, row in _rows(table, _COLUMNS if part is None else _COLUMNS[:2]):
        named = part or part_of(row["split"])
        if named is None:
            raise DataError(f"{where}: split is {row['split']!r}; expected train, val (or validation) or test")
        pictures.append(ImageFile(base / _inside(row["filename"], where), row["label"], named))
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise DataError(f"{table} lists {len(missing)} files that are not there, the first is {missing[0]}")
    return pictures


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV, these columns of them, all filled; each after where it is."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            absent = [column for column in columns if column not in (reader.fieldnames or [])]
            if absent:
                raise DataError(f"{path} has no column {' and '.join(absent)}; its first line is {reader.fieldnames}")
            for line in reader:
                where, row = f"{path}, line {reader.line_num}", {name: (line[name] or "").strip() for name in columns}
                if not all(row.values()):
                    raise DataError(f"{where}: expected {', '.join(columns)}; got {list(row.values())}")
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} as CSV in UTF-8: {error}") from error


def _inside(name: str, where: object) -> PurePath:
    """A relative path that does not climb."""
    path = PurePath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise DataError(f"{where}: '{name}' leads out of the folder of images; expected a path inside it")
    return path
