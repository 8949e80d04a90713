"""MAML++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Toward, Update, Weights
from robustbench_meta.contracts.inner_loop import gradient_step
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch

from .maml import MAML

RATE = "learner.rate."


class MAMLPlusPlus(MAML):
    """MAML with learned rates by layer and step, and a loss each step."""

    name: ClassVar[str] = "maml++"
    source: ClassVar[str] = "Antoniou, Edwards, Storkey 2019, arXiv 1810.09502, section 3"

    alpha: float = Field(0.1, gt=0, description="α, where the rates of the layers begin")
    steps: int = Field(5, ge=1, description="inner steps in meta-training")
    schedule: Literal["constant", "linear", "cosine", "step"] = Field("cosine", description="of meta_lr")
    multi_step: float = Field(0.1, ge=0, le=1, description="share of meta-training in which each inner step has a loss")
    first_order_share: float = Field(0.3, ge=0, le=1, description="share of meta-training, the first, by first order")

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ, and a rate for each of its tensors and each inner step [steps]."""
        return weights | {RATE + name: torch.full((self.steps,), self.alpha) for name in weights}

    def adapt(
        self, model: Model, state: Weights, support: Batch, *, step: int = 0, first_order: bool = False, **_: Any
    ) -> Weights:
        """θ_{i+1} = θ_i − α_i∇L(f_θi, support), α_i by layer; later steps of the test take the last rates."""
        which = min(step, self.steps - 1)
        rates = {name.removeprefix(RATE): rate[which] for name, rate in state.items() if name.startswith(RATE)}
        return gradient_step(
            lambda weights: model.loss(model(weights, support.x), support.y),
            state,
            rates,
            first_order=self.first_order or first_order,
        )

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """Σ_i v_i·L(f_θi, query), v by `importance`."""
        states = ops.trajectory(theta, tasks.support, first_order=ops.progress < self.first_order_share)
        shares = importance(len(states), ops.progress / self.multi_step if self.multi_step else 1.0)
        terms = [share * ops.loss(state, tasks.query) for share, state in zip(shares, states, strict=True) if share]
        return [Update(torch.stack(terms).sum(0))]


def importance(steps: int, done: float) -> list[float]:
    """Of the loss after each inner step: all equal at first, then falling to the last one alone."""
    others = max(0.0, 1 - done) / steps
    return [*[others] * (steps - 1), 1 - others * (steps - 1)]


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring maml++."""
    register(MAMLPlusPlus)
