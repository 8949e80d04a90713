"""A training attack held still, so that an objective is a function of θ alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from robustbench_meta.contracts import Random
from robustbench_meta.engine.attacked_model import Perturbation, Target


class FrozenAttack:
    """A training attack whose images are computed once and held: they are data, not a function of θ."""

    def __init__(self, attack: Perturbation) -> None:
        self._attack = attack
        self._images: list[Tensor] = []
        self._calls: Iterator[Tensor] = iter(())
        self._filled = False
        self.only: int | None = None

    def rewind(self) -> None:
        """The next call is the first one of an objective."""
        self._filled = bool(self._images)
        self._calls = iter(self._images)

    def __call__(self, model: Target, x: Tensor, y: Tensor, random: Random, start: Tensor | None = None) -> Tensor:
        """What the attack found when it was first called in this place."""
        if self._filled:
            images = next(self._calls)
            return images if self.only is None else images[self.only : self.only + 1]
        self._images.append(self._attack(model, x, y, random, start))
        return self._images[-1]
