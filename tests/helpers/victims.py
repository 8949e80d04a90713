"""Models under attack for the tests: torch modules dressed as victims."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_meta.contracts import Victim


class ModuleVictim(Victim):
    """A module as a victim, over any leading axes of x [..., *shape]; its weights are data."""

    transductive = False

    def __init__(self, module: nn.Module, shape: tuple[int, ...], way: int) -> None:
        self.module, self.way, self.event_ndim = module.requires_grad_(False), way, len(shape)

    def __call__(self, x: Tensor) -> Tensor:
        leading = x.shape[: x.dim() - self.event_ndim]
        logits: Tensor = self.module(x.reshape(-1, *x.shape[x.dim() - self.event_ndim :]))
        return logits.view(*leading, -1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self(x)
        return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self(x).argmax(-1) != y


def conv(shape: tuple[int, int, int], way: int, gain: float = 3.0) -> ModuleVictim:
    """A small fixed convolutional network that an ε of 0.1 can fool."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = 8 * math.ceil(shape[1] / 4) * math.ceil(shape[2] / 4)
        module = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, stride=4, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(features, way)
        )
        with torch.no_grad():
            module[3].weight.mul_(gain)
    return ModuleVictim(module, shape, way)


def images(shape: tuple[int, ...], n: int, seed: int = 0, *, black_and_white: bool = False) -> Tensor:
    """Random images in [0, 1]."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return x.round() if black_and_white else x
