"""MI-FGSM: iterated signed gradients with a momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Victim
from robustbench_meta.contracts.threat_model import ThreatModel


class MIFGSM(Attack):
    """Momentum iterative FGSM: steps along the sign of a running sum of gradients, each of L1 norm 1."""

    name: ClassVar[str] = "mi-fgsm"
    source: ClassVar[str] = "Dong et al. 2018, arXiv 1710.06081, algorithm 1"

    steps: int = Field(10, ge=1, description="number of steps")
    decay: float = Field(1.0, ge=0, description="μ, what is kept of the momentum at each step")
    alpha: float | None = Field(None, gt=0, description="size of a step; none: ε/steps, as Dong et al.")

    @property
    def loss_only(self) -> bool:
        """It asks for nothing but the loss."""
        return True

    def how(self) -> Method:
        """A single step, if it takes only one."""
        return "single-step" if self.steps == 1 else self.method

    def stronger(self) -> Attack | None:
        """Twice the steps."""
        return self.model_copy(update={"steps": 2 * self.steps, "alpha": None})

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """From the images themselves, as in the paper."""
        return self.perturb_from(model, x, y, threat, random, x)

    def perturb_from(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor
    ) -> Tensor:
        """g ← μg + ∇L/‖∇L‖₁, x ← x + α·sign(g), put back into the ε-ball; x [tasks, n, *shape]."""
        alpha = threat.eps / self.steps if self.alpha is None else self.alpha
        axes = tuple(range(-model.event_ndim, 0))
        found, momentum = start, torch.zeros_like(x)
        for _ in range(self.steps):
            with torch.enable_grad():
                images = found.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(model.loss(images, y).sum(), images)
            size = gradient.abs().sum(axes, keepdim=True)
            momentum = self.decay * momentum + torch.where(size > 0, gradient / size, 0)
            moved = found + alpha * momentum.sign()
            found = threat.clip(x + (moved - x).clamp(-threat.eps, threat.eps))
        return found


@hookimpl
def register_attacks(register: Callable[[type[Attack]], None]) -> None:
    """Bring `mi-fgsm`."""
    register(MIFGSM)
