"""The data set my-dataset: your own arrays, one .npy file a class; without any, patterns that it draws itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.errors import DataError
from robustbench_meta.tasks import ImageBank, Splits

CLASSES, IMAGES, SIZE = 50, 20, 28
"""Of what is drawn."""


class MyDataset(Dataset):
    """Arrays of a folder, a .npy file a class; or blurred patterns in noise, if no folder is named."""

    # What one types; `bench list` shows it with the first line above.
    name: ClassVar[str] = "my-dataset"
    source: ClassVar[str] = "where it comes from: a paper, a project"
    # backbone and eps, when the user names none: conv4, and 0.1 in linf. Others suit it better? Say so here:
    # eps: ClassVar = {"linf": "8/255", "l2": 1.0}

    # Options: typed as my-dataset:path=arrays, checked, and part of what identifies a result.
    path: str | None = Field(None, description="folder of .npy files, absolute or below --data-root; none: drawn")

    def load(self, root: Path | None) -> Splits:
        """Three splits of whole classes: of each five, three are for training, one for validation, one for test."""
        arrays = self._read((root or Path()) / self.path) if self.path is not None else _drawn()
        places = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
        labels = {part: [each for n, each in enumerate(arrays) if n % 5 in rests] for part, rests in places.items()}
        if not all(labels.values()):
            raise DataError(f"{self.name}: {self.path} has {len(arrays)} classes; at least 5 are needed, better 50")
        banks = {part: {label: arrays[label] for label in labels[part]} for part in places}
        return Splits(*(_bank(f"{self.name} {part}", banks[part]) for part in places))

    def _read(self, folder: Path) -> dict[str, np.ndarray]:
        """The files by name: uint8 [images, height, width] or [images, channels, height, width], all of one size."""
        files = sorted(folder.glob("*.npy"))
        if not files:
            raise DataError(f"{self.name}: no .npy files in {folder}; expected one a class")
        arrays = {}
        for file in files:
            try:
                array = np.load(file, allow_pickle=False)
            except ValueError as error:
                raise DataError(f"{self.name}: {file} cannot be read as an array: {error}") from error
            if array.dtype != np.uint8 or array.ndim not in (3, 4) or not len(array):
                raise DataError(f"{self.name}: {file} holds {array.dtype} {array.shape}; expected uint8 [images, h, w]")
            arrays[file.stem] = array if array.ndim == 4 else array[:, None]
        if len({array.shape[1:] for array in arrays.values()}) > 1:
            raise DataError(f"{self.name}: the images in {folder} are of several sizes; bring them to one")
        return arrays


def _drawn() -> dict[str, np.ndarray]:
    """A coarse random pattern a class, seen through noise: uint8 [images, 1, size, size]; always the same."""
    arrays = {}
    for number in range(CLASSES):
        rng = np.random.default_rng(number)
        pattern = np.kron(rng.random((7, 7)), np.ones((SIZE // 7, SIZE // 7)))
        noisy = pattern + 0.2 * rng.standard_normal((IMAGES, 1, SIZE, SIZE))
        arrays[f"pattern {number}"] = (255 * noisy).clip(0, 255).astype(np.uint8)
    return arrays


def _bank(name: str, arrays: dict[str, np.ndarray]) -> ImageBank:
    """One split. Its fingerprint identifies results: it must change when the images do."""
    images = np.concatenate(list(arrays.values()))
    digest = hashlib.sha256(f"{name} {list(arrays)} {images.shape}".encode() + images.tobytes()).hexdigest()[:16]
    counts = [len(array) for array in arrays.values()]
    return ImageBank(name, torch.from_numpy(images), counts, list(arrays), digest)


@hookimpl
def register_datasets(register: Callable[[type[Dataset]], None]) -> None:
    """Bring `my-dataset`."""
    register(MyDataset)
