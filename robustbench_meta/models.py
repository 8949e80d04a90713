"""What learners compute with: a backbone as a pure function, and states of many tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from robustbench_meta.options import Precision
from robustbench_meta.precision import lowered

if TYPE_CHECKING:
    from robustbench_meta.contracts import LossName, Weights

Forward = Callable[[Any, Tensor], Tensor]


class Network:
    """A backbone as a pure function of its weights, with the data set's loss, for ONE task.

    Args:
        module: what the backbone built.
        loss: of the data set.
        way: number of classes.
        precision: of the module's layers.
        support: the images [m, *shape] that a module with `reads_support` is given beside x.
    """

    def __init__(
        self, module: nn.Module, loss: LossName, way: int, precision: Precision = "float32",
        support: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.module, self.loss_name, self.way, self.precision = module, loss, way, precision
        self.support = support

    @property
    def reads_support(self) -> bool:
        """Whether an adapted model's outputs depend on the support images beside its weights."""
        return bool(getattr(self.module, "reads_support", False))

    def with_support(self, support: Tensor) -> Network:
        """The same network, given these support images."""
        return Network(self.module, self.loss_name, self.way, self.precision, support)

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Outputs [n, outputs]."""
        outputs: Tensor
        shown = (x,) if self.support is None else (x, self.support)
        if self.precision == "bf16":
            with lowered(x.device):
                outputs = torch.func.functional_call(self.module, weights, shown)
            return outputs.to(x.dtype)
        outputs = torch.func.functional_call(self.module, weights, shown)
        return outputs

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss averaged over examples."""
        return self.losses(logits, y).mean()

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of each example: cross-entropy, or mean squared distance to the one-hot label."""
        if self.loss_name == "cross_entropy":
            return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)
        one_hot = (y[..., None] == torch.arange(logits.shape[-1], device=y.device)).to(logits.dtype)
        return (logits - one_hot).square().mean(-1)


def trainable(module: nn.Module) -> Weights:
    """Copies of a module's weights; those that it freezes (`requires_grad=False`) stay in it, neither θ nor adapted."""
    return {name: each.detach().clone() for name, each in module.named_parameters() if each.requires_grad}


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The logit of the right class less the largest other one, in the shape of y; logits [..., way]."""
    own = logits.gather(-1, y[..., None])[..., 0]
    return own - logits.scatter(-1, y[..., None], -torch.inf).amax(-1)


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
    def kind(self) -> Literal["shared", "own"]:
        """Whether tasks share at least part of it: what decides how to map."""
        return "shared" if None in self.leaves[1] else "own"

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
