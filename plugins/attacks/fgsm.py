"""The fast gradient sign method."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Victim
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.hookspecs import Register

from .search_attack import image_gradient


class FGSM(Attack):
    """Fast gradient sign method: one step of ε along the sign of the loss's gradient, clipped to the pixel range."""

    name: ClassVar[str] = "fgsm"
    source: ClassVar[str] = "Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572"
    method: ClassVar[Method] = "single-step"

    @property
    def loss_only(self) -> bool:
        """It asks for nothing but the loss."""
        return True

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """clip(x + ε·sign(∇ₓ L(model(x), y))), with sign(0) = 0; all tasks at once, deterministic.

        L is the data set's loss, whatever it is. x [tasks, n, *shape] or with any other leading axes.

        Raises:
            BenchError: the model's loss does not depend differentiably on x.
        """
        return threat.clip(x + threat.eps * image_gradient(self.name, model, x, y).sign())


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `fgsm`."""
    register(FGSM)
