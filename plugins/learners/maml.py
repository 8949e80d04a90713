"""Model-agnostic meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Update, Weights
from robustbench_meta.contracts.inner_loop import gradient_step
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch


class MAML(Learner):
    """Learn weights from which a few gradient steps on the support set fit a new task."""

    name: ClassVar[str] = "maml"
    source: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, algorithm 2"

    alpha: float = Field(0.4, gt=0, description="α, rate of an inner step")
    steps: int = Field(1, ge=1, description="inner steps in meta-training")
    test_steps: int | None = Field(None, ge=1, description="inner steps at validation and test; none: as in training")
    first_order: bool = Field(False, description="do not differentiate through the inner gradient")

    def inner_steps(self, training: bool) -> int:
        """`steps` in meta-training, `test_steps` afterwards."""
        return self.steps if training or self.test_steps is None else self.test_steps

    def adapt(self, model: Model, state: Weights, support: Batch, *, alpha: float | None = None, **_: Any) -> Weights:
        """θ' = θ − α∇L(f_θ, support)."""
        rate = self.alpha if alpha is None else alpha
        return gradient_step(
            lambda weights: model.loss(model(weights, support.x), support.y), state, rate, first_order=self.first_order
        )

    def logits(self, model: Model, state: Weights, x: Tensor) -> Tensor:
        """f_θ'(x)."""
        return model(state, x)

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update]:
        """L(f_θ', query)."""
        adapted = ops.adapt(theta, tasks.support)
        return [Update(ops.loss(adapted, tasks.query))]


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring maml."""
    register(MAML)
