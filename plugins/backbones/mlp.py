"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import ClassVar

from pydantic import Field
from torch import nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone, with_head


class MLP(Backbone):
    """Fully connected layers with ReLU on the flattened example."""

    name: ClassVar[str] = "mlp"

    width: int = Field(64, ge=1, description="units of each hidden layer")
    depth: int = Field(2, ge=1, description="hidden layers")

    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """The network; its features are the last hidden layer."""
        layers: list[nn.Module] = [nn.Flatten()]
        units = prod(shape)
        for _ in range(self.depth):
            layers += [nn.Linear(units, self.width), nn.ReLU()]
            units = self.width
        return with_head(nn.Sequential(*layers), (units,), outputs)


@hookimpl
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Bring mlp."""
    register(MLP)
