"""Pictures by class, as arrays: what image data sets are read into before they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from robustbench_meta.contracts.tasks import Splits, check_disjoint
from robustbench_meta.data.array_cache import cached
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

    def split(self, name: str, parts: Mapping[str, Sequence[int]], copies: Copies = "drop") -> Splits:
        """Train, validation and test by places of classes; checked to share no class, nor an image by the rule."""
        check_disjoint({f"{name} {part}": self.classes[list(parts[part])].tolist() for part in PARTS})
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        stays, notes = np.ones(len(owner), dtype=bool), dict.fromkeys(PARTS, "")
        if len(self.digests):
            part_of = {place: part for part in PARTS for place in parts[part]}
            used = np.flatnonzero(np.isin(owner, list(part_of)))
            stays[used], notes = resolve_copies(
                self.digests[used], [part_of[place] for place in owner[used].tolist()],
                self.classes[owner[used]].tolist(), self.names[used].tolist(), copies, name,
            )  # fmt: skip
        return Splits(*(self._select(f"{name} {part}", parts[part], stays, notes[part]) for part in PARTS))

    def _select(self, name: str, places: Sequence[int], stays: np.ndarray, copies: str) -> ImageBank:
        """The classes of these places, without what does not stay; a view where their images lie side by side."""
        ends = np.cumsum(self.counts)
        rows = [np.arange(ends[place] - self.counts[place], ends[place]) for place in places]
        rows = [each[stays[each]] for each in rows]
        chosen = np.concatenate([*rows, np.empty(0, np.int64)])
        adjacent = len(chosen) > 0 and bool((np.diff(chosen) == 1).all())
        images = self.images[chosen[0] : chosen[-1] + 1] if adjacent else self.images[chosen]
        counts, classes = [len(each) for each in rows], self.classes[list(places)].tolist()
        digest = hashlib.sha256(repr((images.shape, counts, classes)).encode())
        digest.update(np.ascontiguousarray(images).data)
        return ImageBank(name, torch.from_numpy(images), counts, classes, digest.hexdigest()[:16], copies)


def cached_pictures(name: str, key: Mapping[str, object], make: Callable[[], Pictures]) -> Pictures:
    """The pictures that `make` returns, kept between runs under everything that they depend on, `key`."""
    return Pictures(**cached(name, {**key, "fields": Pictures._fields}, lambda: make()._asdict()))
