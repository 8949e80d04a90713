"""Shares work out to lanes; results come in the order of the pieces. Each piece seeds what it draws by itself."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from robustbench_meta.contracts import Weights
from robustbench_meta.lanes import Crew, Lanes
from robustbench_meta.tasks import Batch, TaskBatch

if TYPE_CHECKING:
    from robustbench_meta.engine import Engine

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Hands(Protocol[Item_contra, Result_co]):
    """Processes that work on items."""

    def map(self, items: Sequence[Item_contra]) -> Iterator[Result_co]:
        """The results in order."""
        ...


CrewFor = Callable[[int, Callable[[Item], Result]], AbstractContextManager[Hands[Item, Result]]]
"""(how many, the work) → who does it."""


def share_out(
    work: Callable[[Item], Result], items: Sequence[Item], *, lanes: int, crew: CrewFor[Item, Result],
    done: Callable[[int], None] | None = None, found: Callable[[Item, Result], None] | None = None,
) -> list[Result]:  # fmt: skip
    """The results in the order of the items.

    Args:
        work: on one item.
        items: what to work on.
        lanes: how many may work side by side.
        crew: gives who works where there are several.
        done: told how many items are finished.
        found: told each item and its result as soon as both are there.
    """

    def gathered(answers: Iterable[Result]) -> list[Result]:
        results = []
        for item, result in zip(items, _counted(answers, done), strict=True):
            if found is not None:
                found(item, result)
            results.append(result)
        return results

    lanes = min(lanes, len(items))
    if lanes <= 1:
        return gathered(map(work, items))
    with crew(lanes, work) as hands:
        return gathered(hands.map(items))


def _counted(results: Iterable[Result], done: Callable[[int], None] | None) -> Iterator[Result]:
    """The results, telling how many there have been."""
    for count, result in enumerate(results, 1):
        if done is not None:
            done(count)
        yield result


@dataclass
class Judged:
    """Running sums of what `loss` saw, on the device: loss and accuracy of the judged queries."""

    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    batches: int = 0

    def add(self, losses: Tensor, accuracies: Tensor) -> None:
        """Add the losses and accuracies [tasks] of one call."""
        self.loss = self.loss + losses.detach().sum()
        self.correct = self.correct + accuracies.detach().sum()
        self.batches += losses.shape[0]

    def merge(self, other: Judged) -> None:
        """Add what another one saw."""
        self.loss, self.correct = self.loss + other.loss, self.correct + other.correct
        self.batches += other.batches

    def means(self) -> dict[str, float]:
        """Mean loss and accuracy since the start, empty if nothing was judged; waits for the device."""
        if not self.batches:
            return {}
        return {"loss": float(self.loss) / self.batches, "accuracy": float(self.correct) / self.batches}


class Verdict(NamedTuple):
    """What adapted states make of their queries."""

    clean: Judged
    attacked: Judged
    """By the learner's training attack; nothing where it has none."""


class Part(NamedTuple):
    """What one chunk of the tasks of a meta-step gave."""

    updates: list[tuple[list[Tensor], float]]
    """A gradient, weight by weight, and a rate for each meta-update."""
    judged: Judged


class Stepping:
    """A crew that stays from one meta-step to the next: θ and the tasks lie in memory that all its processes see.

    Args:
        fresh: gives the engine of a process, as it is at the fork.
        count: how many processes.
        lanes: is told the memory that they took.
        frozen: what must not have changed since the fork.
        weights: θ, for the shapes.
        tasks: of a meta-step, for the shapes.
    """

    def __init__(
        self, fresh: Callable[[], Engine], count: int, lanes: Lanes, frozen: tuple[object, ...], weights: Weights,
        tasks: TaskBatch,
    ) -> None:  # fmt: skip
        self._fresh, self._count, self._frozen = fresh, count, frozen
        self._weights = {name: _shared(weight).requires_grad_() for name, weight in weights.items()}
        self._tasks = TaskBatch(*(Batch(_shared(batch.x), _shared(batch.y)) for batch in tasks))
        self._seeds: Sequence[int] = ()
        self._crew = Crew(self._part, count, lanes)

    def fits(self, count: int, frozen: tuple[object, ...], weights: Weights, tasks: TaskBatch) -> bool:
        """Whether it can do such meta-steps."""
        same = all(now is then for now, then in zip(frozen, self._frozen, strict=True))
        return count == self._count and same and _kinds(weights, tasks) == _kinds(self._weights, self._tasks)

    def about(self, weights: Weights, tasks: TaskBatch, seeds: Sequence[int]) -> Stepping:
        """With the θ, tasks and seeds of the next meta-step."""
        with torch.no_grad():
            for ours, theirs in zip(_tensors(self._weights, self._tasks), _tensors(weights, tasks), strict=True):
                ours.copy_(theirs)
        self._seeds = seeds
        return self

    def __enter__(self) -> Stepping:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.dismiss()  # some may still be at work on this step

    def map(self, items: Sequence[slice]) -> Iterator[Part]:
        """What these chunks of the tasks give."""
        for updates, judged in self._crew.map([(which, list(self._seeds[which])) for which in items]):
            yield Part([([torch.from_numpy(each) for each in arrays], rate) for arrays, rate in updates], judged)

    def dismiss(self) -> None:
        """End its processes."""
        self._crew.dismiss()

    def _part(self, item: tuple[slice, list[int]]) -> tuple[list[Any], Judged]:
        """One chunk, in one of the processes; gradients as arrays, which are quick to pickle."""
        which, seeds = item
        updates, judged = self._fresh().part(self._weights, self._tasks.part(which), self._tasks.tasks, seeds)
        return [([gradient.numpy() for gradient in gradients], rate) for gradients, rate in updates], judged


def _tensors(weights: Weights, tasks: TaskBatch) -> list[Tensor]:
    return [*weights.values(), *(tensor for batch in tasks for tensor in batch)]


def _kinds(weights: Weights, tasks: TaskBatch) -> list[object]:
    return [*weights, *((tensor.shape, tensor.dtype) for tensor in _tensors(weights, tasks))]


def _shared(like: Tensor) -> Tensor:
    """A copy in memory that stays shared with processes that are forked afterwards."""
    if like.numel() == 0:
        return like.detach().clone()
    memory = mmap.mmap(-1, like.numel() * like.element_size())
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape).copy_(like.detach())
