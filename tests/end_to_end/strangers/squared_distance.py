"""Regression to one-hot labels, as in relation networks: the objective never asks for `ops.loss`."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Update
from robustbench_meta.contracts.inner_loop import gradient_step


class SquaredDistance(Learner):
    """An inner step and an outer loss of squared distances."""

    name: ClassVar[str] = "squared-distance"

    def adapt(self, model, state, support, **_):
        def loss(weights):
            return (model(weights, support.x) - F.one_hot(support.y, model.way)).square().sum(-1).mean()

        return gradient_step(loss, state, 0.1)

    def logits(self, model, state, x):
        return model(state, x)

    def objective(self, ops, theta, tasks):
        logits = ops.logits(ops.adapt(theta, tasks.support), tasks.query.x)
        distances = (logits - F.one_hot(tasks.query.y, logits.shape[-1])).square().sum(-1)
        return [Update(distances.mean(-1))]


@hookimpl
def register_learners(register):
    register(SquaredDistance)
