"""Projected gradient descent, on all tasks at once."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register

from .search_attack import (
    EOT,
    UNTIL_FOOLED,
    Harm,
    RandomOfSome,
    SearchAttack,
    Survivors,
    direction,
    expected,
    gradient_of,
    image_gradient,
    over_images,
    project,
    until_fooled,
    worse,
)


class _Found(NamedTuple):
    """Where a search is, or what several have found, each example by itself [tasks, n, …]."""

    x: Tensor
    """The clean images."""
    y: Tensor
    images: Tensor
    fooled: Tensor
    harm: Tensor


def _harm(model: Victim, images: Tensor, y: Tensor) -> Harm:
    with torch.no_grad():
        loss, fooled = model.loss_and_fooled(images, y)
    return Harm.of(fooled, loss, model.transductive)


class PGD(SearchAttack):
    """Projected gradient descent: steps along the sign of the loss's gradient, each put back into the ε-ball."""

    name: ClassVar[str] = "pgd"
    source: ClassVar[str] = "Madry et al. 2018, https://arxiv.org/abs/1706.06083"

    steps: int = Field(20, ge=1, description="number of steps")
    alpha: float | None = Field(None, gt=0, description="size of a step; none: 2.5·ε/steps, as Madry et al.")
    random_start: bool = Field(True, description="start at a random point of the ε-ball")
    restarts: int = Field(1, ge=1, description="starts; a later one is for what withstands those before it")
    eot: int = EOT
    until_fooled: bool = UNTIL_FOOLED

    @property
    def loss_only(self) -> bool:
        """It asks for nothing but the loss."""
        return True

    def how(self) -> Method:
        """A single step, if it takes only one."""
        return "single-step" if self.steps == self.restarts == 1 else self.method

    @model_validator(mode="after")
    def _starts_differ(self) -> Self:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start would all be the same one")
        return self

    def stronger(self) -> Attack | None:
        """Twice the steps, and a random start more."""
        restarts = self.restarts + 1 if self.random_start else 1
        return self.model_copy(update={"steps": 2 * self.steps, "restarts": restarts, "alpha": None})

    def search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """The last iterate for each image of x [tasks, n, *shape], or any other leading axes; the data set's loss.

        Of several restarts, the first of which begins at `start` if that is given, the worst for each image.

        Raises:
            BenchError: the model's loss does not depend differentiably on x.
        """
        model = expected(model, self.eot)
        found = self._ascend(model, x, y, threat, random, start)
        if self.restarts == 1:
            return found
        worst = _Found(x, y, found, *_harm(model, found, y))
        for _ in range(1, self.restarts):
            some = None
            if not model.transductive and y.dim() == 2:
                some = Survivors.of(worst.fooled == 0)
                if some is None:
                    break
            part, own = worst, random
            if some is not None:
                part, own = _Found(*map(some.gather, worst)), RandomOfSome(random, some.which, y.shape[1])
            found = self._ascend(model, part.x, part.y, threat, own, None)
            images, harm = worse(
                found, _harm(model, found, part.y), part.images, Harm(part.fooled, part.harm), model.event_ndim
            )
            part = part._replace(images=images, fooled=harm.fooled, harm=harm.value)
            worst = part if some is None else _Found(*map(some.scatter, part, worst))
        return worst.images

    def _ascend(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        begin = start
        if begin is None:
            begin = self._random_start(x, threat, random, model.event_ndim) if self.random_start else x
        if not self.until_fooled or model.transductive:  # there, who is fooled changes with the others
            for _ in range(self.steps):
                begin = self._step(image_gradient(self.name, model, begin, y), begin, x, threat, model.event_ndim)
            return begin

        def climb(at: _Found, turns: range) -> _Found:
            for _ in turns:
                with torch.enable_grad():
                    leaf = at.images.detach().clone().requires_grad_()
                    loss, fooled = model.loss_and_fooled(leaf, at.y)
                    gradient = gradient_of(self.name, loss, leaf)
                fooled = at.fooled | fooled
                moved = self._step(gradient, at.images, at.x, threat, model.event_ndim)
                at = at._replace(
                    images=torch.where(over_images(fooled, model.event_ndim), at.images, moved), fooled=fooled
                )
            return at

        never = torch.zeros_like(y, dtype=torch.bool)
        at = _Found(x, y, begin, never, never)
        if y.dim() != 2:
            return climb(at, range(self.steps)).images
        return until_fooled(at, lambda at: at.fooled, climb, self.steps).images

    def _step(self, gradient: Tensor, images: Tensor, x: Tensor, threat: ThreatModel, event_ndim: int) -> Tensor:
        alpha = 2.5 * threat.eps / self.steps if self.alpha is None else self.alpha
        return project(images + alpha * direction(gradient, threat.norm, event_ndim), x, threat, event_ndim)

    def _random_start(self, x: Tensor, threat: ThreatModel, random: Random, event_ndim: int) -> Tensor:
        """Uniform in the ball."""
        return threat.clip(x + threat.eps * (2 * random.uniform(x) - 1))


class PGDL2(PGD):
    """Projected gradient descent in the L2 norm: steps along the loss's gradient, each put back into the ε-ball."""

    name: ClassVar[str] = "pgdl2"

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"

    def _random_start(self, x: Tensor, threat: ThreatModel, random: Random, event_ndim: int) -> Tensor:
        """A random direction, and a distance uniform on [0, ε]."""
        radius = random.uniform(x.flatten(-event_ndim)[..., :1]).view(*x.shape[:-event_ndim], *(1,) * event_ndim)
        return threat.clip(x + threat.eps * radius * direction(random.normal(x), "l2", event_ndim))


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `pgd` and `pgdl2`."""
    register(PGD)
    register(PGDL2)
