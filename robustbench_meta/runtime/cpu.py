"""The cores of the CPU: how many may be used, and how torch and malloc are told to use them."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch


def available_cores() -> int:
    """How many cores this process may use: those it may run on, and no more than torch would (OMP_NUM_THREADS)."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), ours))


@contextmanager
def computing_alone(device: torch.device) -> Iterator[None]:
    """On the CPU, run every torch operation on one thread, so that how many there are decides no rounding.

    Freed memory stays with the process, also afterwards.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
        _keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


_MALLOC_OPTIONS = {-3: 2**30, -1: 2**31 - 1, -2: 2**26}
"""Of glibc's malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD."""


def _keep_freed_memory() -> None:
    """Have glibc's malloc keep freed memory for the next tensors instead of giving it back to the kernel.

    Otherwise many a graph of a small network is made of fresh pages, which must be zeroed.
    """
    if platform.libc_ver()[0] == "glibc":
        with suppress(OSError, AttributeError):
            for option, value in _MALLOC_OPTIONS.items():
                ctypes.CDLL(None).mallopt(option, value)
