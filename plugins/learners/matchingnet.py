"""Matching networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Weights
from robustbench_meta.contracts.tasks import Batch

from .protonet import OnFeatures


class Remembered(NamedTuple):
    """The adapted state: the embedding's weights, and the support set as unit vectors [n, features] with its labels."""

    weights: Weights
    support: Tensor
    y: Tensor


class MatchingNet(OnFeatures):
    """Attend to the support images by cosine similarity."""

    name: ClassVar[str] = "matchingnet"
    source: ClassVar[str] = "Vinyals et al. 2016, arXiv 1606.04080, equations 1 and 2, without full context embeddings"

    scale: float = Field(10.0, gt=0, description="factor on the cosines before the softmax")

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Remembered:
        """The support set's embeddings."""
        return Remembered(state, F.normalize(model(state, support.x), dim=-1), support.y)

    def logits(self, model: Model, state: Remembered, x: Tensor) -> Tensor:
        """Log Σ_{i of class k} exp(scale·cos(f(x), f(x_i))): their softmax is the paper's P(k), attacked before it."""
        cosines = self.scale * F.normalize(model(state.weights, x), dim=-1) @ state.support.T
        member = state.y == torch.arange(model.way, device=x.device)[:, None]
        return torch.where(member, cosines[:, None, :], -torch.inf).logsumexp(-1)


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring matchingnet."""
    register(MatchingNet)
