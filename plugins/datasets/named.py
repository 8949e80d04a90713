"""The field's data sets by name: CIFAR-FS, FC100, miniImageNet, tieredImageNet and CUB."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits
from robustbench_meta.data.cifar100 import find_cifar100, read_cifar100
from robustbench_meta.data.copies import ABOUT, PARTS, Copies
from robustbench_meta.data.image_folder import ImageFile, Listing, inner, list_images
from robustbench_meta.data.pickled import choose_series, find_series, read_series
from robustbench_meta.data.pictures import Pictures, cached_pictures
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import contents, data_root

CLASSES: Mapping[str, Mapping[str, list[str]]] = json.loads(
    resources.files(__package__).joinpath("classes.json").read_text("utf-8")
)
"""By data set, the names of the classes of each split (the lists are those of torchmeta, MIT)."""


class Named(Dataset):
    """A data set whose classes and splits are known; its images lie in a folder of its name below the data root."""

    eps: ClassVar = {"linf": "8/255", "l2": 3.0}  # l2: for 84×84
    cifar: ClassVar[bool] = False
    """Whether it is made of CIFAR-100."""

    size: int | None = Field(
        None, ge=4, le=1024, description="height and width in pixels; without: the longest side of all, at most 84"
    )
    fit: Literal["squash", "crop"] = Field("squash", description="the whole image, or its central square")
    copies: Copies = Field("drop", description=ABOUT)

    def load(self, root: Path | None) -> Splits:
        """The splits by the lists of classes; pickles, which are split already, as they are.

        Raises:
            DataError: nothing is there, a class is missing, or images whose size is fixed are to have another.
        """
        folder = data_root(root) / self.name
        archive = find_cifar100(data_root(root) / "cifar100") if self.cifar else None
        if not folder.is_dir():
            if archive is None:
                raise DataError(self._where_from(folder))
            self._check_fixed(f"the images of {archive} are 32×32")
            return self._split(read_cifar100(archive), str(archive))
        folder = folder / "data" if (folder / "data").is_dir() else folder  # beside `splits`, as Bertinetto et al.
        if find_series(inner(folder)):
            self._check_fixed(f"{folder} has pickles, whose images are read as they are")
            return read_series(choose_series(inner(folder), ""), self.name, self.copies)
        listing = self._listing(folder)
        key = {**self.model_dump(exclude={"copies"}), "state": listing.state()}
        pictures = cached_pictures(self.name, key, lambda: listing.read(self.size, 3, self.fit, self.copies))
        return self._split(pictures, str(folder))

    def _check_fixed(self, why: str) -> None:
        if self.size is not None or self.fit != "squash":
            raise DataError(f"{self.name}: {why}: the options size and fit are for folders of images")

    def _listing(self, folder: Path) -> Listing:
        """The images of the classes that are listed, however the folder splits them."""
        folder = inner(folder)
        if (folder / "images").is_dir() and any(path.is_dir() for path in contents(folder / "images")):
            folder = folder / "images"  # as CUB has them, beside other folders
        part_of = {label: part for part, labels in CLASSES[self.name].items() for label in labels}
        listing = list_images(folder, "", (1, 1, 1), 0)
        files = [
            ImageFile(picture.path, picture.label, part_of[picture.label])
            for picture in listing.pictures
            if picture.label in part_of
        ]
        self._check_whole(
            {file.label for file in files}, f"{folder}; expected a folder of images for each, of that name"
        )
        files.sort(key=lambda file: (PARTS.index(file.part), file.label, file.path))
        return Listing(listing.folder, files)

    def _split(self, pictures: Pictures, where: str) -> Splits:
        place = {label: index for index, label in enumerate(pictures.classes.tolist())}
        self._check_whole(place, where)
        parts = {part: [place[label] for label in labels] for part, labels in CLASSES[self.name].items()}
        return pictures.split(self.name, parts, self.copies)

    def _check_whole(self, classes: Collection[str], where: str) -> None:
        """Raise DataError unless all classes that are listed are there."""
        listed = [label for labels in CLASSES[self.name].values() for label in labels]
        if missing := sorted(set(listed) - set(classes)):
            shown = ", ".join(missing[:5]) + " …" * (len(missing) > 5)
            raise DataError(f"{self.name}: {len(missing)} of {len(listed)} classes are missing ({shown}) in {where}")

    def _where_from(self, folder: Path) -> str:
        add = f"`bench data add {self.name} PATH` takes a folder or archive with a folder of images for each class"
        if self.cifar:
            add = (
                "`bench data download cifar100`, or `bench data add cifar100 cifar-100-python.tar.gz`, gets the images "
                f"of CIFAR-100; {add}"
            )
        return f"{self.name} is not at {folder}: {add}"


class CIFARFS(Named):
    """CIFAR-100 with 64, 16 and 20 classes, drawn at random, for training, validation and test."""

    name = "cifar-fs"
    source = "Bertinetto et al. 2019, arXiv 1805.08136"
    eps: ClassVar = {"linf": "8/255", "l2": 1.0}
    cifar: ClassVar[bool] = True


class FC100(Named):
    """CIFAR-100 with 60, 20 and 20 classes, split by superclass: the test's are further from the training's."""

    name = "fc100"
    source = "Oreshkin, Rodríguez López, Lacoste 2018, arXiv 1805.10123"
    eps: ClassVar = {"linf": "8/255", "l2": 1.0}
    cifar: ClassVar[bool] = True


class MiniImageNet(Named):
    """100 classes of ImageNet with 600 images each: 64, 16 and 20."""

    name = "mini-imagenet"
    source = "Vinyals et al. 2016; split: Ravi and Larochelle 2017"


class TieredImageNet(Named):
    """608 classes of ImageNet, split by 34 categories above them: 351, 97 and 160."""

    name = "tiered-imagenet"
    source = "Ren et al. 2018, arXiv 1803.00676"


class CUB(Named):
    """200 species of birds: 100, 50 and 50."""

    name = "cub"
    source = "Wah et al. 2011; split: Chen et al. 2019, arXiv 1904.04232"


@hookimpl
def register_datasets(register: Callable[[type[Any]], None]) -> None:
    """Bring the five."""
    for dataset in (CIFARFS, FC100, MiniImageNet, TieredImageNet, CUB):
        register(dataset)
