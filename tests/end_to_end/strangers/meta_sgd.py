"""Meta-SGD (Li, Zhou, Chen, Li 2017, arXiv 1707.09835): θ and a rate for each of its weights are meta-trained."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Update


class MetaSGD(Learner):
    """One inner step with learned rates, which `init` draws."""

    name: ClassVar[str] = "meta-sgd"
    source: ClassVar[str] = "Li, Zhou, Chen, Li 2017, arXiv 1707.09835, algorithm 1"

    largest: float = Field(0.5, gt=0, description="rates begin uniformly in [0, largest)")

    def init(self, weights, feature_shape):
        return {**weights, **{f"learner.rate.{name}": self.largest * torch.rand_like(w) for name, w in weights.items()}}

    def adapt(self, model, state, support, **_):
        weights = {name: weight for name, weight in state.items() if not name.startswith("learner.rate.")}
        gradients = torch.func.grad(lambda w: model.loss(model(w, support.x), support.y))(weights)
        return {name: weight - state[f"learner.rate.{name}"] * gradients[name] for name, weight in weights.items()}

    def logits(self, model, state, x):
        return model({name: weight for name, weight in state.items() if not name.startswith("learner.rate.")}, x)

    def objective(self, ops, theta, tasks):
        return [Update(ops.loss(ops.adapt(theta, tasks.support), tasks.query))]


@hookimpl
def register_learners(register):
    register(MetaSGD)
