"""Prototypical networks: a learner whose adaptation takes no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Setting, Weights
from robustbench_meta.contracts.tasks import Batch


class Prototypes(NamedTuple):
    """The adapted state: the embedding's weights and one prototype a class [way, features]."""

    weights: Weights
    prototypes: Tensor


class OnFeatures(Learner):
    """A learner that classifies by the features of the support set, without a gradient."""

    theta_predicts: ClassVar[bool] = False

    def outputs(self, setting: Setting) -> int | None:
        """It works on features."""
        return None

    def obstacle(self, setting: Setting) -> str | None:
        """Its logits need a softmax."""
        if setting.loss != "cross_entropy":
            return f"its logits compare classes, which fits cross-entropy, not the data set's {setting.loss} loss"
        return None


def class_means(features: Tensor, y: Tensor, way: int) -> Tensor:
    """The mean of each class's rows [way, features]."""
    member = one_hot(y, way, features).T
    return member @ features / member.sum(1, keepdim=True)


def one_hot(y: Tensor, way: int, like: Tensor) -> Tensor:
    """Labels [n] as rows [n, way] of 0 and 1, in the dtype of `like`."""
    return (y[:, None] == torch.arange(way, device=y.device)).to(like.dtype)


class ProtoNet(OnFeatures):
    """Classify by squared distance to the mean features of each class."""

    name: ClassVar[str] = "protonet"
    source: ClassVar[str] = "Snell, Swersky, Zemel 2017, arXiv 1703.05175, algorithm 1"

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Prototypes:
        """c_k = mean of the embeddings of class k (equation 1)."""
        return Prototypes(state, class_means(model(state, support.x), support.y, model.way))

    def logits(self, model: Model, state: Prototypes, x: Tensor) -> Tensor:
        """−‖f(x) − c_k‖² (equation 2)."""
        difference = model(state.weights, x)[:, None, :] - state.prototypes
        return -difference.square().sum(-1)


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring protonet."""
    register(ProtoNet)
