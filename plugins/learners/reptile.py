"""Reptile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Toward, Update, Weights
from robustbench_meta.contracts.inner_loop import gradient_of
from robustbench_meta.contracts.state import OWN, State
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.errors import PluginError

SQUARE = "learner.square."
"""Adam's second moment, while a task is adapted to."""
BETA2, EPSILON = 0.999, 1e-8


class Reptile(Learner):
    """Move θ towards the weights that training on a task leads to."""

    name: ClassVar[str] = "reptile"
    source: ClassVar[str] = "Nichol, Achiam, Schulman 2018, arXiv 1803.02999, algorithm 2; Adam begins anew per task"

    meta_lr: float = Field(1.0, gt=0, description="ε, the share of the way that θ moves")
    optimizer: Literal["adam", "sgd"] = Field("sgd", description="meta-optimiser, given θ − φ as its gradient")
    schedule: Literal["constant", "linear", "cosine", "step"] = Field("linear", description="of meta_lr")
    train_shot: int | None = Field(10, ge=1, description="support images a class in meta-training")
    train_query: int | None = Field(1, ge=1, description="not used")
    alpha: float = Field(1e-3, gt=0, description="rate of the inner Adam (β₁ = 0)")
    updates: int = Field(5, ge=1, description="inner steps in meta-training")
    test_updates: int = Field(50, ge=1, description="inner steps at validation and test")
    batch: int = Field(10, ge=1, description="images of an inner step in meta-training")
    test_batch: int = Field(5, ge=1, description="images of an inner step at validation and test")

    def inner_steps(self, training: bool) -> int:
        """`updates` or `test_updates`."""
        return self.updates if training else self.test_updates

    def adapt(
        self, model: Model, state: Weights, support: Batch, *, step: int = 0, batch: int | None = None, **_: Any
    ) -> Weights:
        """One step of Adam with β₁ = 0 on a minibatch."""
        chosen = minibatch(support.y, model.way, step, batch or self.test_batch)
        x, y = support.x[chosen], support.y[chosen]
        network = [name for name in state if not name.startswith(OWN)]
        gradients = gradient_of(lambda weights: model.loss(model(weights, x), y), state, network)
        adapted = dict(state)
        for name in network:
            before = state[SQUARE + name] if SQUARE + name in state else torch.zeros_like(state[name])
            square = BETA2 * before + (1 - BETA2) * gradients[name].square()
            unbiased = (square / (1 - BETA2 ** (step + 1))).clamp_min(1e-30).sqrt()
            adapted[name] = state[name] - self.alpha * gradients[name] / (unbiased + EPSILON)
            adapted[SQUARE + name] = square
        return adapted

    def logits(self, model: Model, state: Weights, x: Tensor) -> Tensor:
        """f_φ(x)."""
        return model(state, x)

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """θ ← θ + ε·mean(φ − θ)."""
        return [Toward(ops.adapt(theta.detach(), tasks.support, batch=self.batch))]

    def query_loss(self, ops: Operations, adapted: State, query: Batch) -> Tensor:
        """There is none."""
        raise PluginError(
            "learner 'reptile' has no loss of queries, so defences by attacked queries (aq, trades, r-maml) cannot "
            "train it; at:base=reptile can"
        )


def minibatch(y: Tensor, way: int, step: int, size: int) -> Tensor:
    """Places of the images of a step: one after the other of each class in turn, over and over; y [way·shot]."""
    in_turn = y.argsort(stable=True).view(way, -1).T.flatten()
    places = (step * size + torch.arange(min(size, len(y)), device=y.device)) % len(y)
    return in_turn[places]


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring reptile."""
    register(Reptile)
