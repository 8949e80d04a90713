"""Pictures by class, as arrays: what image data sets are read into before they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from robustbench_meta.contracts.tasks import Splits, check_disjoint_classes
from robustbench_meta.data.array_cache import Arrays, cached
from robustbench_meta.data.copies import PARTS, Copies, resolve_copies
from robustbench_meta.data.image_bank import ImageBank


class Pictures(NamedTuple):
    """All images of class 0 first, then of class 1, ….

    Args:
        images: uint8 [images, channels, height, width].
        counts: int64 [classes]: how many images each class has.
        classes: str [classes]: their names.
        digests: uint8 [images, 16], of the bytes that the images were read from; empty where nothing was read.
        names: str [images]: what messages call them.
    """

    images: np.ndarray
    counts: np.ndarray
    classes: np.ndarray
    digests: np.ndarray = np.empty((0, 16), np.uint8)
    names: np.ndarray = np.empty(0, "U1")

    @staticmethod
    def stack(
        by_class: Mapping[str, Sequence[np.ndarray]],
        digests: Sequence[np.ndarray] | None = None,
        names: Sequence[str] | None = None,
    ) -> Pictures:
        """From lists of equally shaped uint8 images [channels, height, width] by class."""
        images = [image for group in by_class.values() for image in group]
        counts = np.array([len(group) for group in by_class.values()], dtype=np.int64)
        made = Pictures(np.stack(images), counts, np.array(list(by_class)))
        return made if digests is None else made._replace(digests=np.stack(digests), names=np.array(names))

    def select(self, name: str, chosen: Iterable[int], stays: np.ndarray | None = None, copies: str = "") -> ImageBank:
        """The classes of these places as the split `name`; without a copy where their images lie side by side.

        Args:
            name: which split of which data set.
            chosen: places of classes.
            stays: which of all images are not dropped; None: all.
            copies: what was done about equal images of this split.
        """
        places = np.fromiter(chosen, dtype=np.int64)
        ends = np.cumsum(self.counts)
        rows = [np.arange(ends[place] - self.counts[place], ends[place]) for place in places]
        if stays is not None:
            rows = [each[stays[each]] for each in rows]
        whole = np.concatenate([*rows, np.empty(0, np.int64)])
        beside = len(whole) > 0 and bool((np.diff(whole) == 1).all())
        images = self.images[whole[0] : whole[-1] + 1] if beside else self.images[whole]
        counts, classes = np.array([len(each) for each in rows], dtype=np.int64), self.classes[places]
        fingerprint = _fingerprint(images, counts, classes)
        return ImageBank(name, torch.from_numpy(images), counts.tolist(), classes.tolist(), fingerprint, copies)

    def split(self, name: str, parts: Mapping[str, Sequence[int]], copies: Copies = "drop") -> Splits:
        """Train, validation and test by places of classes; checked to share no class, nor an image by the rule."""
        stays, told = None, dict.fromkeys(PARTS, "")
        if len(self.digests):
            part_of = {place: part for part in PARTS for place in parts[part]}
            classes = np.repeat(np.arange(len(self.counts)), self.counts)
            used = np.flatnonzero(np.isin(classes, list(part_of)))
            found = resolve_copies(
                self.digests[used], [part_of[place] for place in classes[used].tolist()],
                self.classes[classes[used]].tolist(), self.names[used].tolist(), copies, name,
            )  # fmt: skip
            stays, told = np.ones(len(classes), dtype=bool), found.told
            stays[used] = found.stays
        splits = Splits(*(self.select(f"{name} {part}", parts[part], stays, told[part]) for part in PARTS))
        check_disjoint_classes(splits)
        return splits


def cached_pictures(name: str, key: Mapping[str, object], make: Callable[[], Pictures]) -> Pictures:
    """The pictures that `make` returns, kept between runs under everything that they depend on, `key`."""

    def arrays() -> Arrays:
        return make()._asdict()

    stored = cached(name, {**key, "fields": Pictures._fields}, arrays)
    if set(stored) != set(Pictures._fields) or stored["counts"].sum() != len(stored["images"]):
        return make()
    return Pictures(**stored)


def _fingerprint(images: np.ndarray, counts: np.ndarray, classes: np.ndarray) -> str:
    digest = hashlib.sha256(repr((images.shape, counts.tolist(), classes.tolist())).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()[:16]
