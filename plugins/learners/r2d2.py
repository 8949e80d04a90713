"""Meta-learning with differentiable closed-form solvers: ridge regression."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Weights
from robustbench_meta.contracts.tasks import Batch

from .protonet import OnFeatures, one_hot


class LinearHead(NamedTuple):
    """The adapted state: θ, and the weights [features, way] of a linear head that was solved for."""

    theta: Weights
    weights: Tensor


class R2D2(OnFeatures):
    """Ridge regression on features as the head."""

    name: ClassVar[str] = "r2d2"
    source: ClassVar[str] = "Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv 1805.08136, equations 4 to 6"

    ridge: float = Field(1.0, gt=0, description="λ, before it is learned")
    scale: float = Field(10.0, gt=0, description="factor on the logits, before it is learned")

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ, log λ, and the scale of the logits."""
        return weights | {"learner.log_ridge": torch.tensor(log(self.ridge)), "learner.scale": torch.tensor(self.scale)}

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> LinearHead:
        """W = argmin ‖XW − Y‖²/n + λ‖W‖², X the support features beside a column of ones."""
        x = with_ones(model(state, support.x))
        return LinearHead(
            state, ridge_regression(x, one_hot(support.y, model.way, x), state["learner.log_ridge"].exp())
        )

    def logits(self, model: Model, state: LinearHead, x: Tensor) -> Tensor:
        """s·f(x)W (equation 6, without its shift of all logits, which changes no prediction)."""
        return state.theta["learner.scale"] * (with_ones(model(state.theta, x)) @ state.weights)


def with_ones(features: Tensor) -> Tensor:
    """The features [n, d] beside a column of ones [n, d + 1]."""
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)


def ridge_regression(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """Argmin over W of ‖XW − Y‖²/n + λ‖W‖², for x [n, d], y [n, way]: by the smaller of the two systems (Woodbury)."""
    x, y = x / len(x) ** 0.5, y / len(x) ** 0.5
    if len(x) <= x.shape[1]:
        dual: Tensor = torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x)).to(x), y)
        return x.T @ dual
    weights: Tensor = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]).to(x), x.T @ y)
    return weights


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring r2d2."""
    register(R2D2)
