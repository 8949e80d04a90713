"""Random noise of size ε: what an attack must beat."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register

from .search_attack import signs, to_edge


class Noise(Attack):
    """Random noise, one draw: every pixel ε up or down; what an attack of that size must beat."""

    name: ClassVar[str] = "noise"
    method: ClassVar[Method] = "random"

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """A corner of the ε-ball, clipped to the pixel range; FGSM's step with random signs. The model is not asked."""
        return threat.clip(x + threat.eps * signs(random.uniform(x)))

    @property
    def loss_only(self) -> bool:
        """It asks for nothing at all."""
        return True


class NoiseL2(Noise):
    """Random noise, one draw: a random direction at length ε; what an attack of that size must beat."""

    name: ClassVar[str] = "noisel2"

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """A point of the ε-sphere, clipped to the pixel range. The model is not asked."""
        return to_edge(random.normal(x), x, threat, model.event_ndim)


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `noise` and `noisel2`."""
    register(Noise)
    register(NoiseL2)
