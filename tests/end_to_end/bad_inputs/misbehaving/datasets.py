"""Data sets that load as plugins, and break their contract when they are read."""

import torch

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Batch, Splits, TaskBatch
from robustbench_meta.data.image_bank import ImageBank


def bank(part, classes, counts=(8, 8, 8, 8, 8)):
    images = torch.zeros(sum(counts), 1, 4, 4, dtype=torch.uint8)
    return ImageBank(part, images, counts, classes, "none")


class Leaking(Dataset):
    """Has a class in two splits."""

    name = "leaking"

    def load(self, root):
        return Splits(bank("training", "abcde"), bank("validation", "fghij"), bank("test", "jklmn"))


class Uncounted(Dataset):
    """Has fewer images than it says."""

    name = "uncounted"

    def load(self, root):
        return Splits(*(ImageBank(p, torch.zeros(9, 1, 4, 4, dtype=torch.uint8), [5, 5], "ab", "none") for p in "tvs"))


class Forgetful(Dataset):
    """Returns nothing."""

    name = "forgetful"

    def load(self, root):
        bank("train", "abcde")


class Raising(Dataset):
    """Raises."""

    name = "raising"

    def load(self, root):
        raise KeyError("labels")


class Normalised(Dataset):
    """Gives images by mean and deviation, not in [0, 1]."""

    name = "normalised"

    def load(self, root):
        class Bank(ImageBank):
            def sample(self, *asked, **named):
                return TaskBatch(*(Batch((x - 0.5) / 0.25, y) for x, y in super().sample(*asked, **named)))

        images = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
        return Splits(*(Bank(part, images, [8] * 5, [f"{part}{n}" for n in range(5)], part) for part in "tvs"))


@hookimpl
def register_datasets(register):
    for dataset in (Leaking, Uncounted, Forgetful, Raising, Normalised):
        register(dataset)
