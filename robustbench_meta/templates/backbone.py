"""The backbone my-backbone: a small convolutional network."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone, Setting


class MyBackbone(Backbone):
    """Blocks of convolution, layer norm and ReLU, each halving the image; then the mean over what is left."""

    # What one types; `bench list` shows it with the first line above.
    name: ClassVar[str] = "my-backbone"
    source: ClassVar[str] = "where it comes from: a paper, a project"

    # Options: typed as my-backbone:width=64, checked, and part of what identifies a result.
    width: int = Field(32, ge=1, description="channels of each block")
    depth: int = Field(3, ge=1, description="blocks")

    @property
    def norm_layer(self) -> str:
        """For the leaderboard's column `norm`."""
        return "layer"

    def obstacle(self, setting: Setting) -> str | None:
        """Why it cannot work in this setting; None if it can."""
        return None if len(setting.shape) == 3 else f"it needs images; an example here has the shape {setting.shape}"

    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """A fresh module [n, *shape] → [n, outputs], or → [n, width] when `outputs` is None: its features.

        A module may keep nothing between calls: no running statistics, as of nn.BatchNorm2d. A norm over the batch
        would make predictions depend on each other (transductive), one over each image does not.
        """
        layers: list[nn.Module] = []
        channels = shape[0]
        for _ in range(self.depth):
            convolution = nn.Conv2d(channels, self.width, kernel_size=3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(1, self.width), nn.ReLU()]
            channels = self.width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if outputs is not None:
            layers.append(nn.Linear(self.width, outputs))
        return nn.Sequential(*layers)


@hookimpl
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Bring `my-backbone`."""
    register(MyBackbone)
