"""Meta-SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Weights
from robustbench_meta.contracts.inner_loop import Rate

from .maml import MAML

RATE = "learner.rate."


class MetaSGD(MAML):
    """MAML with a learned rate for each single weight."""

    name: ClassVar[str] = "meta-sgd"
    source: ClassVar[str] = "Li, Zhou, Chen, Li 2017, arXiv 1707.09835, algorithm 1"

    alpha: float = Field(0.4, gt=0, description="rates begin uniformly distributed between a tenth of it and it")

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ and, as large as θ, the rates."""
        low = 0.1 * self.alpha
        return weights | {RATE + name: low + (self.alpha - low) * torch.rand(w.shape) for name, w in weights.items()}

    def rates(self, model: Model, theta: Weights, alpha: float) -> Rate:
        """The learned ones."""
        return {name.removeprefix(RATE): rate for name, rate in theta.items() if name.startswith(RATE)}


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring meta-sgd."""
    register(MetaSGD)
