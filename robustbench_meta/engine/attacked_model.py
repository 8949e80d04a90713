"""Models as attacks see them: adapted models on their images, and adaptation itself on its support images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustbench_meta.contracts import Random, Victim
from robustbench_meta.contracts.inner_loop import differentiable
from robustbench_meta.contracts.state import Forward, State
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.engine.network import Network
from robustbench_meta.errors import BenchError


class Mapper(Protocol):
    """What maps a learner over tasks: of the engine, what a model under attack needs."""

    @property
    def network(self) -> Network:
        """The backbone as a function of its weights."""
        ...

    @property
    def event_ndim(self) -> int:
        """How many axes an image has."""
        ...

    @property
    def transductive(self) -> bool:
        """Whether queries may influence each other."""
        ...

    def adapt(self, theta: State, support: Batch, **settings: Any) -> State:
        """One adapted state a task."""
        ...

    def logits(self, state: State, x: Tensor) -> Tensor:
        """Logits [tasks, n, way]."""
        ...


class Target(Victim, Protocol):
    """A victim of all tasks of a batch, with what an attack must leave as it is."""

    def task(self, index: int) -> Victim:
        """The victim of one task, without the task axis."""
        ...

    def tensors(self) -> list[Tensor]:
        """Weights, buffers and adapted states."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """The modules whose modes are to stay."""
        ...


class Perturbation(Protocol):
    """A bound attack that the harness has wrapped."""

    def __call__(self, model: Target, x: Tensor, y: Tensor, random: Random, start: Tensor | None = None) -> Tensor:
        """Verified adversarial images in the shape of x; the search begins at `start`, if any is given."""
        ...


class AttackedModel:
    """A state as an attack sees it: x [tasks, n, *shape] → logits [tasks, n, way], fixed weights.

    Args:
        engine: maps over tasks.
        state: whose logits they are.
        whole: how many examples a task has; a transductive model answers no other number.
    """

    def __init__(self, engine: Mapper, state: State, whole: int | None = None, way: int | None = None) -> None:
        self._engine, self._state, self._whole = engine, state.detach(), whole
        self.way, self.event_ndim = way or engine.network.way, engine.event_ndim
        self.transductive = engine.transductive

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x.

        Raises:
            BenchError: the model is transductive, and x is not the whole batch.
        """
        self.check_whole(x.shape[1])
        return self._engine.logits(self._state, x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example [tasks, n]."""
        return self._engine.network.losses(self(x), y)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each prediction is wrong [tasks, n]."""
        with torch.no_grad():
            return self(x).argmax(-1) != y

    def loss_and_fooled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, of one forward pass."""
        logits = self(x)
        return self.losses(logits, y), logits.detach().argmax(-1) != y

    def check_whole(self, count: int) -> None:
        """Raise unless so many examples of a task may be shown at once."""
        if self.transductive and self._whole is not None and count != self._whole:
            raise BenchError(
                f"an attack showed {count} of a task's {self._whole} images to a transductive model, whose predictions "
                "depend on the whole batch; declare `sub_batches` in the attack, and use an inductive norm"
            )

    def task(self, index: int) -> AttackedTask:
        """The model of one task."""
        return AttackedTask(self, self._state.task(index), self._state.forward)

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, from logits."""
        return self._engine.network.losses(logits, y)

    def tensors(self) -> list[Tensor]:
        """Everything that an attack must leave as it is."""
        return [*_leaves(self._state), *_tensors(self._engine)]

    def modules(self) -> Iterator[nn.Module]:
        """Of the backbone."""
        return self._engine.network.module.modules()


class AttackedTask:
    """One task's model as an attack sees it: x [n, *shape] → logits [n, way]."""

    def __init__(self, batch: AttackedModel, tree: Any, forward: Forward) -> None:
        self._batch, self._tree, self._forward = batch, tree, forward
        self.way, self.event_ndim, self.transductive = batch.way, batch.event_ndim, batch.transductive

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x."""
        self._batch.check_whole(len(x))
        return self._forward(self._tree, x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example [n]."""
        return self._batch.losses(self(x), y)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each prediction is wrong [n]."""
        with torch.no_grad():
            return self(x).argmax(-1) != y

    def loss_and_fooled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, of one forward pass."""
        logits = self(x)
        return self._batch.losses(logits, y), logits.detach().argmax(-1) != y


class PoisonedAdaptation(Victim):
    """Adaptation as an attack on the support set sees it: support images → how badly the clean queries then fare.

    The loss of a task is the mean loss of its queries under the model that is adapted to the images at hand,
    differentiable through all inner steps, second-order terms included, whatever order the learner trains with
    (poisoning of the support set as in Xu et al. 2020, arXiv 2009.01672, and Oldewage, Bronskill, Turner 2021,
    "Attacking Few-Shot Classifiers with Adversarial Support Poisoning"). Each support image is given an equal share,
    so that the sum over a task is that loss.

    Args:
        engine: maps over tasks.
        theta: what is adapted.
        query: the queries to be hurt, which this attacker knows with their labels: the worst case.
        shift: 0 to raise their loss; else they are driven towards the class that is so many further on, as its targeted
            attacks are in Oldewage et al.
    """

    def __init__(self, engine: Mapper, theta: State, query: Batch, shift: int = 0) -> None:
        self._engine, self._theta, self._query, self._shift = engine, theta.detach(), query, shift
        self.way, self.event_ndim = engine.network.way, engine.event_ndim
        self.transductive = True
        """An image's worth depends on all others of its task."""

    def __call__(self, x: Tensor) -> Tensor:
        """There are no logits of a support image through its own adaptation.

        Raises:
            BenchError: always.
        """
        raise BenchError(
            "the attack asks for logits; support poisoning goes through the loss of the queries alone: use an attack "
            "that declares `loss_only`, such as pgd or fgsm"
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """An equal share [tasks, n] of the mean loss of the task's queries after adaptation to (x, y)."""
        with differentiable():
            adapted = self._engine.adapt(self._theta, Batch(x, y))
        aim = (self._query.y + self._shift) % self.way
        losses = self._engine.network.losses(self._engine.logits(adapted, self._query.x), aim)
        losses = -losses if self._shift else losses
        return (losses.mean(1, keepdim=True) / y.shape[1]).expand(y.shape)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """False: there is always more to reach."""
        return torch.zeros_like(y, dtype=torch.bool)

    def task(self, index: int) -> Victim:
        """It is attacked by all tasks at once only.

        Raises:
            BenchError: always.
        """
        raise BenchError("support poisoning needs an attack that takes all tasks at once")

    def tensors(self) -> list[Tensor]:
        """Everything that an attack must leave as it is."""
        return [*_leaves(self._theta), *self._query, *_tensors(self._engine)]

    def modules(self) -> Iterator[nn.Module]:
        """Of the backbone."""
        return self._engine.network.module.modules()


def _leaves(state: State) -> list[Tensor]:
    return [leaf for leaf in state.leaves[0] if isinstance(leaf, Tensor)]


def _tensors(engine: Mapper) -> list[Tensor]:
    """The module's own, which no state holds: buffers, and parameters that stand in for θ's names."""
    return [*engine.network.module.parameters(), *engine.network.module.buffers()]
