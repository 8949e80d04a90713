"""The learner my-learner: MAML whose inner learning rate is meta-learned, too (Meta-SGD, with one rate for all)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Update, Weights
from robustbench_meta.inner import gradient_step
from robustbench_meta.models import State
from robustbench_meta.tasks import Batch, TaskBatch

RATE = "log_rate"
"""The name in θ of the inner learning rate's logarithm, beside the backbone's weights."""


class MyLearner(Learner):
    """Gradient steps on the support set, at a learning rate that is meta-learned."""

    # What one types; `bench list` shows it with the first line above.
    name: ClassVar[str] = "my-learner"
    source: ClassVar[str] = "after Li, Zhou, Chen, Li 2017, arXiv 1707.09835"

    # Options: typed as my-learner:alpha=0.1,steps=3, checked, and part of what identifies a result.
    alpha: float = Field(0.4, gt=0, description="rate of an inner step, before it is learned")
    steps: int = Field(1, ge=1, description="inner steps")
    first_order: bool = Field(False, description="do not differentiate through the inner gradient")

    def init(self, weights: Weights) -> Weights:
        """θ at the start: the backbone's fresh weights, and one number more."""
        like = next(iter(weights.values()))
        return {**weights, RATE: like.new_tensor(self.alpha).log()}

    def inner_steps(self, training: bool) -> int:
        """How often `adapt` is applied to a task."""
        return self.steps

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Weights:
        """One inner step on ONE task: θ' = θ − rate·∇L(f_θ, support). support.x is [way·shot, *shape]."""

        def loss(weights: Weights) -> Tensor:
            return model.loss(model(weights, support.x), support.y)

        adapted = gradient_step(loss, _network(state), state[RATE].exp(), first_order=self.first_order)
        return {**adapted, RATE: state[RATE]}

    def logits(self, model: Model, state: Weights, x: Tensor) -> Tensor:
        """Logits [n, way] of ONE task's x [n, *shape], by the adapted state."""
        return model(_network(state), x)

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update]:
        """What meta-training makes small, over ALL tasks of a meta-step at once: the loss of the queries.

        To train against an attack: judge ops.perturb(adapted, tasks.query) instead of tasks.query, and define
        `training_attack`, as plugins/learners/aq.py does.
        """
        adapted = ops.adapt(theta, tasks.support)
        return [Update(ops.loss(adapted, tasks.query))]


def _network(state: Weights) -> Weights:
    """The backbone's weights alone."""
    return {name: weight for name, weight in state.items() if name != RATE}


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring `my-learner`."""
    register(MyLearner)
