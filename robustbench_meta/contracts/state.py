"""A learner adapted to tasks: weights and whatever else, as one tree of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Weights = dict[str, Tensor]
"""θ: the meta-trained tensors by name: the network's, and the learner's own, whose names begin with `learner.`."""
OWN = "learner."
"""What the names of a learner's own meta-parameters begin with."""

Forward = Callable[[Any, Tensor], Tensor]


class WithSupport(NamedTuple):
    """What a learner adapted, beside the support images that it was adapted to, for a network that reads them."""

    tree: Any
    support: Tensor


@dataclass(frozen=True)
class State:
    """θ or adapted states of a batch of tasks, with the function that turns them into logits.

    `tree` is any pytree of tensors; `dims` says of each leaf whether all tasks share it (None) or
    each has its own along a leading axis (0).
    """

    tree: Any
    dims: Any
    forward: Forward
    """(one task's tree, x [n, *shape]) → logits [n, way]."""

    @classmethod
    def shared(cls, tree: Any, forward: Forward) -> State:
        """One tree for all tasks."""
        return cls(tree, pytree.tree_map(lambda _: None, tree), forward)

    @cached_property
    def leaves(self) -> tuple[list[Any], list[int | None]]:
        """The leaves and their dims."""
        leaves, spec = pytree.tree_flatten(self.tree)
        dims = pytree.tree_leaves(self.dims, is_leaf=lambda leaf: leaf is None)
        assert len(dims) == spec.num_leaves
        return leaves, dims

    @property
    def adapted(self) -> Any:
        """What the learner's `adapt` returned, with a task axis in front of leaves that differ by task."""
        return self.without_support().tree

    @cached_property
    def kind(self) -> Literal["shared", "own"]:
        """Whether tasks share most of its numbers, the learner's own aside: what decides how to map."""
        bare = self.without_support()
        if isinstance(bare.tree, dict):
            names = [name for name in bare.tree if not str(name).startswith(OWN)]
            bare = State(
                {name: bare.tree[name] for name in names}, {name: bare.dims[name] for name in names}, bare.forward
            )
        sizes = {None: 0, 0: 0}
        for leaf, dim in zip(*bare.leaves, strict=True):
            if isinstance(leaf, Tensor) and leaf.numel():
                sizes[dim] += leaf.numel() if dim is None else leaf[0].numel()
        return "own" if sizes[0] > sizes[None] else "shared"

    def with_support(self, support: Tensor) -> State:
        """The same state with support images [tasks, m, *shape] beside what the learner adapted."""
        bare = self.without_support()
        dims = WithSupport(bare.dims, 0)  # type: ignore[arg-type]  # dims have the shape of the tree
        return State(WithSupport(bare.tree, support), dims, self.forward)

    def without_support(self) -> State:
        """What the learner adapted, without support images beside it."""
        return State(self.tree.tree, self.dims.tree, self.forward) if isinstance(self.tree, WithSupport) else self

    def detach(self) -> State:
        """The same state as data: nothing that is computed from it differentiates into θ."""
        return State(pytree.tree_map(torch.Tensor.detach, self.tree), self.dims, self.forward)

    def each(self) -> Iterator[Any]:
        """One tree a task."""
        leaves, dims = self.leaves
        _, spec = pytree.tree_flatten(self.tree)
        columns = [repeat(leaf) if dim is None else leaf.unbind(0) for leaf, dim in zip(leaves, dims, strict=True)]
        if all(dim is None for dim in dims):  # a container each: what a learner puts into one must not reach the next
            return (pytree.tree_unflatten(leaves, spec) for _ in repeat(None))
        return (pytree.tree_unflatten(list(row), spec) for row in zip(*columns, strict=False))

    def task(self, index: int) -> Any:
        """One task's tree."""
        return pytree.tree_map(
            lambda leaf, dim: leaf if dim is None else leaf[index], self.tree, self.dims, is_leaf=_is_tensor
        )


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def feature_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of a module's features of one image, as it says in `feature_shape`; () if it does not."""
    return tuple(getattr(module, "feature_shape", ()))


def trainable(module: nn.Module) -> Weights:
    """Copies of a module's weights; those that it freezes (`requires_grad=False`) stay in it, neither θ nor adapted."""
    return {name: each.detach().clone() for name, each in module.named_parameters() if each.requires_grad}
