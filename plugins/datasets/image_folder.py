"""The user's own images: one folder a class, or CSV files as miniImageNet's users have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits
from robustbench_meta.data.copies import ABOUT, PARTS, Copies
from robustbench_meta.data.image_folder import list_images
from robustbench_meta.data.pictures import cached_pictures
from robustbench_meta.runtime.paths import find_folder, spelling


class ImageFolder(Dataset):
    """Your own images: a folder a class, or train.csv, val.csv and test.csv beside images/."""

    name = "image-folder"
    source = "split CSVs: Ravi and Larochelle 2017"
    eps: ClassVar = {"linf": "8/255", "l2": 3.0}

    path: str = Field("", description="the folder: absolute, below the data root, or from here")
    csv: str = Field("", description="one split CSV (filename,label,split) in the folder")
    size: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="height and width in pixels; without: the longest side of all images, at most 84",
    )
    channels: Literal[1, 3] = Field(3, description="3 for colour, 1 for grey")
    fit: Literal["squash", "crop"] = Field("squash", description="the whole image, or its central square")
    split: str = Field(
        "auto",
        description="train:validation:test shares of the classes, where nothing else says; auto: 64:16:20, and where "
        "there are enough at least five each",
    )
    split_seed: int = Field(0, ge=0, description="seed of that division")

    copies: Copies = Field("drop", description=ABOUT)

    @field_validator("channels", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdigit() else value

    @field_validator("split")
    @classmethod
    def _shares(cls, value: str) -> str:
        if value == "auto":
            return value
        parts = value.split(":")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ValueError("expected auto, or three whole numbers above 0, as in 64:16:20")
        return value

    def placed(self, root: Path | None) -> Dataset:
        """However its folder was typed."""
        path = spelling(find_folder(self.name, self.path, root), root)
        return self.model_copy(update={"path": path, "csv": str(PurePath(self.csv)) if self.csv else ""})

    def load(self, root: Path | None) -> Splits:
        """Read all images, resized; classes, files and splits are checked first."""
        folder = find_folder(self.name, self.path, root)
        shares = None if self.split == "auto" else [int(share) for share in self.split.split(":")]
        listing = list_images(folder, self.csv, shares, self.split_seed)
        key = {**self.model_dump(exclude={"path", "copies"}), "state": listing.state()}
        pictures = cached_pictures(
            "image-folder", key, lambda: listing.read(self.size, self.channels, self.fit, self.copies)
        )
        place = {label: i for i, label in enumerate(pictures.classes.tolist())}
        parts = {part: [place[label] for label in listing.labels(part)] for part in PARTS}
        return pictures.split(f"image-folder {folder.name}", parts, self.copies)


@hookimpl
def register_datasets(register: Callable[[type[Any]], None]) -> None:
    """Bring the user's own images."""
    register(ImageFolder)
