"""The four-block convolutional network of few-shot learning."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone, Setting, with_head


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


class Joined(nn.Module):
    """The outputs of the first layers beside those of the last, flattened (R2-D2: of the last two blocks)."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, x: Tensor) -> Tensor:
        """Both [n, features] of x [n, *shape]."""
        middle = self.first(x)
        return torch.cat([middle.flatten(1), self.last(middle).flatten(1)], 1)


class NormedBackbone(Backbone):
    """A backbone with an option `norm`."""

    if TYPE_CHECKING:  # an option has its place among those of the backbone
        norm: str

    @property
    def norm_layer(self) -> str:
        """The option `norm`."""
        return self.norm

    @property
    def transductive(self) -> bool:
        """Statistics of the batch at hand make an example's output depend on its batch mates."""
        return self.norm == "batch"


class Conv4(NormedBackbone):
    """Four blocks of 3×3 convolution, norm, ReLU, each halving the picture; then a linear layer."""

    name: ClassVar[str] = "conv4"
    source: ClassVar[str] = "Vinyals et al. 2016 (max-pool); Finn et al. 2017 (strided, for Omniglot)"

    width: int | str = Field(64, description="filters of each block, or of the four as 96-192-384-512")
    pool: Literal["stride", "max"] = Field("stride", description="halve by strided convolution or by max-pooling")
    norm: Literal["group", "batch", "support", "layer", "none"] = Field(
        "group",
        description="normalisation; batch: by the statistics of the batch at hand, which makes the model transductive; "
        "support: by those of the support set, which does not",
    )
    features: Literal["mean", "flat", "last2"] | None = Field(
        None,
        description="last block: its mean over places, or all of it; last2: all of the last two; none: mean if strided "
        "with norm=batch or support",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of a block's outputs that are dropped in meta-training")
    groups: int = Field(
        8,
        ge=1,
        description="groups of norm=group; lowered to a divisor of the width, and to two channels each on 1×1 maps",
    )

    @field_validator("width", mode="before")
    @classmethod
    def _filters(cls, value: object) -> object:
        if isinstance(value, str):
            value = int(value) if value.isdigit() else value
        parts = [int(part) for part in value.split("-") if part.isdigit()] if isinstance(value, str) else [value]
        if len(parts) not in (1, 4) or (isinstance(value, str) and len(parts) != 4) or not all(parts):
            raise ValueError("expected a number of filters from 1, or four as 96-192-384-512")
        return value

    @property
    def widths(self) -> list[int]:
        """Filters of the four blocks."""
        return [self.width] * 4 if isinstance(self.width, int) else [int(part) for part in self.width.split("-")]

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
        if self.features == "last2" and self.norm == "support":
            return "features=last2 joins two blocks, which norm=support cannot take: use another norm"
        if self.norm in {"group", "layer"} and min(self.widths) == 1 and 1 in self._places(setting.shape):
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
        before = 0
        for places, filters in zip(self._places(shape), self.widths, strict=True):
            before, third = channels * height * width, len(layers)
            stride = 2 if self.pool == "stride" else 1
            layers += [nn.Conv2d(channels, filters, 3, stride, padding=1), *self._norm(places, filters), nn.ReLU()]
            channels = filters
            if self.pool == "max":
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            else:
                height, width = (height + 1) // 2, (width + 1) // 2
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
        if self.features == "last2":
            units = before + channels * height * width
            joined = Joined(nn.Sequential(*layers[:third]), nn.Sequential(*layers[third:]))
            return with_head(nn.Sequential(joined), (units,), outputs)
        meant = "mean" if self.pool == "stride" and self.norm in {"batch", "support"} else "flat"
        if (self.features or meant) == "mean":
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        layers.append(nn.Flatten())
        network = SupportNormed(*layers) if self.norm == "support" else nn.Sequential(*layers)
        return with_head(network, (channels, height, width), outputs)

    def _norm(self, places: int, width: int) -> list[nn.Module]:
        """The norm of `width` maps of so many places; a group of one number would be the same for every image."""
        groups = gcd(self.groups, width)
        if places == 1 and groups == width:
            groups = max((n for n in range(1, groups) if groups % n == 0), default=1)
        make: dict[str, Callable[[], nn.Module]] = {
            "group": lambda: nn.GroupNorm(groups, width),
            "batch": lambda: BatchStatistics(width),
            "support": lambda: BatchStatistics(width),
            "layer": lambda: nn.GroupNorm(1, width),
        }
        return [make[self.norm]()] if self.norm in make else []


@hookimpl
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Bring conv4."""
    register(Conv4)
