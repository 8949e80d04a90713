"""The cores of the CPU: how many may be used, and the rule that one torch operation takes one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def available_cores() -> int:
    """How many cores this process may use: those it may run on, and no more than torch would (OMP_NUM_THREADS)."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), ours))


@contextmanager
def one_thread_an_operation(device: torch.device) -> Iterator[None]:
    """On the CPU, run every torch operation on one thread, so that how many there are decides no rounding."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
