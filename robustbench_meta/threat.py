"""The threat model: how far an adversarial image may lie from the clean one, and the check of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_meta.errors import ViolationError

Norm = Literal["linf", "l2", "l1", "l0"]

TOLERANCE = 1e-6
"""By how much ‖δ‖ may exceed ε, and a pixel its bounds, before it counts as a violation."""


@dataclass(frozen=True)
class ThreatModel:
    """‖x_adv − x‖ ≤ eps in `norm`, every pixel of x_adv within [low, high].

    `eps` is in units of the pixel range [0, 1] for linf, l2 and l1; for l0 it is the number of
    pixels that may change (a pixel with all its channels counts once).
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def distance(self, x_adv: Tensor, x: Tensor, event: int) -> Tensor:
        """‖x_adv − x‖ over the last `event` axes (the axes of one example), in float64."""
        delta = (x_adv.detach() - x.detach()).double()
        axes = tuple(range(-event, 0))
        if self.norm == "linf":
            return delta.abs().amax(axes)
        if self.norm == "l2":
            return delta.square().sum(axes).sqrt()
        if self.norm == "l1":
            return delta.abs().sum(axes)
        changed = delta != 0
        if event == 3:
            changed = changed.any(-3, keepdim=True)
        return changed.sum(axes).double()

    def clip(self, x: Tensor) -> Tensor:
        """Clip to the valid pixel range."""
        return x.clamp(self.low, self.high)

    def excess(self, x_adv: Tensor, x: Tensor, event: int) -> Float[Tensor, 2]:
        """How far the batch exceeds (ε, the pixel range) at most; ≤ 0 when inside; NaN when not finite.

        Stays on the device, so that a training loop can gather it without waiting.
        """
        over_eps = (self.distance(x_adv, x, event) - self.eps).max()
        over_range = torch.maximum(self.low - x_adv.min(), x_adv.max() - self.high).double()
        return torch.stack([over_eps, over_range])

    def verify(self, attack: str, x_adv: Tensor, x: Tensor, event: int) -> None:
        """Raise ViolationError, with the attack's name and the amount, unless x_adv is inside.

        Raises:
            ViolationError: wrong shape or dtype, NaN or infinity, out of range, or farther than ε.
        """
        if x_adv.shape != x.shape or x_adv.dtype != x.dtype or x_adv.device != x.device:
            raise ViolationError(
                f"attack '{attack}' returned {tuple(x_adv.shape)} {x_adv.dtype} on {x_adv.device}; "
                f"expected {tuple(x.shape)} {x.dtype} on {x.device}, as the images it was given"
            )
        self.judge(attack, self.excess(x_adv, x, event), bool(torch.isfinite(x_adv).all()))

    def judge(self, attack: str, excess: Tensor, finite: bool) -> None:
        """Raise ViolationError if an excess, as `excess` gives it, is beyond the tolerance."""
        over_eps, over_range = excess.tolist()
        if not finite or math.isnan(over_eps) or math.isnan(over_range):
            raise ViolationError(f"attack '{attack}' returned NaN or infinite pixels")
        if over_range > TOLERANCE:
            raise ViolationError(
                f"attack '{attack}' left the pixel range [{self.low:g}, {self.high:g}] by {over_range:.3g}"
            )
        if over_eps > TOLERANCE:
            raise ViolationError(
                f"attack '{attack}' exceeded its threat model: {self.norm} distance is "
                f"{self.eps + over_eps:.6g}, eps is {self.eps:.6g} (over by {over_eps:.3g})"
            )
