"""Adversarial querying."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Operations, Update
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import TaskBatch

from .maml import MAML


class AdversarialQuerying(MAML):
    """MAML whose meta-update sees attacked queries only; it adapts on clean support sets."""

    name: ClassVar[str] = "aq"
    source: ClassVar[str] = "Goldblum, Fowl, Goldstein 2020, arXiv 1910.00982, algorithm 2 (theirs trains with PGD-7)"

    train_attack: str = Field("fgsm", description="attack in meta-training, with options as 'pgd:steps=7;alpha=0.02'")
    train_eps: float | None = Field(None, ge=0, description="its ε; none: the data set's default")

    def training_attack(self) -> tuple[str, float | None]:
        """The options `train_attack` and `train_eps`."""
        return self.train_attack, self.train_eps

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update]:
        """L(f_θ', query_adv), the attack made on θ'."""
        adapted = ops.adapt(theta, tasks.support)
        return [Update(ops.loss(adapted, ops.perturb(adapted, tasks.query)))]


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring aq."""
    register(AdversarialQuerying)
