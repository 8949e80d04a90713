"""The threat model: how far an adversarial image may lie from the clean one, and the check of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_meta.errors import ViolationError

Norm = Literal["linf", "l2", "l1", "l0", "severity"]
"""`severity`: no ball but a natural corruption, of which ε is the severity."""

TOLERANCE = 1e-6
"""By how much ‖δ‖ may exceed ε, and a pixel its bounds, before it counts as a violation."""


@dataclass(frozen=True)
class ThreatModel:
    """‖x_adv − x‖ ≤ eps in `norm`, every pixel of x_adv within [low, high].

    `eps` is in units of the pixel range [0, 1] for linf, l2 and l1; for l0 it is the number of
    pixels that may change (a pixel with all its channels counts once). A `severity` bounds no distance:
    every change within the pixel range is allowed.
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def distance(self, x_adv: Tensor, x: Tensor, event_ndim: int) -> Tensor:
        """‖x_adv − x‖ over the last `event_ndim` axes (the axes of one example), in float64; 0 for a severity."""
        delta = (x_adv.detach() - x.detach()).double()
        axes = tuple(range(-event_ndim, 0))
        if self.norm == "linf":
            return delta.abs().amax(axes)
        if self.norm == "l2":
            return delta.square().sum(axes).sqrt()
        if self.norm == "l1":
            return delta.abs().sum(axes)
        if self.norm == "severity":
            return torch.zeros_like(delta.sum(axes))
        changed = delta != 0
        if event_ndim == 3:
            changed = changed.any(-3, keepdim=True)
        return changed.sum(axes).double()

    def clip(self, x: Tensor) -> Tensor:
        """Clip to the valid pixel range."""
        return x.clamp(self.low, self.high)

    def excess(self, x_adv: Tensor, x: Tensor, event_ndim: int) -> Float[Tensor, 2]:
        """How far the batch exceeds (ε, the pixel range) at most; ≤ 0 when inside; NaN when a pixel is not finite.

        Stays on the device, so that a training loop can gather it without waiting.
        """
        over_eps = (self.distance(x_adv, x, event_ndim) - self.eps).max()
        over_range = torch.maximum(self.low - x_adv.min(), x_adv.max() - self.high).double()
        return torch.where(x_adv.isfinite().all(), torch.stack([over_eps, over_range]), torch.nan)

    def verify(
        self, attack: str, x_adv: Tensor, x: Tensor, event_ndim: int, deferred: DeferredViolations | None = None
    ) -> None:
        """Raise ViolationError, with the attack's name and the amount, unless x_adv is inside.

        Args:
            attack: its name, for the message.
            x_adv: what it returned.
            x: the images that it was given.
            event_ndim: how many axes one example has.
            deferred: where given, all but shape and dtype is noted there, to be judged later: on a GPU, to judge is to
                wait.

        Raises:
            ViolationError: wrong shape or dtype, NaN or infinity, out of range, or farther than ε.
        """
        if x_adv.shape != x.shape or x_adv.dtype != x.dtype or x_adv.device != x.device:
            raise ViolationError(
                f"attack '{attack}' returned {tuple(x_adv.shape)} {x_adv.dtype} on {x_adv.device}; "
                f"expected {tuple(x.shape)} {x.dtype} on {x.device}, as the images it was given"
            )
        excess = self.excess(x_adv, x, event_ndim)
        if deferred is None:
            self.judge(attack, excess)
        else:
            deferred.note(self, attack, excess)

    def judge(self, attack: str, excess: Tensor) -> None:
        """Raise ViolationError if an excess, as `excess` gives it, is beyond the tolerance; waits for the device."""
        over_eps, over_range = excess.tolist()
        if math.isnan(over_eps) or math.isnan(over_range):
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


class DeferredViolations:
    """What is to be judged of attacks, kept on the device until somebody has time to wait for it."""

    def __init__(self) -> None:
        self._noted: dict[tuple[ThreatModel, str], Tensor] = {}
        self._suspected: dict[str, tuple[ViolationError, Tensor]] = {}

    def note(self, threat: ThreatModel, attack: str, excess: Tensor) -> None:
        """Keep the largest excess of each attack; NaN stays."""
        before = self._noted.get((threat, attack))
        self._noted[threat, attack] = excess if before is None else torch.maximum(before, excess)

    def suspect(self, violation: ViolationError, guilty: Tensor) -> None:
        """Keep a violation that was one if `guilty`, a boolean on the device, turns out to be true."""
        _, before = self._suspected.get(str(violation), (violation, None))
        self._suspected[str(violation)] = violation, guilty if before is None else before | guilty

    def settle(self) -> None:
        """Judge what was noted since the last time.

        Raises:
            ViolationError: an attack left its threat model, or changed what it must not touch.
        """
        noted, self._noted = self._noted, {}
        suspected, self._suspected = self._suspected, {}
        for violation, guilty in suspected.values():
            if bool(guilty):
                raise violation
        for (threat, attack), excess in noted.items():
            threat.judge(attack, excess)
