"""A data set in one file: sine gratings, a class for each orientation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits
from robustbench_meta.data.image_bank import ImageBank

ORIENTATIONS = 60


class Gratings(Dataset):
    """Sine gratings of random phase in noise; a class is an orientation."""

    # What is typed; `bench list` shows it with the first line above.
    name: ClassVar[str] = "gratings"
    source: ClassVar[str] = "an example of robustbench_meta"

    # Options: typed as gratings:noise=0.3, checked, and part of what identifies a result.
    images: int = Field(20, ge=2, description="images a class")
    size: int = Field(28, ge=8, description="height and width")
    noise: float = Field(0.1, ge=0, description="standard deviation of the noise")

    def load(self, root: Path | None) -> Splits:
        """Every third orientation is for validation or test; no class is in two splits. `root` is not needed."""
        parts = {"train": [1, 2, 4, 5], "validation": [0], "test": [3]}
        return Splits(*(self._bank(part, rests) for part, rests in parts.items()))

    def _bank(self, part: str, rests: list[int]) -> ImageBank:
        chosen = [number for number in range(ORIENTATIONS) if number % 6 in rests]
        images = np.concatenate([self._draw(number) for number in chosen])[:, None]
        classes = [f"{180 * number / ORIENTATIONS:g} degrees" for number in chosen]
        fingerprint = f"gratings-1-{part}-{self.images}-{self.size}-{self.noise}"
        return ImageBank(
            f"gratings {part}", torch.from_numpy(images), [self.images] * len(chosen), classes, fingerprint
        )

    def _draw(self, number: int) -> np.ndarray:
        """The images of one class [images, size, size], uint8; drawn from the class's own seed."""
        rng = np.random.default_rng(number)
        angle = np.pi * number / ORIENTATIONS
        y, x = np.mgrid[: self.size, : self.size] / self.size
        phase = rng.uniform(0, 2 * np.pi, (self.images, 1, 1))
        waves = 0.5 + 0.4 * np.sin(8 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        noisy: np.ndarray = 255 * (waves + self.noise * rng.standard_normal(waves.shape))
        return noisy.clip(0, 255).astype(np.uint8)


@hookimpl
def register_datasets(register: Callable[[type[Dataset]], None]) -> None:
    """Bring `gratings`."""
    register(Gratings)
