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

    def written(self) -> list[str]:
        """Which were written to since, even if with the same values."""
        versions = {name: version for name, (_, version) in self._before.items()}
        return [name for name in versions if self._live[name]._version != versions[name] or self._differs(name)]

    def changed(self) -> list[str]:
        """Which hold other values now."""
        return [name for name in self._before if self._differs(name)]

    def _differs(self, name: str) -> bool:
        now, before = self._live[name].detach(), self._before[name][0]
        return not (torch.equal(now, before) or torch.allclose(now, before, rtol=0, atol=0, equal_nan=True))
