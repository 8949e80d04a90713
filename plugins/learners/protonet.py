"""Prototypical networks: a learner whose adaptation takes no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Setting, Update, Weights
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch


class Prototypes(NamedTuple):
    """The adapted state: the embedding's weights and one prototype a class [way, features]."""

    weights: Weights
    prototypes: Tensor


class ProtoNet(Learner):
    """Classify by squared distance to the mean embedding of each class's support images."""

    name: ClassVar[str] = "protonet"
    source: ClassVar[str] = "Snell, Swersky, Zemel 2017, arXiv 1703.05175, algorithm 1"
    theta_predicts: ClassVar[bool] = False

    def outputs(self, way: int) -> int | None:
        """It works on features."""
        return None

    def obstacle(self, setting: Setting) -> str | None:
        """Its prototypes need every class in the support set."""
        if setting.loss != "cross_entropy":
            return f"its logits are negative distances, which fit cross-entropy, not the data set's {setting.loss} loss"
        return None

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Prototypes:
        """c_k = mean of the embeddings of class k (equation 1)."""
        features = model(state, support.x)
        member = (support.y == torch.arange(model.way, device=support.y.device)[:, None]).to(features.dtype)
        return Prototypes(state, member @ features / member.sum(1, keepdim=True))

    def logits(self, model: Model, state: Prototypes, x: Tensor) -> Tensor:
        """−‖f(x) − c_k‖² (equation 2)."""
        difference = model(state.weights, x)[:, None, :] - state.prototypes
        return -difference.square().sum(-1)

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update]:
        """Cross-entropy on the queries."""
        return [Update(ops.loss(ops.adapt(theta, tasks.support), tasks.query))]


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring protonet."""
    register(ProtoNet)
