"""A backbone as a pure function of its weights."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from robustbench_meta.contracts.state import OWN, feature_shape
from robustbench_meta.errors import PluginError
from robustbench_meta.options import Precision
from robustbench_meta.runtime.precision import lowered

if TYPE_CHECKING:
    from robustbench_meta.contracts import LossName, Weights


HEAD = "head."
"""What the names of the weights of a backbone's last layer begin with."""


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

    @property
    def head(self) -> list[str]:
        """Names of the weights of the last layer, the module's submodule `head`.

        Raises:
            PluginError: there is none.
        """
        names = [name for name, _ in self.module.named_parameters() if name.startswith(HEAD)]
        if not names:
            raise PluginError(
                "the learner tells the head from the body, and the backbone has no submodule `head`: call its last "
                "layer so (self.head = nn.Linear(…))"
            )
        return names

    @property
    def body(self) -> list[str]:
        """Names of all other weights."""
        head = set(self.head)
        return [name for name, _ in self.module.named_parameters() if name not in head]

    @property
    def training(self) -> bool:
        """Whether this is meta-training."""
        return self.module.training

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of the features of one image, as the module says."""
        return feature_shape(self.module)

    def with_support(self, support: Tensor) -> Network:
        """The same network, given these support images."""
        return Network(self.module, self.loss_name, self.way, self.precision, support)

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Outputs [n, outputs]."""
        return self._call(self.module, weights, x)

    def features(self, weights: Weights, x: Tensor) -> Tensor:
        """What the head is given [n, features]: the outputs of the module without its head.

        Raises:
            PluginError: the module tells neither its head nor that its outputs are features.
        """
        body = copy(self.module)
        if "head" in self.module._modules:
            body._modules = {**self.module._modules, "head": nn.Identity()}
        elif not self.feature_shape:
            raise PluginError(
                "the learner works on features, and the backbone has neither a submodule `head` nor a `feature_shape`: "
                "call its last layer `head`, or build it by `with_head`"
            )
        return self._call(body, {name: weight for name, weight in weights.items() if not name.startswith(HEAD)}, x)

    def _call(self, module: nn.Module, weights: Weights, x: Tensor) -> Tensor:
        outputs: Tensor
        shown = (x,) if self.support is None else (x, self.support)
        network = {name: weight for name, weight in weights.items() if not name.startswith(OWN)}
        if self.precision == "bf16":
            with lowered(x.device):
                outputs = torch.func.functional_call(module, network, shown)
            return outputs.to(x.dtype)
        outputs = torch.func.functional_call(module, network, shown)
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
