"""Pictures by class, as arrays: what image data sets are read into before they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from robustbench_meta.data.cache import Arrays, cached
from robustbench_meta.tasks import ImageBank, Splits, check_disjoint_classes


class Pictures(NamedTuple):
    """All images of class 0 first, then of class 1, ….

    Args:
        images: uint8 [images, channels, height, width].
        counts: int64 [classes]: how many images each class has.
        classes: str [classes]: their names.
    """

    images: np.ndarray
    counts: np.ndarray
    classes: np.ndarray

    @staticmethod
    def stack(by_class: Mapping[str, Sequence[np.ndarray]]) -> Pictures:
        """From lists of equally shaped uint8 images [channels, height, width] by class."""
        images = [image for group in by_class.values() for image in group]
        counts = np.array([len(group) for group in by_class.values()], dtype=np.int64)
        return Pictures(np.stack(images), counts, np.array(list(by_class)))

    def select(self, name: str, chosen: Iterable[int]) -> ImageBank:
        """The classes of these places as the split `name`; without a copy where they lie side by side."""
        places = np.fromiter(chosen, dtype=np.int64)
        ends = np.cumsum(self.counts)
        if len(places) and (np.diff(places) == 1).all():
            images = self.images[ends[places[0]] - self.counts[places[0]] : ends[places[-1]]]
        else:
            images = np.concatenate(
                [self.images[:0], *(self.images[ends[i] - self.counts[i] : ends[i]] for i in places)]
            )
        counts, classes = self.counts[places], self.classes[places]
        return ImageBank(
            name, torch.from_numpy(images), counts.tolist(), classes.tolist(), _fingerprint(images, counts, classes)
        )

    def split(self, name: str, parts: Mapping[str, Sequence[int]]) -> Splits:
        """Train, validation and test by places of classes; checked to share no class."""
        splits = Splits(*(self.select(f"{name} {part}", parts[part]) for part in ("train", "validation", "test")))
        check_disjoint_classes(splits)
        return splits


def cached_pictures(name: str, key: Mapping[str, object], make: Callable[[], Pictures]) -> Pictures:
    """The pictures that `make` returns, kept between runs under everything that they depend on, `key`."""

    def arrays() -> Arrays:
        return make()._asdict()

    stored = cached(name, key, arrays)
    if set(stored) != set(Pictures._fields) or stored["counts"].sum() != len(stored["images"]):
        return make()
    return Pictures(**stored)


def _fingerprint(images: np.ndarray, counts: np.ndarray, classes: np.ndarray) -> str:
    digest = hashlib.sha256(repr((images.shape, counts.tolist(), classes.tolist())).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()[:16]
