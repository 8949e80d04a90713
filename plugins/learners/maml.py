"""Model-agnostic meta-learning, and what varies its inner step: FOMAML, ANIL, BOIL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Weights
from robustbench_meta.contracts.inner_loop import Rate, gradient_step
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.errors import PluginError


class MAML(Learner):
    """Learn weights from which a few gradient steps fit a new task."""

    name: ClassVar[str] = "maml"
    source: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, algorithm 2"

    alpha: float = Field(0.4, gt=0, description="α, rate of an inner step")
    steps: int = Field(1, ge=1, description="inner steps in meta-training")
    test_steps: int | None = Field(None, ge=1, description="inner steps at validation and test; none: as in training")
    first_order: bool = Field(False, description="do not differentiate through the inner gradient")

    def inner_steps(self, training: bool) -> int:
        """`steps` in meta-training, `test_steps` afterwards."""
        return self.steps if training or self.test_steps is None else self.test_steps

    def rates(self, model: Model, theta: Weights, alpha: float) -> Rate:
        """The rate of an inner step: one for all weights, or by the name of those that move."""
        return alpha

    def adapt(self, model: Model, state: Weights, support: Batch, *, alpha: float | None = None, **_: Any) -> Weights:
        """θ' = θ − α∇L(f_θ, support)."""
        rates = self.rates(model, state, self.alpha if alpha is None else alpha)
        return gradient_step(
            lambda weights: model.loss(model(weights, support.x), support.y), state, rates, first_order=self.first_order
        )

    def logits(self, model: Model, state: Weights, x: Tensor) -> Tensor:
        """f_θ'(x)."""
        return model(state, x)


class FOMAML(MAML):
    """MAML without second derivatives (first order)."""

    name: ClassVar[str] = "fomaml"
    source: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.2"

    first_order: bool = Field(True, description="do not differentiate through the inner gradient")


class ANIL(MAML):
    """MAML whose inner steps move the head alone."""

    name: ClassVar[str] = "anil"
    source: ClassVar[str] = "Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157, section 4"

    def rates(self, model: Model, theta: Weights, alpha: float) -> Rate:
        """α for the head."""
        return dict.fromkeys(model.head, alpha)


class BOIL(MAML):
    """MAML whose inner steps move everything but the head."""

    name: ClassVar[str] = "boil"
    source: ClassVar[str] = "Oh, Yoo, Kim, Yun 2021, arXiv 2008.08882, section 3"

    def rates(self, model: Model, theta: Weights, alpha: float) -> Rate:
        """α for the body."""
        if not model.body:
            raise PluginError("learner 'boil' adapts the body alone, and this backbone is all head: use conv4 or mlp")
        return dict.fromkeys(model.body, alpha)


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring maml, fomaml, anil and boil."""
    for learner in (MAML, FOMAML, ANIL, BOIL):
        register(learner)
