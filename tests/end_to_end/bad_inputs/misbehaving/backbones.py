"""Backbones that load, and break their contract when they run."""

import torch
from torch import nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone


class Running(Backbone):
    """Keeps running statistics."""

    name = "running"

    def build(self, shape, outputs):
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(shape[-1]), nn.Linear(shape[-1], outputs))


class Absent(Backbone):
    """Builds nothing."""

    name = "absent"

    def build(self, shape, outputs):
        nn.Linear(shape[-1], outputs)


class Narrow(Backbone):
    """Fits images of another size only."""

    name = "narrow"

    def build(self, shape, outputs):
        return nn.Linear(7, outputs)


class Unlucky(Backbone):
    """Begins with weights that are not numbers."""

    name = "unlucky"

    def build(self, shape, outputs):
        module = nn.Linear(shape[-1], outputs)
        nn.init.constant_(module.weight, torch.nan)
        return module


@hookimpl
def register_backbones(register):
    for backbone in (Running, Absent, Narrow, Unlucky):
        register(backbone)
