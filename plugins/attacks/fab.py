"""Fast Adaptive Boundary attack, on all tasks at once."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register

from .search_attack import (
    TINY,
    SearchAttack,
    WorstCase,
    direction,
    gradient_of,
    length,
    likeliest_wrong,
    over_images,
    project,
)

ALPHA, BETA, ETA = 0.1, 0.9, 1.05
"""The most that a step leans towards the clean image; how far it goes back once it fools; how far it overshoots."""
BISECTIONS = 3
"""Of the last segment, between what fools and the clean image."""
_NEVER = 1e30
TARGETS = 9
"""The most classes that are aimed at, as in AutoAttack."""


class FAB(SearchAttack):
    """FAB: the smallest perturbation that fools, by steps onto the linearised decision boundary, towards each class."""

    name: ClassVar[str] = "fab"
    source: ClassVar[str] = "Croce & Hein 2020, https://arxiv.org/abs/1907.02044"

    steps: int = Field(100, ge=1, description="number of steps, towards each class")
    restarts: int = Field(1, ge=1, description="starts: the image itself, then random ones for what withstands")

    def stronger(self) -> Attack | None:
        """Twice the steps, and a random start more."""
        return self.model_copy(update={"steps": 2 * self.steps, "restarts": self.restarts + 1})

    def search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """For each image of x [tasks, n, *shape] one within ε that fools, if any is found; else it stays as it is.

        Raises:
            BenchError: the logits do not depend differentiably on x.
        """
        worst = WorstCase(model, x, y, x if start is None else start)
        for target in range(min(model.way - 1, TARGETS)):
            for turn in range(self.restarts):

                def approach(x: Tensor, y: Tensor, random: Random, found: Tensor) -> Tensor:
                    begin = found if turn == 0 else _start(x, threat, random, model.event_ndim)  # noqa: B023
                    images, near = self.closest(model, x, y, threat, begin, target)  # noqa: B023  # called at once
                    inside = over_images(near <= threat.eps, model.event_ndim)
                    return project(torch.where(inside, images, x), x, threat, model.event_ndim)

                worst.go_on(approach, random)
        return worst.found

    def closest(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, begin: Tensor, target: int
    ) -> tuple[Tensor, Tensor]:
        """The closest image to each of x that was seen to fool, and its distance; x itself and infinity for none.

        Args:
            model: under attack.
            x: the clean images.
            y: their labels.
            threat: the norm, and the pixel range.
            begin: where to start.
            target: which class to aim at: 0 is the likeliest wrong one for the clean image.
        """
        event_ndim = model.event_ndim
        aim = likeliest_wrong(model, x, y, target)[..., None]
        best, near = x, torch.full(y.shape, torch.inf, dtype=x.dtype, device=x.device)
        now = begin
        for _ in range(self.steps):
            gap, slope = self._linearised(model, now, y, aim)
            there = gap + (slope * (x - now)).flatten(-event_ndim).sum(-1)
            own, clean = to_plane(now, slope, gap, threat, event_ndim), to_plane(x, slope, there, threat, event_ndim)
            far, farther = _size(own, threat.norm, event_ndim), _size(clean, threat.norm, event_ndim)
            lean = (far / (far + farther).clamp_min(TINY)).clamp_max(ALPHA)
            lean = over_images(lean, event_ndim)
            now = threat.clip((1 - lean) * (now + ETA * own) + lean * (x + ETA * clean))
            fooled, wide = model.fooled(now, y), _size(now - x, threat.norm, event_ndim)
            closer = fooled & (wide < near)
            best, near = torch.where(over_images(closer, event_ndim), now, best), torch.where(closer, wide, near)
            now = torch.where(over_images(fooled, event_ndim), x + BETA * (now - x), now)
        low, high = torch.zeros_like(near), torch.ones_like(near)  # of the segment from x to the best
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fooled = model.fooled(x + over_images(middle, event_ndim) * (best - x), y)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        best = x + over_images(high, event_ndim) * (best - x)
        return best, torch.where(near.isinf(), near, _size(best - x, threat.norm, event_ndim))

    def _linearised(self, model: Victim, images: Tensor, y: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
        """By how much the right class is ahead of the one aimed at, and the slope of that in the image."""
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            logits = model(leaf)
            gap = (logits.gather(-1, y[..., None]) - logits.gather(-1, aim))[..., 0]
            slope = gradient_of(self.name, gap, leaf)
        return gap.detach().nan_to_num(), slope.nan_to_num()


class FABL2(FAB):
    """FAB in the L2 norm."""

    name: ClassVar[str] = "fabl2"

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"


def to_plane(z: Tensor, slope: Tensor, value: Tensor, threat: ThreatModel, event_ndim: int) -> Tensor:
    """The smallest δ in linf or l2 with slope·δ = −value and z + δ within the pixel range; the farthest, if none is.

    Along the best path each pixel moves at its own speed (1 in linf, |slope| in l2) until it meets the range. How far
    that brings the value is piecewise linear in the time, and so the time is found by sorting when pixels stop.

    Args:
        z: images, any leading axes.
        slope: of a linear function, in the shape of z.
        value: of that function at z.
        threat: the norm, and the pixel range.
        event_ndim: how many axes an image has.
    """
    flat, steep, short = z.flatten(-event_ndim), slope.flatten(-event_ndim).abs(), value.abs()[..., None]
    down = (slope.flatten(-event_ndim) > 0) == (value[..., None] > 0)
    room = torch.where(down, flat - threat.low, threat.high - flat).clamp_min(0)
    speed = (steep > 0).to(z.dtype) if threat.norm == "linf" else steep
    stops, order = (room / speed.clamp_min(TINY)).masked_fill(speed == 0, torch.inf).sort(-1)
    gain = (steep * speed).gather(-1, order).double()
    full = (steep * room).gather(-1, order).double().cumsum(-1)  # what those bring that have stopped
    left = gain.flip(-1).cumsum(-1).flip(-1)  # the rate of those that have not
    bring = full - (steep * room).gather(-1, order) + left * stops.nan_to_num(posinf=0)  # until each stop
    at = (bring < short).sum(-1, keepdim=True).clamp_max(flat.shape[-1] - 1)  # the first stop that is far enough
    before = (full - (steep * room).gather(-1, order)).gather(-1, at)
    time = ((short - before) / left.gather(-1, at).clamp_min(TINY)).clamp_max(_NEVER).to(z.dtype)
    moved = torch.minimum(time * speed, room)
    return torch.where(down, -moved, moved).view(z.shape)


def _size(delta: Tensor, norm: Norm, event_ndim: int) -> Tensor:
    """The length of each example's perturbation."""
    return (
        delta.flatten(-event_ndim).abs().amax(-1)
        if norm == "linf"
        else length(delta, event_ndim).flatten(-event_ndim)[..., 0]
    )


def _start(x: Tensor, threat: ThreatModel, random: Random, event_ndim: int) -> Tensor:
    """At a random point within ε/2."""
    if threat.norm == "linf":
        return threat.clip(x + threat.eps / 2 * (2 * random.uniform(x) - 1))
    return threat.clip(x + threat.eps / 2 * direction(random.normal(x), "l2", event_ndim))


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `fab` and `fabl2`."""
    register(FAB)
    register(FABL2)
