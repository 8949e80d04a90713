"""MetaOptNet: a support vector machine as the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Weights
from robustbench_meta.contracts.tasks import Batch

from .protonet import OnFeatures, one_hot
from .r2d2 import LinearHead


class MetaOptNet(OnFeatures):
    """A support vector machine on features as the head."""

    name: ClassVar[str] = "metaoptnet"
    source: ClassVar[str] = "Lee, Maji, Ravichandran, Soatto 2019, arXiv 1904.03758, equations 10 to 12"

    c: float = Field(0.1, gt=0, description="C, the price of slack")
    scale: float = Field(1.0, gt=0, description="factor on the logits, before it is learned")
    iterations: int = Field(100, ge=1, description="steps of the solver (theirs, an interior point, takes 15)")

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ and the scale."""
        return weights | {"learner.scale": torch.tensor(self.scale)}

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> LinearHead:
        """w_k = Σ_n α_nk f(x_n), α from the dual problem."""
        features = model(state, support.x)
        alpha = crammer_singer(features @ features.T, one_hot(support.y, model.way, features), self.c, self.iterations)
        return LinearHead(state, features.T @ alpha)

    def logits(self, model: Model, state: LinearHead, x: Tensor) -> Tensor:
        """γ·w_k·f(x) (equation 12)."""
        return state.theta["learner.scale"] * (model(state.theta, x) @ state.weights)


def crammer_singer(kernel: Tensor, y: Tensor, c: float, iterations: int) -> Tensor:
    """The dual variables α [n, way] of Crammer and Singer's support vector machine.

    Of all with Σ_k α_nk = 0 and α_nk ≤ C·y_nk, they give the least ½ Σ_k α_kᵀKα_k − Σ_nk y_nk α_nk (equations 10, 11),
    for K [n, n] and y [n, way] of 0 and 1.

    By the alternating direction method of multipliers (Boyd et al. 2011): a fixed number of steps, each differentiable
    and the same for all tasks.
    """
    size = kernel.diagonal().mean().clamp_min(1e-6)
    inverse = torch.linalg.inv(kernel + size * torch.eye(len(kernel)).to(kernel))
    bounded, price = torch.zeros_like(y), torch.zeros_like(y)
    for _ in range(iterations):
        free = inverse @ (y + size * (bounded - price))
        free = free - free.mean(1, keepdim=True)
        further = 1.6 * free - 0.6 * bounded  # over-relaxation, section 3.4.3
        bounded = torch.minimum(further + price, c * y)
        price = price + further - bounded
    return bounded


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring metaoptnet."""
    register(MetaOptNet)
