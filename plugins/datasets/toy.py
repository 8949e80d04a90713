"""The tutorial's toy: features without any relation to the labels; a negative control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Batch, Splits, TaskBatch, TaskSource
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.devices import send
from robustbench_meta.runtime.seeds import seed_from

WAY = 2


class Toy(Dataset):
    """Random features, labels by a fair coin: nothing can be learned, accuracy must stay at 50 %."""

    name = "toy"
    source = "the ADML tutorial's example: 50 features, squared loss, linear model"
    loss = "squared"
    backbone = "linear"
    eps: ClassVar = {"linf": 0.001}
    way = WAY

    features: int = Field(50, ge=1, le=100_000, description="random features of an example")

    def load(self, root: Path | None) -> Splits:
        """Three endless splits; `root` is not used."""
        return Splits(*(CoinTasks(part, self.features) for part in ("train", "validation", "test")))


class CoinTasks(TaskSource):
    """Tasks of x ~ U[0, 1]^features and y a fair coin for each example, independent of x; drawn from the seeds."""

    def __init__(self, part: str, features: int, device: torch.device | None = None) -> None:
        self.part, self.features, self.device = part, features, device or torch.device("cpu")
        self.name, self.shape = f"toy {part}", (features,)
        self.classes = [f"{part}/tails", f"{part}/heads"]
        self.fingerprint = f"toy-1-{part}-{features}"

    def check(self, way: int, shot: int, query: int) -> None:
        """Raise DataError unless tasks have the coin's two sides."""
        if way != WAY:
            raise DataError(
                f"{self.name}: labels are the two sides of a coin; {way}-way was asked for: use --way {WAY}"
            )
        if shot < 1 or query < 1:
            raise DataError(f"{self.name}: --shot {shot} and --query {query} were given; at least 1 of each is needed")

    def to(self, device: torch.device) -> CoinTasks:
        """The same tasks, delivered on `device` (drawn on the CPU, so that they are the same everywhere)."""
        return CoinTasks(self.part, self.features, device)

    def sample(self, seeds: Sequence[int], way: int, shot: int, query: int, tasks_per_seed: int = 1) -> TaskBatch:
        """Draw tasks: support x [tasks, way·shot, features] and y [tasks, way·shot]; query likewise."""
        self.check(way, shot, query)
        cut, examples = way * shot, way * (shot + query)
        drawn = [self._draw(seed, tasks_per_seed, examples) for seed in seeds]
        x = send(np.concatenate([one[0] for one in drawn]), self.device)
        y = send(np.concatenate([one[1] for one in drawn]), self.device)
        return TaskBatch(Batch(x[:, :cut], y[:, :cut]), Batch(x[:, cut:], y[:, cut:]))

    def _draw(self, seed: int, tasks: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(seed_from("toy", self.part, seed)))
        x = rng.random((tasks, examples, self.features), dtype=np.float32)
        return x, rng.integers(0, WAY, (tasks, examples))


@hookimpl
def register_datasets(register: Callable[[type[Any]], None]) -> None:
    """Bring the toy."""
    register(Toy)
