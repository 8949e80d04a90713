"""The four-block convolutional network of few-shot learning."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone, Setting


class BatchStatistics(nn.Module):
    """Batch norm by the statistics of the images at hand (Ioffe & Szegedy 2015, algorithm 1), from plain operations.

    Not torch's own: in torch 2.13 its second derivative is wrong under vmap (first derivatives are right),
    so that second-order MAML would follow a wrong gradient without any sign of it.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Normalise x [n, channels, height, width] by channel, by the statistics of the `first` so many, or of all."""
        centred = x - x[:first].mean((0, 2, 3), keepdim=True)
        deviation = (centred[:first].square().mean((0, 2, 3), keepdim=True) + self.epsilon).sqrt()
        return centred * (self.weight[:, None, None] / deviation) + self.bias[:, None, None]


class SupportNormed(nn.Sequential):
    """Layers whose batch norms take their statistics from the support set alone, layer by layer.

    So an image's output depends on itself and on the support set, never on the other images that it comes with.
    """

    reads_support: ClassVar[bool] = True

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        """Outputs of x [n, *shape]; without a support set [m, *shape], by the statistics of x itself."""
        first = len(x if support is None else support)
        outputs = x if support is None else torch.cat([support, x])
        for layer in self:
            outputs = layer(outputs, first) if isinstance(layer, BatchStatistics) else layer(outputs)
        return outputs[len(outputs) - len(x) :]


class Conv4(Backbone):
    """Four blocks of 3×3 convolution, norm, ReLU, each halving the picture; then a linear layer."""

    name: ClassVar[str] = "conv4"
    source: ClassVar[str] = "Vinyals et al. 2016 (max-pool); Finn et al. 2017 (strided, for Omniglot)"

    width: int = Field(64, ge=1, description="filters of each block")
    pool: Literal["stride", "max"] = Field("stride", description="halve by strided convolution or by max-pooling")
    norm: Literal["group", "batch", "support", "layer", "none"] = Field(
        "group",
        description="normalisation; batch: by the statistics of the batch at hand, which makes the model transductive; "
        "support: by those of the support set, which does not",
    )
    features: Literal["mean", "flat"] | None = Field(
        None,
        description="last block: its mean over places, or all of it; none: mean if strided with norm=batch or support",
    )
    groups: int = Field(
        8,
        ge=1,
        description="groups of norm=group; lowered to a divisor of the width, and to two channels each on 1×1 maps",
    )

    @property
    def norm_layer(self) -> str:
        """The option `norm`."""
        return self.norm

    @property
    def transductive(self) -> bool:
        """Statistics of the batch at hand make an example's output depend on its batch mates."""
        return self.norm == "batch"

    def obstacle(self, setting: Setting) -> str | None:
        """It needs images, of at least 16 pixels where it max-pools."""
        if len(setting.shape) != 3:
            return (
                f"it needs images (channels, height, width), not examples of shape {setting.shape}: try mlp or linear"
            )
        if self.pool == "max" and min(setting.shape[1:]) < 16:
            return (
                f"it max-pools four times, and {setting.shape[1:]} pixels are too few (16×16 at least): use pool=stride"
            )
        if self.norm in {"group", "layer"} and self.width == 1 and 1 in self._places(setting.shape):
            return (
                f"on {setting.shape[1:]} pixels its last map is one place, and norm={self.norm} of a single channel "
                "there is the same for every image: use more width, or norm=none"
            )
        return None

    def _places(self, shape: tuple[int, ...]) -> list[int]:
        """How many places (height × width) each block's norm sees."""
        _, height, width = shape
        found = []
        for _ in range(4):
            if self.pool == "stride":
                height, width = (height + 1) // 2, (width + 1) // 2
            found.append(height * width)
            if self.pool == "max":
                height, width = height // 2, width // 2
        return found

    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """The network. Its features are the last block's mean over places or all of it, as `features` says.

        MAML's code takes the mean where it strides, with batch norm; so does norm=support. Norms that centre each
        example over places would leave the mean little to tell: there, and after max-pooling, all of it is taken.
        """
        layers: list[nn.Module] = []
        channels, height, width = shape
        for places in self._places(shape):
            stride = 2 if self.pool == "stride" else 1
            layers += [nn.Conv2d(channels, self.width, 3, stride, padding=1), *self._norm(places), nn.ReLU()]
            channels = self.width
            if self.pool == "max":
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            else:
                height, width = (height + 1) // 2, (width + 1) // 2
        meant = "mean" if self.pool == "stride" and self.norm in {"batch", "support"} else "flat"
        if (self.features or meant) == "mean":
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        layers.append(nn.Flatten())
        if outputs is not None:
            layers.append(nn.Linear(channels * height * width, outputs))
        return SupportNormed(*layers) if self.norm == "support" else nn.Sequential(*layers)

    def _norm(self, places: int) -> list[nn.Module]:
        """The norm of a map of so many places; a group of a single number would be the same for every image."""
        groups = gcd(self.groups, self.width)
        if places == 1 and groups == self.width:
            groups = max((n for n in range(1, groups) if groups % n == 0), default=1)
        make: dict[str, Callable[[], nn.Module]] = {
            "group": lambda: nn.GroupNorm(groups, self.width),
            "batch": lambda: BatchStatistics(self.width),
            "support": lambda: BatchStatistics(self.width),
            "layer": lambda: nn.GroupNorm(1, self.width),
        }
        return [make[self.norm]()] if self.norm in make else []


@hookimpl
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Bring conv4."""
    register(Conv4)
