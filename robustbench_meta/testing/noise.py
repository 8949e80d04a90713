"""What attacks are held against: noise of the size that their threat model allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustbench_meta.contracts.threat_model import ThreatModel


def noise(x: Tensor, threat: ThreatModel, event: int, seed: int) -> Tensor:
    """Noise of the size ε: a random corner, direction, or so many random pixels; clipped to the pixel range."""
    draw = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    axes = tuple(range(-event, 0))
    if threat.norm == "l0":
        places = x.shape[-2:] if event == 3 else x.shape[-event:]
        ranks = torch.rand(*x.shape[:-event], math.prod(places), generator=draw).argsort(-1).argsort(-1)
        mask = (ranks < threat.eps).view(*x.shape[:-event], *(1 for _ in range(event - len(places))), *places)
        return torch.where(mask, (direction > 0).to(x.dtype), x)
    if threat.norm == "linf":
        step = threat.eps * direction.sign()
    else:
        length = torch.linalg.vector_norm(direction, int(threat.norm[1]), axes, keepdim=True)
        step = threat.eps * (1 - 1e-6) * direction / length
    return threat.clip((x.double() + step).to(x.dtype))
