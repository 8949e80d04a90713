"""What `bench data` does: download, add and list data sets below the data root."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from robustbench_meta.data.archives import extract, is_tar, looks_like_html
from robustbench_meta.data.cifar100 import ARCHIVE, find_cifar100
from robustbench_meta.data.copies import PARTS
from robustbench_meta.data.image_decoding import SUFFIXES
from robustbench_meta.data.image_folder import TABLES, inner, list_images, split_tables
from robustbench_meta.data.omniglot import find_parts
from robustbench_meta.data.pickled import find_series
from robustbench_meta.errors import DataError
from robustbench_meta.experiment.profiles import get_profile
from robustbench_meta.runtime.paths import contents, data_root, is_clutter, size_of

OFFICIAL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
CIFAR100 = "https://www.cs.toronto.edu/~kriz/"
CIFAR100_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
MAX_DOWNLOAD = 256 * 2**20
"""Bytes; Omniglot's archives have 9.5 and 6.5 million, CIFAR-100's 169 million."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BUILT_IN = ("glyphs", "toy")
_NAMED = ("cifar-fs", "fc100", "mini-imagenet", "tiered-imagenet", "cub")
_OF_CIFAR100 = ("cifar-fs", "fc100")
_WHOLE = ("omniglot", "cifar100")
"""Added as they are officially distributed."""
_RESERVED = {*_BUILT_IN, "image-folder", "pickled", "omniglot-py", "images_background", "images_evaluation"}
State = Literal["built in", "ready", "needs options", "damaged", "incomplete", "missing"]


class Row(NamedTuple):
    """A data set in `bench data list`."""

    dataset: str
    """What to type after --dataset."""
    where: str
    state: State
    """`ready` means that its files are there, and archives open; images are checked when they are read. What has too
    few classes or images for the tasks that `bench run` draws by default, `needs options`; of pickles, when added.
    """
    bytes: int


def download_omniglot(root: Path | None, progress: Any = None, base_url: str = OFFICIAL) -> Row:
    """Fetch both official archives into root/omniglot, checked by MD5; what is already there and right is kept.

    Args:
        root: the data root.
        progress: a progress bar as pooch drives it, with `total`, `update`, `reset` and `close`.
        base_url: where the archives are.

    Raises:
        DataError: no network, another content than expected, or a different file already there; each says what to
            do by hand. A file is there whole or not at all.
    """
    _download("omniglot", {base_url + name: md5 for name, md5 in MD5.items()}, data_root(root) / "omniglot", progress)
    return _omniglot(data_root(root))


def download_cifar100(root: Path | None, progress: Any = None, base_url: str = CIFAR100) -> list[Row]:
    """The same for the archive of CIFAR-100, of which CIFAR-FS and FC100 are made."""
    _download("cifar100", {base_url + ARCHIVE: CIFAR100_MD5}, data_root(root) / "cifar100", progress)
    return [_named(name, data_root(root)) for name in _OF_CIFAR100]


def _download(what: str, files: dict[str, str], folder: Path, progress: Any) -> None:
    """Fetch files, by URL and MD5; nothing if one of another content is there."""
    for url, md5 in files.items():
        path = folder / url.rpartition("/")[2]
        if path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
            raise DataError(
                f"{path} is there but is not the official file (MD5 {md5}): it is used as it is; to download the "
                "official one, move it away first"
            )
    for url, md5 in files.items():
        _fetch(what, url, md5, folder / url.rpartition("/")[2], progress)


def _fetch(what: str, url: str, md5: str, path: Path, progress: Any) -> None:
    """Download a file of that checksum, over https or from this machine."""
    import pooch  # noqa: PLC0415  # with requests: 0.2 s

    by_hand = f"; get it by hand, put it at {path}, MD5 {md5}, or `bench data add {what} FOLDER`"

    def download(url: str, output: str, mirror: Any) -> None:
        hooks = {"response": lambda response, **_: _check_place(response, url)}
        pooch.HTTPDownloader(progressbar=_Limited(progress, url), timeout=30, hooks=hooks)(url, output, mirror)
        with Path(output).open("rb") as file:
            if looks_like_html(file.read(512)):
                raise DataError(f"{url} answered with a web page instead of the archive (a proxy or log-in?){by_hand}")

    pooch.get_logger().setLevel("WARNING")
    place = urlsplit(url)
    local = place.scheme == "http" and place.hostname in ("127.0.0.1", "::1", "localhost")
    if place.scheme != "https" and not local:
        raise DataError(f"{url} is not https: not downloaded{by_hand}")
    try:
        pooch.retrieve(url, f"md5:{md5}", path.name, path.parent, downloader=download)
    except OSError as error:  # requests' errors, some of which are ValueErrors too, and the disk's
        reason = error.strerror or f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"{url} could not be downloaded to {path.parent} ({reason}){by_hand}") from error
    except ValueError as error:  # pooch's word for another checksum
        raise DataError(f"{url} is not the official file (its MD5 is not {md5}): nothing was kept{by_hand}") from error


def _check_place(response: Any, url: str) -> None:
    """Refuse an answer of another place, to which `url` redirects, if not by https."""
    if urlsplit(response.url).scheme not in ("https", urlsplit(url).scheme):
        raise DataError(f"{url} redirects to {response.url}, which is not https: not downloaded")


class _Limited:
    """Progress that ends a download that is far too long."""

    def __init__(self, progress: Any, url: str) -> None:
        self._progress, self._url, self._count = progress, url, 0
        self.total = 0

    def update(self, increment: int) -> None:
        self._count += increment
        if self._count > MAX_DOWNLOAD:
            raise DataError(
                f"{self._url} sends more than {MAX_DOWNLOAD} bytes: not the official file; nothing was kept"
            )
        if self._progress is not None:
            self._progress.total = self.total
            self._progress.update(increment)

    def reset(self) -> None:
        self._count = 0
        if self._progress is not None:
            self._progress.reset()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()


def add(name: str, path: Path, root: Path | None = None) -> Row:
    """Copy a zip, tar or folder below the data root as the data set `name`, after checking that it loads.

    Args:
        name: 'omniglot' or 'cifar100' (the official archives, or what is in them), a data set whose classes are known,
            or a name of your own; the latter two for images in a layout that `image-folder` knows, or pickles.
        path: a folder, or a zip or tar with such a folder (for omniglot, a folder with its two zips).
        root: the data root.

    Raises:
        DataError: the name is taken or unfit, or the data do not load; then nothing is left behind.
    """
    target = data_root(root).absolute() / name
    if name not in _WHOLE and (not _NAME.fullmatch(name) or name.lower() in _RESERVED):
        raise DataError(
            f"a data set cannot be named '{name}': use letters, digits, '-', '_', '.', and no built-in name"
        )
    if target.exists():
        raise DataError(f"{target} exists: choose another name, or remove it first")
    if not path.exists():
        raise DataError(f"there is no {path}; expected a folder, or a zip or tar with such a folder")
    with _staging(target.parent) as stage:
        staged = stage / name
        if name == "omniglot":
            _copy_omniglot(path, staged)
        elif name == "cifar100":
            _copy_cifar100(path, staged)
        else:
            _copy(_archive(path), staged)
        try:
            reason = _check_loads(name, staged, stage)
        except DataError as error:
            raise DataError(f"{path} was not added: {str(error).replace(str(staged), str(path))}") from error
        staged.rename(target)
    if name == "cifar100":
        return _named(_OF_CIFAR100[0], target.parent)
    row = _omniglot(target.parent) if name == "omniglot" else _rows(target)[0]
    return row._replace(state="needs options", where=f"{row.where}: {reason}") if reason else row


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A folder beside the target that disappears with all that is left in it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".adding-") as stage:
            yield Path(stage)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(
            f"cannot write {root}: it is a file, or below one; name another folder with --data-root"
        ) from error
    except (OSError, shutil.Error) as error:
        raise DataError(f"cannot write {root}: {error}; name another folder with --data-root") from error


def _copy_omniglot(path: Path, target: Path) -> None:
    parts = find_parts(path) if path.is_dir() else []
    if not parts:
        raise DataError(f"{path}: expected a folder with images_background.zip and images_evaluation.zip, or extracted")
    target.mkdir()
    for part in parts:
        if part.path.is_dir():
            _copy(part.path, target / part.path.name)
        else:
            shutil.copy2(part.path, target / part.path.name)


def _copy_cifar100(path: Path, target: Path) -> None:
    place = find_cifar100(path) if path.is_dir() else path
    if place is None:
        raise DataError(f"{path}: expected {ARCHIVE}, or a folder with it or with the files meta, train and test")
    target.mkdir()
    if place.is_dir():
        _copy(place, target / "cifar-100-python")
    else:
        shutil.copy2(place, target / ARCHIVE)


def _archive(path: Path) -> Path:
    """The one archive in a folder that holds nothing else but notes; else the path itself."""
    there = contents(path) if path.is_dir() else []
    archives = [one for one in there if one.suffix.lower() == ".zip" or (one.is_file() and is_tar(one))]
    data = any(one.is_dir() or one.suffix.lower() in (*SUFFIXES, *TABLES) for one in there if one not in archives)
    return archives[0] if len(archives) == 1 and not data else path


def _copy(path: Path, target: Path) -> None:
    """Copy a folder, without clutter, or unpack an archive."""
    if not path.is_dir():
        extract(path, target)
        target.mkdir(exist_ok=True)
        return
    for folder, _, _ in os.walk(path, followlinks=True):
        if not any(map(is_clutter, Path(folder).relative_to(path).parts)):
            contents(Path(folder))  # for links that lead nowhere
    shutil.copytree(path, target, ignore=lambda _, names: [name for name in names if is_clutter(name)])


def _check_loads(name: str, staged: Path, stage: Path) -> str:
    """Load what is staged; why `bench run` would refuse it with its defaults, or nothing.

    Raises:
        DataError: it does not load.
    """
    from robustbench_meta.registry.registry import load_registry  # noqa: PLC0415  # imports torch

    registry = load_registry(local=False)
    if name in _WHOLE:
        for dataset in ("omniglot",) if name == "omniglot" else _OF_CIFAR100:
            registry.make("dataset", dataset, {}).load(stage)
        return ""
    profile = get_profile("quick")  # the default
    for row in _rows(staged):
        plugin, _, options = row.dataset.partition(":")
        chosen = dict(option.split("=", 1) for option in options.split(",")[1:])
        given = {} if plugin in _NAMED else {**chosen, "path": str(staged.absolute())}
        for source in registry.make("dataset", plugin, given).load(stage):
            try:
                source.check(profile.way, profile.shot, profile.query)
            except DataError as error:
                return str(error)
    return ""


def list_data(root: Path | None = None) -> list[Row]:
    """Every built-in data set and every one below the data root, ready or not."""
    where = data_root(root)
    if where.is_file():
        raise DataError(f"{where} is a file; expected the folder that holds data sets: name another with --data-root")
    folders = sorted(path for path in where.iterdir() if path.is_dir()) if where.is_dir() else []
    elsewhere = {*_RESERVED, *_WHOLE, *_NAMED}
    own = [path for path in folders if path.name not in elsewhere and not path.name.startswith(".")]
    built_in = [Row(name, "made when needed", "built in", 0) for name in _BUILT_IN]
    named = (_named(name, where) for name in _NAMED)
    return [*built_in, _omniglot(where), *named, *(row for path in own for row in _own(path))]


def _omniglot(root: Path) -> Row:
    parts = find_parts(root)
    where = ", ".join(str(part.path) for part in parts) or f"{root / 'omniglot'} (bench data download omniglot)"
    states: tuple[State, ...] = ("missing", "incomplete", "ready")
    whole = all(part.path.is_dir() or zipfile.is_zipfile(part.path) for part in parts)
    return Row("omniglot", where, states[len(parts)] if whole else "damaged", sum(size_of(part.path) for part in parts))


def _named(name: str, root: Path) -> Row:
    """A data set whose classes are known: its folder below the data root, or the archive that it is made of."""
    archive = find_cifar100(root / "cifar100") if name in _OF_CIFAR100 else None
    there = root / name if (root / name).is_dir() else archive
    if there is not None:
        return Row(name, str(there), "ready", size_of(there))
    how = "bench data download cifar100" if name in _OF_CIFAR100 else f"bench data add {name} PATH"
    return Row(name, f"{root / name} ({how})", "missing", 0)


def _rows(folder: Path) -> list[Row]:
    """What was added to a folder, by its name."""
    return [_named(folder.name, folder.parent)] if folder.name in _NAMED else _own(folder)


def _own(folder: Path) -> list[Row]:
    """What the user has put there: data sets as pickles, or images."""

    def row(plugin: str, option: str, state: State, size: int | None = None) -> Row:
        named = f"{plugin}:path={folder.name}{option}"
        return Row(named, str(folder), state, size_of(folder) if size is None else size)

    try:
        series = find_series(inner(folder))
        there = contents(inner(folder))
    except DataError:  # explained when it is read
        return [row("pickled", "", "damaged")]
    whole = [one for one in series if len(one.files) == len(PARTS)]
    if whole:
        sizes = {one.name: sum(map(size_of, one.files.values())) for one in whole}
        return [row("pickled", f",series={name}" * (len(series) > 1), "ready", size) for name, size in sizes.items()]
    if series and not any(path.is_dir() or path.suffix.lower() == ".csv" for path in there):
        return [row("pickled", "", "incomplete")]
    state = _state_of_images(folder, "")
    tables = split_tables(inner(folder)) if state == "damaged" else []
    if len(tables) > 1:  # then one has to be chosen
        return [row("image-folder", f",csv={one.name}", _state_of_images(folder, one.name)) for one in tables]
    return [row("image-folder", "", state)]


def _state_of_images(folder: Path, table: str) -> State:
    """Whether each split has the classes and images that `bench run` asks for by default."""
    try:
        listing = list_images(folder, table, None, 0)
    except DataError:
        return "damaged"
    profile = get_profile("quick")  # the default
    sizes = Counter((picture.part, picture.label) for picture in listing.pictures)
    classes = Counter(part for part, _ in sizes)
    fit = min(classes.values()) >= profile.way and min(sizes.values()) >= profile.shot + profile.query
    return "ready" if fit else "needs options"
