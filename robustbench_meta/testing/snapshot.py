"""Tensors as they were, to see what somebody changed in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Snapshot:
    """What tensors hold, by what they are called in messages."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._live = dict(tensors)
        self._before = {name: (tensor.detach().clone(), tensor._version) for name, tensor in tensors.items()}

    def changed(self) -> list[str]:
        """Which were written to since, even if with the same values."""
        return [
            name
            for name, (value, version) in self._before.items()
            if self._live[name]._version != version or not torch.equal(self._live[name].detach(), value)
        ]
