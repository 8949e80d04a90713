"""What an attack must offer, and the model that it is given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from robustbench_meta.contracts.plugin import Plugin, Setting
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.errors import BenchError
from robustbench_meta.runtime.devices import send
from robustbench_meta.runtime.seeds import seed_from

Method = Literal["random", "single-step", "iterative", "black-box"]
"""How an attack searches: blindly, by one gradient, by many, or by the model's answers alone."""


class Random:
    """An attack's randomness: one seed a task, so that a task's draws do not depend on its batch mates."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), in the shape of `like` [tasks, …]."""
        return self._draw(torch.rand, like)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape of `like` [tasks, …]."""
        return self._draw(torch.randn, like)

    def _draw(self, make: Callable[..., Tensor], like: Tensor) -> Tensor:
        drawn = [make(like.shape[1:], generator=generator, dtype=like.dtype) for generator in self._generators]
        return send(torch.stack(drawn), like.device)

    def split(self) -> list[Random]:
        """One Random a task."""
        return [Random([seed]) for seed in self.seeds]

    def seed(self) -> int:
        """One seed for code that seeds itself."""
        return seed_from("attack", *self.seeds)


class Victim(Protocol):
    """The model under attack: images → logits, differentiable in the images.

    An attack with `per_task` sees one task: x [n, *shape], y [n], logits [n, way]. Any other sees
    all tasks of a batch at once, with a task axis in front of each of them.
    """

    way: int
    event_ndim: int
    """How many axes one example has (3 for images): the last ones of x."""
    transductive: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x."""
        ...

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, not averaged: in the shape of y. What an attack wants large."""
        ...

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each example is answered wrongly, so that there is no more to reach: booleans in the shape of y."""
        ...

    def loss_and_fooled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`loss` and `fooled` of the same images, of one forward pass where the model can."""
        return self.loss(x, y), self.fooled(x.detach(), y)


class Attack(Plugin):
    """Makes adversarial images inside a threat model. It proposes; the harness checks and judges.

    The option `eps` is understood for every attack: it takes the place of the run's --eps.
    """

    per_task: ClassVar[bool] = False
    """True: the attack is given one task at a time, without the task axis."""
    certifies: ClassVar[bool] = False
    """True: it changes no image; its rows count the queries whose `certified_radius` is at least ε."""
    clean: ClassVar[bool] = False
    """True for the one that leaves its images as they are: it runs in the scenario clean/clean only."""
    method: ClassVar[Method] = "iterative"
    """How it searches. What a number of it can show depends on this: one gradient, or noise, show no robustness, and
    an attack that asks for no gradient beats one that does only where gradients mislead."""

    def how(self) -> Method:
        """`method`, or what the options make of it."""
        return self.method

    @property
    def loss_only(self) -> bool:
        """True if it asks the model for `loss` and `fooled` only, never for logits.

        Then it can be aimed at the loss of the queries through adaptation (support poisoning).
        """
        return False

    def stronger(self) -> Attack | None:
        """The same attack with clearly more steps or restarts, to see whether it has converged; None: there is none."""
        return None

    def for_success(self) -> Attack:
        """The same attack where nothing counts but which examples fool in the end: it may stop at those.

        It must fool the same ones. Attacks on a surrogate, or on support sets, are run as they are.
        """
        return self

    @property
    def norm(self) -> Norm:
        """The norm of its threat model."""
        return "linf"

    @property
    def sub_batches(self) -> bool:
        """True if it passes parts of a task's batch to the model, which a transductive model cannot answer."""
        return False

    def default_eps(self) -> float | str | None:
        """ε when neither the user nor the data set names one for this norm."""
        return None

    def eps_obstacle(self, eps: float) -> str | None:
        """Why the attack cannot work with this ε; None if it can."""
        if self.norm == "linf" and eps > 1:
            return "it is more than the whole pixel range: images lie in [0, 1]"
        if self.norm == "l0" and (eps < 1 or eps != int(eps)):
            return "in the l0 norm it is how many pixels may change: expected a whole number, 1 or more"
        if self.norm == "severity" and eps not in {1, 2, 3, 4, 5}:
            return "it is the severity of a corruption: expected a whole number from 1 to 5"
        return None

    @abstractmethod
    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Adversarial images in the shape of x; all randomness comes from `random`."""

    def perturb_from(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor
    ) -> Tensor:
        """The same, from `start` instead of where the attack would begin: what it found within a smaller ε.

        An attack that cannot begin elsewhere need not define it: whoever sweeps ε keeps what fooled before.
        """
        return self.perturb(model, x, y, threat, random)

    def certified_radius(self, model: Victim, sigma: float, x: Tensor, y: Tensor, random: Random) -> Tensor:
        """Of a certificate: the distance within which each prediction is proved right [tasks, n]; −1: it is not.

        The model is the classifier that is smoothed, `sigma` the standard deviation of the noise.
        """
        raise BenchError(f"attack '{self.name}' declares `certifies`: define certified_radius")

    def obstacle(self, setting: Setting) -> str | None:
        """Why the attack cannot work in this setting; None if it can."""
        return None


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The logit of the right class less the largest other one, in the shape of y; logits [..., way]."""
    own = logits.gather(-1, y[..., None])[..., 0]
    return own - logits.scatter(-1, y[..., None], -torch.inf).amax(-1)
