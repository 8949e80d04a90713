"""The residual network of few-shot learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from pydantic import Field
from torch import Tensor, nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone, Setting, with_head

from .conv4 import BatchStatistics, NormedBackbone

WIDTHS = (64, 160, 320, 640)


class ResNet12(NormedBackbone):
    """Four residual blocks of three 3×3 convolutions, each halving the picture; then a linear layer."""

    name: ClassVar[str] = "resnet12"
    source: ClassVar[str] = "Lee et al. 2019 (MetaOptNet), arXiv 1904.03758; group norm in place of running statistics"

    width: int = Field(64, ge=2, description="filters of the first block; the others have 2.5, 5 and 10 times as many")
    norm: Literal["group", "batch"] = Field(
        "group", description="normalisation; batch: by the batch at hand, which makes the model transductive"
    )
    features: Literal["mean", "flat"] = Field("mean", description="last block: its mean over places, or all of it")
    dropblock: float = Field(0.0, ge=0, lt=1, description="share of squares dropped after the last two blocks")

    def obstacle(self, setting: Setting) -> str | None:
        """It needs images of at least 16 pixels."""
        if len(setting.shape) != 3 or min(setting.shape[1:]) < 16:
            return f"it needs images of 16×16 pixels at least, not examples of shape {setting.shape}"
        return None

    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """The network; its features are the last block's mean over places, or all of it."""
        channels, height, width = shape
        layers: list[nn.Module] = []
        for index, filters in enumerate(self.width * each // WIDTHS[0] for each in WIDTHS):
            layers += [Block(channels, filters, self._norm), nn.MaxPool2d(2)]
            if self.dropblock and index >= 2:
                layers.append(DropBlock(self.dropblock))
            channels, height, width = filters, height // 2, width // 2
        if self.features == "mean":
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        return with_head(nn.Sequential(*layers, nn.Flatten()), (channels, height, width), outputs)

    def _norm(self, channels: int) -> nn.Module:
        return (
            BatchStatistics(channels) if self.norm == "batch" else nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
        )


class Block(nn.Module):
    """Three convolutions with norm and leaky ReLU beside a 1×1 convolution."""

    def __init__(self, before: int, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, inputs in enumerate((before, channels, channels)):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), norm(channels)]
            if index < 2:
                layers.append(nn.LeakyReLU(0.1))
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [n, channels, height, width] of maps x."""
        return F.leaky_relu(self.layers(x) + self.shortcut(x), 0.1)


class DropBlock(nn.Module):
    """Drop squares of maps in training (Ghiasi, Lin, Le 2018, arXiv 1810.12890), at most 5×5 places."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Maps [n, channels, height, width], a share of whose places is 0 and the others larger in turn."""
        side = min(5, *x.shape[-2:])
        side -= 1 - side % 2  # odd, to be centred
        if not self.training or side < 1:
            return x
        centres = (torch.rand_like(x) < self.rate / side**2).to(x.dtype)
        kept = 1 - F.max_pool2d(centres, side, stride=1, padding=side // 2)
        return x * kept / kept.mean().clamp_min(1e-3)


@hookimpl
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Bring resnet12."""
    register(ResNet12)
