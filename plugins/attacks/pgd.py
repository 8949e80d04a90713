"""Projected gradient descent, on all tasks at once."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register

from .search_attack import EOT, Harm, SearchAttack, direction, expected, image_gradient, project, worse


class PGD(SearchAttack):
    """Projected gradient descent: steps along the sign of the loss's gradient, each put back into the ε-ball."""

    name: ClassVar[str] = "pgd"
    source: ClassVar[str] = "Madry et al. 2018, https://arxiv.org/abs/1706.06083"

    steps: int = Field(20, ge=1, description="number of steps")
    alpha: float | None = Field(None, gt=0, description="size of a step; none: 2.5·ε/steps, as Madry et al.")
    random_start: bool = Field(True, description="start at a random point of the ε-ball")
    restarts: int = Field(1, ge=1, description="starts; of several, the one that fools, else that of the highest loss")
    eot: int = EOT

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
        best: tuple[Tensor, Harm] | None = None
        for turn in range(self.restarts):
            if start is not None and turn == 0:
                begin = start
            else:
                begin = self._random_start(x, threat, random, model.event_ndim) if self.random_start else x
            found = self._ascend(model, begin, x, y, threat)
            if self.restarts == 1:
                return found
            with torch.no_grad():
                harm = Harm.of(model.fooled(found, y), model.loss(found, y), model.transductive)
            best = (found, harm) if best is None else worse(found, harm, *best, model.event_ndim)
        assert best is not None
        return best[0]

    def _ascend(self, model: Victim, start: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        alpha = 2.5 * threat.eps / self.steps if self.alpha is None else self.alpha
        found = start
        for _ in range(self.steps):
            gradient = image_gradient(self.name, model, found, y)
            step = alpha * direction(gradient, threat.norm, model.event_ndim)
            found = project(found + step, x, threat, model.event_ndim)
        return found

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
