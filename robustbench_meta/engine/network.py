"""A backbone as a pure function of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from robustbench_meta.options import Precision
from robustbench_meta.runtime.precision import lowered

if TYPE_CHECKING:
    from robustbench_meta.contracts import LossName, Weights


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
