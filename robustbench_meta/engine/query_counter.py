"""What an attack costs, in images shown to the model and gradients taken at them: counted at the victim's door."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_meta.contracts import Method, Victim
from robustbench_meta.engine.attacked_model import Target


@dataclass
class QueryCount:
    """How often attacks asked the model, counted in images."""

    attacked: int = 0
    """Images that were attacked."""
    forward: int = 0
    """Images shown to the model, each time that one is: for logits, for losses, to see whether it fools. Repeats that
    fill up a batch count, for they are computed."""
    gradients: int = 0
    """Images to which autograd came back with a gradient."""

    def __add__(self, other: QueryCount) -> QueryCount:
        """Both together."""
        return QueryCount(
            self.attacked + other.attacked, self.forward + other.forward, self.gradients + other.gradients
        )  # fmt: skip

    def method(self) -> Method:
        """How attacks searched that took this much."""
        if self.gradients == 0:
            return "black-box" if self.forward else "random"
        return "iterative" if self.gradients > self.attacked else "single-step"

    def plain(self) -> dict[str, float]:
        """For the record: the count of attacked images, and means over them."""
        images = max(self.attacked, 1)
        return {
            "attacked_images": self.attacked,
            "forward_per_image": self.forward / images,
            "gradients_per_image": self.gradients / images,
        }


class _CountedTask:
    """A victim that counts what it is asked, and answers as it would have."""

    def __init__(self, victim: Victim, effort: QueryCount) -> None:
        self._asked, self._effort = victim, effort
        self.way, self.event_ndim, self.transductive = victim.way, victim.event_ndim, victim.transductive

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x."""
        return self._asked(self._shown(x))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example."""
        return self._asked.loss(self._shown(x), y)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each example is answered wrongly."""
        self._effort.forward += self._images(x)
        return self._asked.fooled(x, y)

    def loss_and_fooled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, of one forward pass."""
        return self._asked.loss_and_fooled(self._shown(x), y)

    def _images(self, x: Tensor) -> int:
        return math.prod(x.shape[: x.dim() - self.event_ndim])

    def _shown(self, x: Tensor) -> Tensor:
        """The same values; a gradient that passes on its way back to x is counted."""
        images = self._images(x)
        self._effort.forward += images
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x
        door = x.view_as(x)

        def passed(_: Tensor) -> None:
            self._effort.gradients += images

        door.register_hook(passed)  # type: ignore[no-untyped-call]  # torch has not typed it
        return door


class CountingModel(_CountedTask):
    """A victim of all tasks of a batch that counts what an attack asks of it.

    Args:
        victim: answers.
        effort: is added to.
    """

    def __init__(self, victim: Target, effort: QueryCount) -> None:
        super().__init__(victim, effort)
        self._victim = victim

    def task(self, index: int) -> Victim:
        """The victim of one task, counted with the others."""
        return _CountedTask(self._victim.task(index), self._effort)

    def tensors(self) -> list[Tensor]:
        """Everything that an attack must leave as it is."""
        return self._victim.tensors()

    def modules(self) -> Iterator[nn.Module]:
        """The modules whose modes are to stay."""
        return self._victim.modules()
