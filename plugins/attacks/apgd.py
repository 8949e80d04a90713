"""Auto-PGD, on all tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Setting, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.errors import BenchError
from robustbench_meta.hookspecs import Register

from .search_attack import (
    EOT,
    TINY,
    Harm,
    SearchAttack,
    WorstCase,
    direction,
    expected,
    gradient_of,
    over_images,
    project,
    to_edge,
    worse,
)

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images → (what is to be large, differentiably; whether they fool), each in the shape of y."""
MOMENTUM = 0.75
TARGETS = 9
"""The most classes that a targeted search aims at, as in AutoAttack."""


class APGD(SearchAttack):
    """Auto-PGD: steps with momentum whose size halves where they do not help, each example by its own progress."""

    name: ClassVar[str] = "apgd"
    source: ClassVar[str] = "Croce & Hein 2020, https://arxiv.org/abs/2003.01690"

    steps: int = Field(100, ge=1, description="number of steps")
    restarts: int = Field(1, ge=1, description="random starts; a later one is for what withstands those before it")
    loss: Literal["ce", "dlr", "dlr-targeted"] = Field(
        "ce",
        description="ce: the data set's loss; dlr: difference of logits ratio; dlr-targeted: that towards each wrong "
        "class in turn, the likeliest first, 9 at most",
    )
    rho: float = Field(0.75, gt=0, le=1, description="the step halves where less than this part of the steps helped")
    eot: int = EOT

    @property
    def loss_only(self) -> bool:
        """It asks for nothing but the loss, unless another is chosen."""
        return self.loss == "ce"

    def how(self) -> Method:
        """A single step, if it takes only one."""
        return "single-step" if self.steps == self.restarts == 1 else self.method

    def obstacle(self, setting: Setting) -> str | None:
        """DLR compares the first and the third logit, targeted DLR the first, third and fourth."""
        least = {"ce": 0, "dlr": 3, "dlr-targeted": 4}[self.loss]
        if setting.way >= least:
            return None
        return f"its loss {self.loss} needs at least {least} classes, and this task is {setting.way}-way; use loss=ce"

    def stronger(self) -> Attack | None:
        """Twice the steps, and a random start more."""
        return self.model_copy(update={"steps": 2 * self.steps, "restarts": self.restarts + 1})

    def search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """An image that fools for each of x [tasks, n, *shape], or any other leading axes; else that of highest loss.

        What the model gets wrong as it is, or at `start`, stays so; the first start (towards each class) is `start`.

        Raises:
            BenchError: the loss does not depend differentiably on x, or it or its gradient is no number.
        """
        model = expected(model, self.eot)
        worst = WorstCase(model, x, y, x if start is None else start)
        for target in range(min(model.way - 1, TARGETS) if self.loss == "dlr-targeted" else 1):
            for turn in range(self.restarts):

                def ascend(x: Tensor, y: Tensor, random: Random, found: Tensor) -> Tensor:
                    given = start is not None and turn == 0  # noqa: B023  # called at once
                    begin = found if given else _start(x, threat, random, model.event_ndim)
                    objective = self._objective(model, x, y, target)  # noqa: B023
                    ascent = _Ascent(self.name, objective, x, begin, threat, model)
                    return ascent.run(self.steps, self.rho)

                worst.go_on(ascend, random)
        return worst.found

    def _objective(self, model: Victim, x: Tensor, y: Tensor, target: int) -> Objective:
        if self.loss == "ce":
            return lambda images: (model.loss(images, y), model.fooled(images.detach(), y))
        if self.loss == "dlr":
            return lambda images: _of_logits(model(images), y, dlr)
        with torch.no_grad():
            wrong = model(x).scatter(-1, y[..., None], -torch.inf).argsort(-1, descending=True)[..., target]
        return lambda images: _of_logits(model(images), y, lambda logits, y: targeted_dlr(logits, y, wrong))


class APGDL2(APGD):
    """Auto-PGD in the L2 norm: steps along the gradient, each put back into the ε-ball."""

    name: ClassVar[str] = "apgdl2"

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"


def _of_logits(logits: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return loss(logits, y), logits.detach().argmax(-1) != y


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio (eq. 6): −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3), in the shape of y."""
    ordered, order = logits.sort(-1, descending=True)
    rival = torch.where(order[..., 0] == y, ordered[..., 1], ordered[..., 0])
    own = logits.gather(-1, y[..., None])[..., 0]
    return (rival - own) / (ordered[..., 0] - ordered[..., 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted one (eq. 7): −(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2), in the shape of y."""
    ordered = logits.sort(-1, descending=True).values
    own, aim = (logits.gather(-1, which[..., None])[..., 0] for which in (y, target))
    return (aim - own) / (ordered[..., 0] - (ordered[..., 2] + ordered[..., 3]) / 2 + 1e-12)


def checkpoints(steps: int) -> Iterator[int]:
    """After which steps its size is considered: ⌈p_j·steps⌉, with p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06)."""
    before, part = 0, 22  # in hundredths, so that nothing is rounded
    while part <= 100:
        yield -(-part * steps // 100)
        before, part = part, part + max(part - before - 3, 6)


def _start(x: Tensor, threat: ThreatModel, random: Random, event_ndim: int) -> Tensor:
    """On the edge of the ball: noise scaled to length ε in its norm, then clipped."""
    if threat.norm == "l2":
        return to_edge(random.normal(x), x, threat, event_ndim)
    noise = 2 * random.uniform(x) - 1
    longest = noise.abs().amax(tuple(range(-event_ndim, 0)), keepdim=True).clamp_min(TINY)
    return project(x + threat.eps * noise / longest, x, threat, event_ndim)


@dataclass
class _Point:
    """Images, what they are worth, and the gradient there."""

    images: Tensor
    value: Tensor
    gradient: Tensor


class _Ascent:
    """One run of Algorithm 1, for all examples at once; no step of it waits for the device.

    Args:
        attack: its name, for messages.
        objective: what is to be large.
        x: the clean images.
        begin: where to start.
        threat: the ball.
        model: for its axes, and whether it is transductive: then the examples of a task share their decisions.
    """

    def __init__(
        self, attack: str, objective: Objective, x: Tensor, begin: Tensor, threat: ThreatModel, model: Victim
    ) -> None:
        self._attack, self._objective, self._x, self._threat = attack, objective, x, threat
        self._event, self._transductive = model.event_ndim, model.transductive
        self._lost = torch.zeros(x.shape[: -model.event_ndim], dtype=torch.bool, device=x.device)
        self._now, self._harm = self._at(begin)
        self._worst = begin

    def run(self, steps: int, rho: float) -> Tensor:
        """The images that fool, or else those of the highest value.

        Args:
            steps: how many.
            rho: the share of the steps between checkpoints that must raise the value.

        Raises:
            BenchError: the loss or its gradient was no number at some image, and nothing fooled.
        """
        considered = set(checkpoints(steps))
        best, before = self._now, self._now.images
        size = torch.full_like(best.value, 2 * self._threat.eps)
        rises, halved = torch.zeros_like(size), torch.zeros_like(size, dtype=torch.bool)
        since, best_then = 0, best.value
        for step in range(1, steps + 1):
            now = self._now
            images = self._step(now, before, size, MOMENTUM if step > 1 else 1.0)
            before = now.images
            self._visit(images, last=step == steps)
            rises = rises + (self._now.value > now.value)
            best = self._choose(self._now.value > best.value, self._now, best)
            if step in considered:
                halved = (rises < rho * (step - since)) | (~halved & (best.value == best_then))
                size = torch.where(halved, size / 2, size)
                self._now = self._choose(halved, best, self._now)
                rises, since, best_then = torch.zeros_like(rises), step, best.value
        if bool((self._lost & (self._harm.fooled == 0)).any()):
            raise BenchError(
                f"attack '{self._attack}' met a loss or a gradient that is not a number, so that it says nothing about "
                "robustness; use an attack that needs no gradient, such as square, or mend the model"
            )
        return self._worst

    def _step(self, now: _Point, before: Tensor, size: Tensor, momentum: float) -> Tensor:
        """A step up, and of what it moves a part, beside a part of the last move."""
        way = direction(now.gradient, self._threat.norm, self._event)
        there = project(now.images + over_images(size, self._event) * way, self._x, self._threat, self._event)
        if momentum == 1.0:
            return there
        moved = now.images + momentum * (there - now.images) + (1 - momentum) * (now.images - before)
        return project(moved, self._x, self._threat, self._event)

    def _visit(self, images: Tensor, last: bool) -> None:
        self._now, harm = self._at(images, last)
        self._worst, self._harm = worse(images, harm, self._worst, self._harm, self._event)

    def _at(self, images: Tensor, last: bool = False) -> tuple[_Point, Harm]:
        with torch.set_grad_enabled(not last):
            leaf = images.detach().requires_grad_(not last)
            value, fooled = self._objective(leaf)
            gradient = images if last else gradient_of(self._attack, value, leaf)
        self._lost = self._lost | (value + gradient.flatten(-self._event).sum(-1)).isnan()
        harm = Harm.of(fooled, value.detach(), self._transductive)
        return _Point(images, harm.value, gradient), harm

    def _choose(self, chosen: Tensor, these: _Point, those: _Point) -> _Point:
        wide = over_images(chosen, self._event)
        return _Point(
            torch.where(wide, these.images, those.images),
            torch.where(chosen, these.value, those.value),
            torch.where(wide, these.gradient, those.gradient),
        )


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `apgd` and `apgdl2`."""
    register(APGD)
    register(APGDL2)
