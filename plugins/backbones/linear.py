"""A linear model, the one on which everything can be derived by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import ClassVar

from pydantic import Field
from torch import nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone


class Linear(Backbone):
    """One linear layer on the flattened example; its features are the example itself."""

    name: ClassVar[str] = "linear"

    bias: bool = Field(True, description="add a bias to each output")

    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """The layer."""
        network = nn.Sequential(nn.Flatten())
        network.feature_shape = (prod(shape),)  # type: ignore[assignment]  # torch's modules take any attribute
        if outputs is not None:
            network.add_module("head", nn.Linear(prod(shape), outputs, bias=self.bias))
        return network


@hookimpl
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Bring linear."""
    register(Linear)
