"""How tasks are mapped: a fixed rule, so that the same command rounds the same way on every machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from robustbench_meta.engine import Plan

_log = logging.getLogger(__name__)
WIDEST_GROUPED = 32
"""On a CPU, convolutions of up to so many channels are faster as one grouped convolution over tasks (vmap) than one by
one; see the table in docs/engine.md."""
CHUNK = 8
"""Tasks at a time on a CPU; with fewer than twice as many, half of them, so that two cores share them out."""
CHUNK_WITHOUT_CONVOLUTIONS = 64
FEW = 8
"""Of `Plan.few`."""
TOLERANCE = 1e-3
"""How far a compiled gradient may lie from the plain one, as a share of its length (float32, sums in another order)."""


def plan_for(
    device: torch.device, network: nn.Module, tasks: int, *, vmap: bool = True, chunk: int | None = None
) -> Plan:
    """The plan for up to `tasks` tasks at a time.

    On CUDA all tasks at once. On a CPU by the widest convolution: torch computes convolutions whose weights differ by
    task as one grouped convolution, which is slow for many channels.

    Args:
        device: where it runs.
        network: the backbone.
        tasks: how many there are, at most.
        vmap: False for a learner or backbone that `torch.func.vmap` cannot map.
        chunk: tasks at a time, instead of the rule's.
    """
    widest = max((module.out_channels for module in network.modules() if isinstance(module, _ConvNd)), default=0)
    if device.type == "cuda" and vmap:
        most = tasks
    elif widest or not vmap:
        most = min(CHUNK, (tasks + 1) // 2)
    else:
        most = CHUNK_WITHOUT_CONVOLUTIONS
    chunk = min(chunk or most, tasks)
    if not vmap:
        return Plan("loop", "loop", chunk)
    own_by_vmap = device.type == "cuda" or widest <= WIDEST_GROUPED
    return Plan("vmap", "vmap" if own_by_vmap else "loop", chunk, few=FEW)


def compiled(plan: Plan, gradient: Callable[[Plan], Tensor]) -> Plan:
    """The plan with torch.compile; without it, and with a warning, where that fails or gives another gradient.

    Args:
        plan: the plan.
        gradient: computes the meta-gradient of a real batch with a plan, as one vector.
    """
    expected, through = gradient(plan), replace(plan, compiled=True)
    try:
        found = gradient(through)
    except Exception as error:  # a missing C++ compiler, an operation that it does not know: it fails in many ways
        reason = str(error).strip().split("\n")[0]
        _log.warning("torch.compile does not work here (%s: %s): training without it", type(error).__name__, reason)
        return plan
    apart = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    if not apart <= TOLERANCE:
        _log.warning("torch.compile gives another gradient here (%.1g of its length away): training without it", apart)
        return plan
    return through
