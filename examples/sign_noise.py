"""An attack in one file: noise at the corners of the ε-ball, the weakest attack that deserves the name."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.contracts.threat_model import ThreatModel


class SignNoise(Attack):
    """Add ε or −ε to each pixel by a fair coin; of several such draws, each image keeps the one of highest loss."""

    # What is typed; `bench list` shows it with the first line above.
    name: ClassVar[str] = "sign-noise"
    source: ClassVar[str] = "an example of robustbench_meta"

    # Options: typed as sign-noise:tries=20, checked, and part of what identifies a result.
    tries: int = Field(10, ge=1, description="draws to choose from")

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Adversarial images in the shape of x [tasks, n, *shape]; needs no gradient."""
        worst, highest = x, torch.full(y.shape, -torch.inf, device=x.device, dtype=x.dtype)
        for _ in range(self.tries):
            noisy = threat.clip(x + threat.eps * (random.uniform(x) - 0.5).sign())
            with torch.no_grad():
                loss = model.loss(noisy, y)
            higher = (loss > highest).view(*y.shape, *(1 for _ in range(model.event_ndim)))
            worst, highest = torch.where(higher, noisy, worst), torch.maximum(loss, highest)
        return worst


@hookimpl
def register_attacks(register: Callable[[type[Attack]], None]) -> None:
    """Bring `sign-noise`."""
    register(SignNoise)
