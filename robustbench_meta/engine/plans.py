"""How tasks are mapped: a fixed rule, so that the same command rounds the same way on every machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from robustbench_meta.engine.engine import Plan

_log = logging.getLogger(__name__)
CHUNK = 8
"""Tasks at a time on a CPU; with fewer than twice as many, half of them, so that two cores share them out."""
FEW = 8
"""Of `Plan.few` at test."""
TOLERANCE = 1e-3
"""How far a compiled gradient may lie from the plain one, as a share of its length (float32, sums in another order)."""


def plan_for(device: torch.device, tasks: int, *, vmap: bool = True, few: int = 0, chunk: int | None = None) -> Plan:
    """The plan for up to `tasks` tasks at a time.

    On CUDA all tasks at once. On a CPU one by one where weights differ by task: vmap makes one grouped convolution of
    those, which is slow for many channels, and did not give the same bits twice (docs/engine.md).

    Args:
        device: where it runs.
        tasks: how many there are, at most.
        vmap: False for a learner or backbone that `torch.func.vmap` cannot map.
        few: see `Plan.few`.
        chunk: tasks at a time, instead of the rule's.
    """
    on_cuda = device.type == "cuda" and vmap
    chunk = min(chunk or (tasks if on_cuda else min(CHUNK, (tasks + 1) // 2)), tasks)
    if not vmap:
        return Plan("loop", "loop", chunk)
    return Plan("vmap", "vmap" if on_cuda else "loop", chunk, few=few)


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
