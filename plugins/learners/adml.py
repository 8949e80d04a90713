"""Adversarial meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Operations, Toward, Update
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch

from .maml import MAML


class ADML(MAML):
    """Adapt on clean and on attacked support; judge each on the other."""

    name: ClassVar[str] = "adml"
    source: ClassVar[str] = "Yin, Tang, Xu, Wang 2018, arXiv 1806.03316, algorithm 1"

    alpha_adv: float | None = Field(None, gt=0, description="α₂, rate on the attacked support; none: alpha (α₁)")
    beta1: float = Field(1.0, ge=0, description="β₁: weight of the clean-adapted, attacked-query loss")
    beta2: float = Field(1.0, ge=0, description="β₂: weight of the attack-adapted, clean-query loss")
    outer: Literal["joint", "sequential"] = Field(
        "joint", description="one optimiser step on the weighted sum, or two steps with gradients at the same θ"
    )
    crossed: bool = Field(True, description="judge clean-adapted weights on attacked queries and the reverse")
    attack_on: Literal["adapted", "initial", "surrogate"] = Field(
        "adapted", description="weights that the training attack on queries differentiates (on support: θ or surrogate)"
    )
    train_attack: str = Field("fgsm", description="attack in meta-training, with options as 'pgd:steps=7;alpha=0.02'")
    train_eps: float | None = Field(None, ge=0, description="its ε; none: the data set's default")
    surrogate: str = Field("linear", description="backbone of attack_on=surrogate")

    def training_attack(self) -> tuple[str, float | None]:
        """The options `train_attack` and `train_eps`."""
        return self.train_attack, self.train_eps

    def surrogate_backbone(self) -> str | None:
        """The option `surrogate`, when it is attacked."""
        return self.surrogate if self.attack_on == "surrogate" else None

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """β₁·L(f_θ'clean, query_adv) and β₂·L(f_θ'adv, query_clean), of one meta-update or of two."""
        clean = ops.adapt(theta, tasks.support)
        adversarial = ops.adapt(theta, self._attacked(ops, theta, theta, tasks.support), alpha=self.alpha_adv)
        if self.crossed:
            loss1 = ops.loss(clean, self._attacked(ops, theta, clean, tasks.query))
            loss2 = ops.loss(adversarial, tasks.query)
        else:
            loss1 = ops.loss(adversarial, self._attacked(ops, theta, adversarial, tasks.query))
            loss2 = ops.loss(clean, tasks.query)
        if self.outer == "joint":
            return [Update(self.beta1 * loss1 + self.beta2 * loss2)]
        return [Update(loss1, self.beta1), Update(loss2, self.beta2)]

    def _attacked(self, ops: Operations, theta: State, judge: State, batch: Batch) -> Batch:
        """The batch attacked through the weights that `attack_on` names."""
        if self.attack_on == "surrogate":
            return ops.perturb(ops.surrogate(batch), batch)
        return ops.perturb(judge if self.attack_on == "adapted" else theta, batch)


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring adml."""
    register(ADML)
