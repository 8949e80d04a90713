"""The fast gradient sign method."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.errors import BenchError
from robustbench_meta.threat import ThreatModel


class FGSM(Attack):
    """Fast gradient sign method: one step of ε along the sign of the loss's gradient, clipped to the pixel range."""

    name: ClassVar[str] = "fgsm"
    source: ClassVar[str] = "Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572"

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """clip(x + ε·sign(∇ₓ L(model(x), y))), with sign(0) = 0; all tasks at once, deterministic.

        L is the data set's loss, whatever it is. x [tasks, n, *shape] or with any other leading axes.

        Raises:
            BenchError: the model's loss does not depend differentiably on x.
        """
        return threat.clip(x + threat.eps * image_gradient(self.name, model, x, y).sign())


def image_gradient(attack: str, model: Victim, x: Tensor, y: Tensor) -> Tensor:
    """∇ₓ of the summed loss, in the shape of x; the attack's name is for the message.

    Raises:
        BenchError: the model's loss does not depend differentiably on x.
    """
    with torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        loss = model.loss(images, y).sum()
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise BenchError(
            f"attack '{attack}' needs the gradient of the loss with respect to the images, and this model gives none "
            "(its output does not depend differentiably on them); use an attack that needs no gradient, such as square"
        )
    return gradient


@hookimpl
def register_attacks(register: Callable[[type[Attack]], None]) -> None:
    """Bring `fgsm`."""
    register(FGSM)
