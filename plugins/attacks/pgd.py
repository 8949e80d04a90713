"""Projected gradient descent, on all tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.threat import Norm, ThreatModel

from .searching import image_gradient


class PGD(Attack):
    """Projected gradient descent: steps along the sign of the loss's gradient, each put back into the ε-ball."""

    name: ClassVar[str] = "pgd"
    source: ClassVar[str] = "Madry et al. 2018, https://arxiv.org/abs/1706.06083"

    steps: int = Field(20, ge=1, description="number of steps")
    alpha: float | None = Field(None, gt=0, description="size of a step; none: 2.5·ε/steps, as Madry et al.")
    random_start: bool = Field(True, description="start at a random point of the ε-ball")
    restarts: int = Field(1, ge=1, description="starts; of several, the one that fools, else that of the highest loss")

    @property
    def loss_only(self) -> bool:
        """It asks for nothing but the loss."""
        return True

    @model_validator(mode="after")
    def _starts_differ(self) -> Self:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start would all be the same one")
        return self

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """The last iterate for each image of x [tasks, n, *shape], or any other leading axes; the data set's loss.

        Raises:
            BenchError: the model's loss does not depend differentiably on x.
        """
        return self._search(model, x, y, threat, [self._start(x, threat, random, model.event)], random)

    def perturb_from(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor
    ) -> Tensor:
        """The same, its first start being this one."""
        return self._search(model, x, y, threat, [start], random)

    def stronger(self) -> Attack | None:
        """Three times the steps, and a random start more."""
        restarts = self.restarts + 1 if self.random_start else 1
        return self.model_copy(update={"steps": 3 * self.steps, "restarts": restarts, "alpha": None})

    def _search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, starts: list[Tensor], random: Random
    ) -> Tensor:
        """From each start, and random ones until there are `restarts`: the worst for each image."""
        best, score = None, torch.empty(0)
        for turn in range(self.restarts):
            start = starts[turn] if turn < len(starts) else self._start(x, threat, random, model.event)
            found = self._ascend(model, start, x, y, threat)
            if self.restarts == 1:
                return found
            harm = _harm(model, found, y)
            if best is None:  # kept where no harm is a number, for the harness to find
                best, score = found, harm
                continue
            best = torch.where((harm > score).view(*y.shape, *(1,) * model.event), found, best)
            score = torch.maximum(score, harm)
        assert best is not None
        return best

    def _ascend(self, model: Victim, start: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        alpha = 2.5 * threat.eps / self.steps if self.alpha is None else self.alpha
        found = start
        for _ in range(self.steps):
            gradient = image_gradient(self.name, model, found, y)
            found = self._project(found + alpha * self._direction(gradient, model.event), x, threat, model.event)
        return found

    def _start(self, x: Tensor, threat: ThreatModel, random: Random, event: int) -> Tensor:
        return self._draw(x, threat, random, event) if self.random_start else x

    def _draw(self, x: Tensor, threat: ThreatModel, random: Random, event: int) -> Tensor:
        """Uniform in the ball."""
        return threat.clip(x + threat.eps * (2 * random.uniform(x) - 1))

    def _direction(self, gradient: Tensor, event: int) -> Tensor:
        return gradient.sign()

    def _project(self, moved: Tensor, x: Tensor, threat: ThreatModel, event: int) -> Tensor:
        return threat.clip(x + (moved - x).clamp(-threat.eps, threat.eps))


class PGDL2(PGD):
    """Projected gradient descent in the L2 norm: steps along the loss's gradient, each put back into the ε-ball."""

    name: ClassVar[str] = "pgdl2"

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"

    def _draw(self, x: Tensor, threat: ThreatModel, random: Random, event: int) -> Tensor:
        """A random direction, and a distance uniform on [0, ε]."""
        radius = random.uniform(x.flatten(-event)[..., :1]).view(*x.shape[:-event], *(1,) * event)
        return threat.clip(x + threat.eps * radius * self._direction(random.normal(x), event))

    def _direction(self, gradient: Tensor, event: int) -> Tensor:
        """The gradient at length 1; zero where it is zero."""
        exact = gradient.double()  # the square of a small float32 is zero
        return (exact / _length(exact, event).clamp_min(torch.finfo(exact.dtype).tiny)).to(gradient.dtype)

    def _project(self, moved: Tensor, x: Tensor, threat: ThreatModel, event: int) -> Tensor:
        delta = (moved - x).double()
        shrink = (threat.eps / _length(delta, event).clamp_min(threat.eps)) if threat.eps > 0 else 0.0
        return threat.clip(x + (delta * shrink).to(x.dtype))


def _length(delta: Tensor, event: int) -> Tensor:
    """The L2 norm over the axes of one example, which are kept."""
    return delta.square().sum(tuple(range(-event, 0)), keepdim=True).sqrt()


def _harm(model: Victim, x: Tensor, y: Tensor) -> Tensor:
    """Larger for a worse image: its loss, and above every loss if it fools the model.

    Of a transductive model all images of a task have one: an image was judged among these neighbours.
    """
    with torch.no_grad():
        harm = model.loss(x, y) + torch.where(model.fooled(x, y), 1e6, 0.0)
    return harm.mean(-1, keepdim=True).expand_as(harm) if model.transductive else harm


@hookimpl
def register_attacks(register: Callable[[type[Attack]], None]) -> None:
    """Bring `pgd` and `pgdl2`."""
    register(PGD)
    register(PGDL2)
