"""The attack my-attack: signed gradient steps, the basic iterative method of Kurakin, Goodfellow, Bengio 2017."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.threat import ThreatModel


class MyAttack(Attack):
    """Steps along the sign of the loss's gradient, each put back into the ε-ball."""

    # What one types; `bench list` shows it with the first line above.
    name: ClassVar[str] = "my-attack"
    source: ClassVar[str] = "where it comes from: a paper, a project"

    # Options: typed as my-attack:steps=20,alpha=0.01, checked, and part of what identifies a result.
    steps: int = Field(10, ge=1, description="number of steps")
    alpha: float | None = Field(None, gt=0, description="size of a step; none: 2·ε/steps")

    @property
    def loss_only(self) -> bool:
        """It asks the model for its loss alone, never for logits: so it can poison support sets, too."""
        return True

    def stronger(self) -> Attack | None:
        """The same with more steps, by which a row is checked for convergence."""
        return self.model_copy(update={"steps": 2 * self.steps})

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Adversarial images in the shape of x.

        All tasks come at once: x is [tasks, n, *shape] in [0, 1], y is [tasks, n]. What is returned is checked against
        `threat`: linf unless the attack defines `norm`. Draw from `random` only, as in random.uniform(x).
        """
        alpha = 2 * threat.eps / self.steps if self.alpha is None else self.alpha
        found = x
        for _ in range(self.steps):
            step = alpha * self._gradient(model, found, y).sign()
            found = x + (found + step - x).clamp(-threat.eps, threat.eps)  # within ε of x …
            found = threat.clip(found)  # … and an image
        return found

    def _gradient(self, model: Victim, x: Tensor, y: Tensor) -> Tensor:
        """Of the loss in the images. The sum keeps images apart: each has its own term."""
        with torch.enable_grad():
            images = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model.loss(images, y).sum(), images)
        return gradient


@hookimpl
def register_attacks(register: Callable[[type[Attack]], None]) -> None:
    """Bring `my-attack`."""
    register(MyAttack)
