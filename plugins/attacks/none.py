"""No attack: the clean accuracy."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.hookspecs import Register


class NoAttack(Attack):
    """No attack: images stay as they are (scenario clean/clean)."""

    name: ClassVar[str] = "none"
    clean: ClassVar[bool] = True

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Give x back."""
        return x


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `none`."""
    register(NoAttack)
