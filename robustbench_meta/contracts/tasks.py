"""Tasks (episodes): a batch of them, and seeded sampling of them on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_meta.errors import DataError


class Batch(NamedTuple):
    """Images and their labels: x [(tasks,) n, *shape] in [0, 1], y [(tasks,) n] in 0 … way−1."""

    x: Tensor
    y: Tensor


def gathered(values: Tensor, index: Tensor) -> Tensor:
    """Values [tasks, n, …] at index [tasks, m]: [tasks, m, …]."""
    deep = index.reshape(*index.shape, *(1,) * (values.dim() - 2)).expand(*index.shape, *values.shape[2:])
    return values.gather(1, deep)


class TaskBatch(NamedTuple):
    """Tasks side by side: support [tasks, way·shot, …] and query [tasks, way·query, …]."""

    support: Batch
    query: Batch

    def part(self, which: slice) -> TaskBatch:
        """Some of the tasks."""
        return TaskBatch(*(Batch(batch.x[which], batch.y[which]) for batch in self))

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return self.support.x.shape[0]


class TaskSource(ABC):
    """One split (train, validation or test) of a data set, from which tasks are drawn."""

    name: str
    """Which split of which data set, for messages."""
    shape: tuple[int, ...]
    """Shape of one example: (channels, height, width), or (features,)."""
    classes: Sequence[str]
    """Names of the classes; no two splits of a data set share one."""
    fingerprint: str
    """Changes whenever the data changes: part of what identifies a result."""
    copies: str = ""
    """What was done about equal images, as rows say it: '3 dropped', '3 kept', or nothing."""

    @abstractmethod
    def check(self, way: int, shot: int, query: int) -> None:
        """Raise DataError when such tasks cannot be drawn from this split."""

    @abstractmethod
    def to(self, device: torch.device) -> TaskSource:
        """The same source with its data on `device`."""

    @abstractmethod
    def sample(self, seeds: Sequence[int], way: int, shot: int, query: int, tasks_per_seed: int = 1) -> TaskBatch:
        """Draw `tasks_per_seed` tasks from each seed; a seed always gives the same tasks.

        Queries come in an order that tells nothing of their class; support images may be sorted, since their
        labels are given.
        """

    def examples(self, seed: int, count: int) -> Batch:
        """So many examples of all classes, x [count, *shape], y [count] of 0 … classes−1, for supervised training.

        Raises:
            DataError: the split has no fixed classes.
        """
        raise DataError(f"{self.name} gives tasks only, and no batches of its classes, as supervised training needs")


class Splits(NamedTuple):
    """The three splits of a data set, disjoint in class."""

    train: TaskSource
    validation: TaskSource
    test: TaskSource


def check_images(name: str, tasks: TaskBatch, way: int) -> None:
    """Raise DataError unless a split's tasks have images in [0, 1], which attacks stay in, and labels below `way`."""
    for what, (x, y) in zip(("support", "query"), tasks, strict=True):
        low, high = (float(end) for end in x.aminmax())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{name}: the {what} images of a task lie in [{low:.4g}, {high:.4g}]; expected [0, 1], where attacks "
                "stay: scale them to it in the data set, and normalise them in the backbone"
            )
        least, most = (int(end) for end in y.aminmax())
        if least < 0 or most >= way:
            raise DataError(f"{name}: the {what} labels of a task are {least} to {most}; expected 0 to {way - 1}")


def check_disjoint_classes(splits: Splits) -> None:
    """Raise DataError when two splits share a class."""
    check_disjoint({source.name: source.classes for source in splits})


def check_disjoint(classes: Mapping[str, Iterable[str]]) -> None:
    """Raise DataError when two splits, by name, share a class."""
    owner: dict[str, str] = {}
    for name, labels in classes.items():
        for label in labels:
            if owner.setdefault(label, name) != name:
                raise DataError(f"class '{label}' is both in {owner[label]} and in {name}; splits must share no class")
