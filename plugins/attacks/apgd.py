"""Auto-PGD, on all tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, NamedTuple

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
    UNTIL_FOOLED,
    Harm,
    SearchAttack,
    WorstCase,
    direction,
    expected,
    gradient_of,
    likeliest_wrong,
    over_images,
    project,
    to_edge,
    until_fooled,
    worse,
)

Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, y, the classes aimed at) → (what is to be large, differentiably; whether they fool), in the shape of y."""
_Point = tuple[Tensor, Tensor, Tensor]
"""Images, what they are worth, and the gradient there."""
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
    until_fooled: bool = UNTIL_FOOLED

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

    def for_success(self) -> Attack:
        """The highest loss of what fools is not wanted."""
        return self.model_copy(update={"until_fooled": True})

    def search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """An image that fools for each of x [tasks, n, *shape], or any other leading axes; else that of highest loss.

        What the model gets wrong as it is, or at `start`, stays so; the first start (towards each class) is `start`.

        Raises:
            BenchError: the loss does not depend differentiably on x, or it or its gradient is no number.
        """
        model = expected(model, self.eot)
        ascent = _Search(self.name, self._objective(model), threat, model)
        worst = WorstCase(model, x, y, x if start is None else start)
        for target in range(min(model.way - 1, TARGETS) if self.loss == "dlr-targeted" else 1):
            for turn in range(self.restarts):

                def ascend(x: Tensor, y: Tensor, random: Random, found: Tensor) -> Tensor:
                    given = start is not None and turn == 0  # noqa: B023  # called at once
                    begin = found if given else _start(x, threat, random, model.event_ndim)
                    aim = y if self.loss != "dlr-targeted" else likeliest_wrong(model, x, y, target)  # noqa: B023
                    return ascent.run(x, y, aim, begin, steps=self.steps, rho=self.rho, drops=self.until_fooled)

                worst.go_on(ascend, random)
        return worst.found

    def _objective(self, model: Victim) -> Objective:
        if self.loss == "ce":
            return lambda images, y, _: model.loss_and_fooled(images, y)
        if self.loss == "dlr":
            return lambda images, y, _: _of_logits(model(images), y, dlr)
        return lambda images, y, aim: _of_logits(model(images), y, lambda logits, y: targeted_dlr(logits, y, aim))


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


class _Ascent(NamedTuple):
    """Where one run of Algorithm 1 is, each example by itself [tasks, n, …]."""

    x: Tensor
    """The clean images."""
    y: Tensor
    aim: Tensor
    """The class that a targeted search aims at."""
    images: Tensor
    value: Tensor
    """What is to be large."""
    gradient: Tensor
    before: Tensor
    """The images a step ago."""
    best: Tensor
    best_value: Tensor
    best_gradient: Tensor
    best_then: Tensor
    """The best value at the last checkpoint."""
    size: Tensor
    """Of the next step."""
    halved: Tensor
    """Whether the size was halved at the last checkpoint."""
    rises: Tensor
    """Steps since then that raised the value."""
    worst: Tensor
    """The images that do the most harm."""
    fooled: Tensor
    harm: Tensor
    """The value at `worst`, as `Harm` has it."""
    lost: Tensor
    """Whether the loss or its gradient was no number somewhere."""


class _Search:
    """Runs of Algorithm 1, all examples at once; no step of it waits for the device.

    Args:
        attack: its name, for messages.
        objective: what is to be large.
        threat: the ball.
        model: for its axes, and whether it is transductive: then the examples of a task share their decisions.
    """

    def __init__(self, attack: str, objective: Objective, threat: ThreatModel, model: Victim) -> None:
        self._attack, self._objective, self._threat = attack, objective, threat
        self._event, self._transductive = model.event_ndim, model.transductive

    def run(self, x: Tensor, y: Tensor, aim: Tensor, begin: Tensor, *, steps: int, rho: float, drops: bool) -> Tensor:
        """The images that fool, or else those of the highest value.

        Args:
            x: the clean images [tasks, n, *shape], or any other leading axes.
            y: their labels.
            aim: the class that each is driven to, where the search is a targeted one.
            begin: where to start.
            steps: how many.
            rho: the share of the steps between checkpoints that must raise the value.
            drops: leave out what is fooled, and return an early image of those that fool.

        Raises:
            BenchError: the loss or its gradient was no number at some image, and nothing fooled.
        """

        def climb(ascent: _Ascent, turns: range) -> _Ascent:
            for turn in turns:
                ascent = self._step(ascent, turn + 1, steps, rho)
            return ascent

        ascent = self._begin(x, y, aim, begin)
        if drops and not self._transductive and y.dim() == 2:
            ascent = until_fooled(ascent, lambda ascent: ascent.fooled > 0, climb, steps)
        else:
            ascent = climb(ascent, range(steps))
        if bool((ascent.lost & (ascent.fooled == 0)).any()):
            raise BenchError(
                f"attack '{self._attack}' met a loss or a gradient that is not a number, so that it says nothing about "
                "robustness; use an attack that needs no gradient, such as square, or mend the model"
            )
        return ascent.worst

    def _begin(self, x: Tensor, y: Tensor, aim: Tensor, begin: Tensor) -> _Ascent:
        value, gradient, harm, lost = self._at(begin, y, aim)
        size = torch.full_like(value, 2 * self._threat.eps)
        never = torch.zeros_like(size, dtype=torch.bool)
        return _Ascent(
            x=x, y=y, aim=aim, images=begin, value=value, gradient=gradient, before=begin,
            best=begin, best_value=value, best_gradient=gradient, best_then=value,
            size=size, halved=never, rises=torch.zeros_like(size),
            worst=begin, fooled=harm.fooled, harm=harm.value, lost=lost,
        )  # fmt: skip

    def _step(self, at: _Ascent, step: int, steps: int, rho: float) -> _Ascent:
        """A step up, and of what it moves a part, beside a part of the last move; sizes halve at checkpoints."""
        way = direction(at.gradient, self._threat.norm, self._event)
        images = self._inside(at.images + over_images(at.size, self._event) * way, at.x)
        if step > 1:
            moved = at.images + MOMENTUM * (images - at.images) + (1 - MOMENTUM) * (at.images - at.before)
            images = self._inside(moved, at.x)
        value, gradient, harm, lost = self._at(images, at.y, at.aim, last=step == steps)
        worst, kept = worse(images, harm, at.worst, Harm(at.fooled, at.harm), self._event)
        here, best = (images, value, gradient), (at.best, at.best_value, at.best_gradient)
        best = self._choose(value > at.best_value, here, best)
        at = at._replace(
            before=at.images, rises=at.rises + (value > at.value), worst=worst, fooled=kept.fooled, harm=kept.value,
            lost=at.lost | lost,
        )  # fmt: skip
        if step in (considered := [0, *checkpoints(steps)]):
            since = step - considered[considered.index(step) - 1]
            halved = (at.rises < rho * since) | (~at.halved & (best[1] == at.best_then))
            at = at._replace(
                halved=halved, size=torch.where(halved, at.size / 2, at.size), best_then=best[1],
                rises=torch.zeros_like(at.rises),
            )  # fmt: skip
            here = self._choose(halved, best, here)
        images, value, gradient = here
        return at._replace(
            images=images, value=value, gradient=gradient, best=best[0], best_value=best[1], best_gradient=best[2]
        )

    def _inside(self, images: Tensor, x: Tensor) -> Tensor:
        return project(images, x, self._threat, self._event)

    def _at(self, images: Tensor, y: Tensor, aim: Tensor, last: bool = False) -> tuple[Tensor, Tensor, Harm, Tensor]:
        """The value, its gradient, the harm, and whether any of it is no number."""
        with torch.set_grad_enabled(not last):
            leaf = images.detach().requires_grad_(not last)
            value, fooled = self._objective(leaf, y, aim)
            gradient = images if last else gradient_of(self._attack, value, leaf)
        lost = (value + gradient.flatten(-self._event).sum(-1)).isnan().detach()
        harm = Harm.of(fooled, value.detach(), self._transductive)
        return harm.value, gradient, harm, lost

    def _choose(self, chosen: Tensor, these: _Point, those: _Point) -> _Point:
        wide = over_images(chosen, self._event)
        return (
            torch.where(wide, these[0], those[0]),
            torch.where(chosen, these[1], those[1]),
            torch.where(wide, these[2], those[2]),
        )


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `apgd` and `apgdl2`."""
    register(APGD)
    register(APGDL2)
