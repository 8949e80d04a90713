"""What our searches share: gradients, steps, and going on with the examples that still withstand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.contracts.tasks import gathered
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.errors import BenchError

Search = Callable[[Tensor, Tensor, Random, Tensor], Tensor]
"""(x, y, random, the images found so far) → adversarial images, for all examples of a batch or for some."""


class SearchAttack(Attack):
    """An attack whose search may begin anywhere in the ball."""

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """What the search finds from where it begins by itself."""
        return self.search(model, x, y, threat, random, None)

    def perturb_from(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor
    ) -> Tensor:
        """What it finds from this start."""
        return self.search(model, x, y, threat, random, start)

    @abstractmethod
    def search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """Adversarial images in the shape of x, from `start` if any is given."""


class Expectation(Victim):
    """A victim of which each question is answered by several calls: what to attack of a model that draws.

    The expectation over its transformations (Athalye et al. 2018, arXiv 1707.07397): mean logits, the mean loss, and
    whether more than half of the calls are wrong.

    Args:
        model: draws at each call.
        calls: how many.
    """

    def __init__(self, model: Victim, calls: int) -> None:
        self._model, self._calls = model, calls
        self.way, self.event_ndim, self.transductive = model.way, model.event_ndim, model.transductive

    def __call__(self, x: Tensor) -> Tensor:
        """The mean logits of x."""
        return torch.stack([self._model(x) for _ in range(self._calls)]).mean(0)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of each example."""
        return torch.stack([self._model.loss(x, y) for _ in range(self._calls)]).mean(0)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each example is answered wrongly by more than half of the calls."""
        wrong = torch.stack([self._model.fooled(x, y) for _ in range(self._calls)])
        return 2 * wrong.sum(0) > self._calls


EOT = Field(1, ge=1, description="calls that each answer of the model is averaged over; for models that draw")


UNTIL_FOOLED = Field(
    False, description="leave an example as it is once it is fooled: any step counts, and none makes it worse"
)


def expected(model: Victim, calls: int) -> Victim:
    """The model itself, or the expectation over so many calls of it."""
    return model if calls == 1 else Expectation(model, calls)


def gradient_of(attack: str, objective: Tensor, images: Tensor) -> Tensor:
    """The gradient of the summed objective, in the shape of the images; the attack's name is for the message.

    Raises:
        BenchError: the objective does not depend differentiably on the images.
    """
    summed = objective.sum()
    gradient = torch.autograd.grad(summed, images, allow_unused=True)[0] if summed.requires_grad else None
    if gradient is None:
        raise BenchError(
            f"attack '{attack}' needs the gradient of the loss with respect to the images, and this model gives none "
            "(its output does not depend differentiably on them); use an attack that needs no gradient, such as square"
        )
    return gradient


def image_gradient(attack: str, model: Victim, x: Tensor, y: Tensor) -> Tensor:
    """∇ₓ of the summed loss, in the shape of x; the attack's name is for the message.

    Raises:
        BenchError: the model's loss does not depend differentiably on x.
    """
    with torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        return gradient_of(attack, model.loss(images, y), images)


def likeliest_wrong(model: Victim, x: Tensor, y: Tensor, rank: int) -> Tensor:
    """Of each example the wrong class of that rank, 0 for the likeliest, in the shape of y."""
    with torch.no_grad():
        return model(x).scatter(-1, y[..., None], -torch.inf).argsort(-1, descending=True)[..., rank]


def over_images(values: Tensor, event_ndim: int) -> Tensor:
    """Values of each example, with an axis of length 1 for each axis of one."""
    return values.reshape(*values.shape, *(1,) * event_ndim)


def length(delta: Tensor, event_ndim: int) -> Tensor:
    """The L2 norm over the axes of one example, which are kept; scaled, so that no square is zero or infinite."""
    axes = tuple(range(-event_ndim, 0))
    scale = delta.abs().amax(axes, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
    return scale * (delta / scale).square().sum(axes, keepdim=True).sqrt()


def direction(gradient: Tensor, norm: Norm, event_ndim: int) -> Tensor:
    """Where to step: the sign of the gradient (linf), or the gradient at length 1 (l2); zero where it is zero."""
    if norm == "linf":
        return gradient.sign()
    return gradient / length(gradient, event_ndim).clamp_min(torch.finfo(gradient.dtype).tiny)


def project(moved: Tensor, x: Tensor, threat: ThreatModel, event_ndim: int) -> Tensor:
    """Into the ε-ball around x (of linf or l2), and then into the pixel range."""
    delta = moved - x
    if threat.norm == "linf":
        return threat.clip(x + delta.clamp(-threat.eps, threat.eps))
    radius = threat.eps * (1 - ROUNDING)
    return threat.clip(x + delta * (radius / length(delta, event_ndim).clamp_min(max(radius, TINY))))


def to_edge(delta: Tensor, x: Tensor, threat: ThreatModel, event_ndim: int) -> Tensor:
    """What x becomes when moved along delta by ε in L2, clipped to the pixel range."""
    return threat.clip(x + threat.eps * (1 - ROUNDING) * direction(delta, "l2", event_ndim))


def signs(uniform: Tensor) -> Tensor:
    """−1 or 1, from what is uniform on [0, 1)."""
    return 1 - 2 * (uniform < 0.5).to(uniform.dtype)


BLOCK = 5
"""After so many steps a search that goes on until something fools leaves out what does."""
ROUNDING = 1e-6
"""The part of ε that an L2 search leaves for the rounding of float32."""
TINY = torch.finfo(torch.float32).tiny


class Survivors(NamedTuple):
    """Some examples of each task, in the same number for all: those that withstand, and repeats of them.

    `which` [tasks, m] says which; of a task with none, m times its first example, of which nothing is kept.
    """

    withstand: Tensor
    which: Tensor

    @classmethod
    def of(cls, withstand: Tensor) -> Survivors | None:
        """From who withstands [tasks, n]; None if nobody does. It waits for the device."""
        counts = withstand.sum(1)
        most = int(counts.max())
        if most == 0:
            return None
        order = (~withstand).long().argsort(dim=1, stable=True)[:, :most]
        place = torch.arange(most, device=withstand.device)
        return cls(withstand, torch.where(place < counts[:, None], order, order[:, :1]))

    def gather(self, values: Tensor) -> Tensor:
        """Theirs of values [tasks, n, …]: [tasks, m, …]."""
        return gathered(values, self.which)

    def scatter(self, part: Tensor, values: Tensor) -> Tensor:
        """The values [tasks, n, …], where it is theirs replaced by `part` [tasks, m, …]."""
        count = values.shape[1]
        place = torch.arange(self.which.shape[1], device=values.device)
        target = torch.where(place < self.withstand.sum(1)[:, None], self.which, count)  # repeats: behind the last one
        index = target.reshape(*target.shape, *(1,) * (part.dim() - 2)).expand(part.shape)
        return torch.cat([values, values[:, :1]], 1).scatter(1, index, part)[:, :count]


_At = TypeVar("_At", bound=Sequence[Any])


def until_fooled(at: _At, fooled: Callable[[_At], Tensor], go_on: Callable[[_At, range], _At], steps: int) -> _At:
    """Go on with a search for so many steps, and leave out what is fooled, after every `BLOCK` of them.

    Args:
        at: where the search is: a named tuple of tensors [tasks, n, …].
        fooled: of such a tuple, who is fooled [tasks, n].
        go_on: from such a tuple of all examples, or of some, through these steps.
        steps: how many.
    """
    for done in range(0, steps, BLOCK):
        some = Survivors.of(~fooled(at))
        if some is None:
            break
        part = go_on(type(at)(*map(some.gather, at)), range(done, min(done + BLOCK, steps)))
        at = type(at)(*map(some.scatter, part, at))
    return at


class RandomOfSome(Random):
    """The draws of some examples: drawn for all of a task and then picked, so that they do not depend on the others.

    Args:
        whole: the randomness of the tasks.
        index: which examples [tasks, m].
        count: how many examples a task has.
    """

    def __init__(self, whole: Random, index: Tensor, count: int) -> None:
        super().__init__(whole.seeds)
        self._whole, self._index, self._count = whole, index, count

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), in the shape of `like` [tasks, m, …]."""
        return gathered(self._whole.uniform(self._all(like)), self._index)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape of `like` [tasks, m, …]."""
        return gathered(self._whole.normal(self._all(like)), self._index)

    def _all(self, like: Tensor) -> Tensor:
        return like.new_empty(like.shape[0], self._count, *like.shape[2:])


class Harm(NamedTuple):
    """How badly images fare: whether they fool, then how large is what the attack wants large.

    Of a transductive model both are means over the task [tasks, 1], for an image was judged among its neighbours.
    """

    fooled: Tensor
    value: Tensor

    @classmethod
    def of(cls, fooled: Tensor, value: Tensor, transductive: bool) -> Harm:
        """From what each example is worth."""
        fooled = fooled.to(value.dtype)
        if transductive:
            return cls(fooled.mean(-1, keepdim=True), value.mean(-1, keepdim=True))
        return cls(fooled, value)

    def exceeds(self, other: Harm) -> Tensor:
        """Where it is the worse one."""
        return (self.fooled > other.fooled) | ((self.fooled == other.fooled) & (self.value > other.value))

    def or_else(self, other: Harm, chosen: Tensor) -> Harm:
        """This one where chosen, elsewhere the other one."""
        return Harm(*(torch.where(chosen, mine, theirs) for mine, theirs in zip(self, other, strict=True)))


def worse(these: Tensor, harm: Harm, those: Tensor, other: Harm, event_ndim: int) -> tuple[Tensor, Harm]:
    """Of two images for each example the one that does more harm, and its harm; `those` where they are equal."""
    chosen = harm.exceeds(other)
    return torch.where(over_images(chosen, event_ndim), these, those), harm.or_else(other, chosen)


class WorstCase:
    """The worst image of each example over several searches, one after the other.

    An example that is fooled keeps its image; searches go on with those that withstand, gathered from each task. A
    transductive model is shown whole tasks only, and of a task all images are kept that leave the fewest right, or of
    as many those of the higher mean loss.

    Args:
        model: under attack.
        x: the clean images [tasks, n, *shape]; with other leading axes all examples are searched for every time.
        y: their labels.
        found: the images to begin with.
    """

    def __init__(self, model: Victim, x: Tensor, y: Tensor, found: Tensor) -> None:
        self._model, self._x, self._y, self.found = model, x, y, found
        self.fooled = model.fooled(found, y)
        self._harm = self._judge(found, self.fooled) if model.transductive else None

    def offer(self, images: Tensor) -> None:
        """Images for all examples."""
        fooled = self._model.fooled(images, self._y)
        better = ~self.fooled
        if self._harm is not None:
            harm = self._judge(images, fooled)
            chosen = harm.exceeds(self._harm)
            self._harm, better = harm.or_else(self._harm, chosen), chosen.expand_as(better)
        self.found = torch.where(over_images(better, self._model.event_ndim), images, self.found)
        self.fooled = torch.where(better, fooled, self.fooled)

    def go_on(self, search: Search, random: Random) -> None:
        """Search for the examples that withstand, if there are any."""
        if self._harm is not None or self._y.dim() != 2:
            self.offer(search(self._x, self._y, random, self.found))
            return
        some = Survivors.of(~self.fooled)
        if some is None:
            return
        x, y = some.gather(self._x), some.gather(self._y)
        images = search(x, y, RandomOfSome(random, some.which, self._y.shape[1]), some.gather(self.found))
        self.found = some.scatter(images, self.found)
        self.fooled = some.scatter(self._model.fooled(images, y), self.fooled)

    def _judge(self, images: Tensor, fooled: Tensor) -> Harm:
        with torch.no_grad():
            return Harm.of(fooled, self._model.loss(images, self._y), transductive=True)
