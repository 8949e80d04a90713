"""What a backbone must offer."""

from __future__ import annotations

from abc import abstractmethod
from math import prod

from torch import nn

from robustbench_meta.contracts.plugin import Plugin, Setting


def with_head(body: nn.Sequential, feature_shape: tuple[int, ...], outputs: int | None) -> nn.Sequential:
    """Layers that give features [n, prod(feature_shape)], and after them a linear layer `head` with so many outputs.

    Args:
        body: the layers; changed in place.
        feature_shape: of the features of one image.
        outputs: None for no head.
    """
    body.feature_shape = feature_shape  # type: ignore[assignment]  # torch's modules take any attribute
    if outputs is not None:
        body.add_module("head", nn.Linear(prod(feature_shape), outputs))
    return body


class Backbone(Plugin):
    """A network architecture."""

    @property
    def norm_layer(self) -> str:
        """Its normalisation, for the leaderboard's column `norm`."""
        return "none"

    @property
    def transductive(self) -> bool:
        """True if the output for one example depends on the others in its batch."""
        return False

    @abstractmethod
    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """A freshly initialised module [n, *shape] → [n, outputs], or → [n, features] when `outputs` is None.

        The last layer, which gives the outputs, is its submodule `head` (`self.head = nn.Linear(…)`); what the head is
        given are the features, whose shape for one image, such as (channels, height, width), is its attribute
        `feature_shape` (see `with_head`). It keeps no state between calls (no running statistics), and draws only from
        torch's global generator. A module with `reads_support = True` is called as `module(x, support)` once a task is
        adapted: with the images that it was adapted to.
        """

    def obstacle(self, setting: Setting) -> str | None:
        """Why the backbone cannot work in this setting; None if it can."""
        return None
