"""The images of one split, on the device, from which tasks are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from robustbench_meta.contracts.tasks import Batch, TaskBatch, TaskSource
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.devices import send


class ImageBank(TaskSource):
    """Images of one split, resident on the device as uint8, grouped by class.

    Args:
        name: which split of which data set.
        images: uint8 [images, channels, height, width], all images of class 0 first, then class 1, …
        counts: how many images each class has, in order.
        classes: the names of the classes, in order.
        fingerprint: of all that.
        copies: what was done about equal images.
    """

    def __init__(
        self,
        name: str,
        images: UInt8[Tensor, "images c h w"],
        counts: Sequence[int],
        classes: Sequence[str],
        fingerprint: str,
        copies: str = "",
    ) -> None:
        if len(counts) != len(classes) or sum(counts) != len(images):
            raise DataError(
                f"{name}: {len(images)} images, {len(classes)} class names, counts of {len(counts)} classes "
                f"that sum to {sum(counts)}: these do not fit together"
            )
        if images.dtype != torch.uint8 or not len(counts) or min(counts) < 1:
            raise DataError(
                f"{name}: expected uint8 images of at least one class, and at least one image of each class"
            )
        self.name, self.images, self.classes = name, images, list(classes)
        self.fingerprint, self.copies = fingerprint, copies
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        self.shape = tuple(images.shape[1:])

    def check(self, way: int, shot: int, query: int) -> None:
        """Raise DataError when the split has too few classes, or too few images in its smallest class."""
        if min(way, shot, query) < 1:
            raise DataError(
                f"{self.name}: way {way}, shot {shot}, query {query} were given; at least 1 of each is needed"
            )
        if way > len(self.classes):
            raise DataError(f"{self.name} has {len(self.classes)} classes; a {way}-way task needs {way}: lower --way")
        smallest = int(self.counts.min())
        if shot + query > smallest:
            advice = "lower --shot or --query" if smallest > 1 else "remove the class, or add images"
            has = f"{smallest} image{'s' * (smallest > 1)}"
            raise DataError(
                f"{self.name}: class '{self.classes[int(self.counts.argmin())]}' has {has}; "
                f"{shot} support + {query} query images a class need {shot + query}: {advice}"
            )

    def to(self, device: torch.device) -> ImageBank:
        """The same bank with its images on `device`."""
        moved = copy(self)
        moved.images = self.images.to(device)
        return moved

    def draw(
        self, seed: int, tasks: int, way: int, shot: int, query: int
    ) -> tuple[Int64[np.ndarray, "{tasks} {way} {shot+query}"], Int64[np.ndarray, "{tasks} {way*query}"]]:
        """Indices of images, `way` classes a task and `shot`+`query` images a class, without replacement.

        Second, the order of a task's queries: places among those sorted by class.
        """
        rng = np.random.Generator(np.random.Philox(seed))
        classes = _choose(rng.random((tasks, len(self.classes))), way)
        keys = rng.random((tasks, way, int(self.counts.max())))
        keys[np.arange(keys.shape[2]) >= self.counts[classes][..., None]] = 2.0  # places past a smaller class's end
        index: np.ndarray = self.starts[classes][..., None] + _choose(keys, shot + query)
        queries = way * query
        return index, _choose(rng.random((tasks, queries)), queries)

    def sample(self, seeds: Sequence[int], way: int, shot: int, query: int, tasks_per_seed: int = 1) -> TaskBatch:
        """Draw tasks by index and gather their images on the device; support and query share no image.

        Raises:
            DataError: too few classes or images, as in `check`.
        """
        self.check(way, shot, query)
        drawn = [self.draw(seed, tasks_per_seed, way, shot, query) for seed in seeds]
        index, order = (np.concatenate(part) for part in zip(*drawn, strict=True))
        _check_disjoint(self.name, index)
        tasks, cut = len(index), way * shot
        support = index[:, :, :shot].reshape(tasks, cut)
        asked = np.take_along_axis(index[:, :, shot:].reshape(tasks, -1), order, 1)
        sent = send(np.concatenate([support, asked, order // query], 1), self.images.device)
        labels = (torch.arange(cut, device=sent.device) // shot).expand(tasks, -1)
        return TaskBatch(
            Batch(self._gather(sent[:, :cut]), labels),
            Batch(self._gather(sent[:, cut : cut + order.shape[1]]), sent[:, cut + order.shape[1] :]),
        )

    def examples(self, seed: int, count: int) -> Batch:
        """Draw images with equal chances, without replacement where there are enough."""
        rng = np.random.Generator(np.random.Philox(seed))
        index = rng.choice(len(self.images), count, replace=count > len(self.images))
        labels = np.searchsorted(self.starts, index, side="right") - 1
        sent = send(np.stack([index, labels]), self.images.device)
        return Batch(self._gather(sent[:1])[0], sent[1])

    def _gather(self, index: Int64[Tensor, "tasks n"]) -> Float[Tensor, "tasks n c h w"]:
        return self.images.index_select(0, index.reshape(-1)).float().div_(255).view(*index.shape, *self.shape)


def _choose(keys: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` smallest keys on the last axis, in the order of the keys."""
    if count < keys.shape[-1]:
        near = np.argpartition(keys, count - 1, axis=-1)[..., :count]
    else:
        near = np.broadcast_to(np.arange(keys.shape[-1]), keys.shape)
    order = np.argsort(np.take_along_axis(keys, near, -1), axis=-1)
    return np.take_along_axis(near, order, -1)


def _check_disjoint(name: str, index: np.ndarray) -> None:
    """Raise unless no image occurs twice in a task: within or between support and query."""
    ordered = np.sort(index.reshape(len(index), -1), axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise DataError(f"{name}: an image was drawn twice in one task; support and query must be disjoint")
