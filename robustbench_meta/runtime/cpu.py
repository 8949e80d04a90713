"""The cores of the CPU: how many may be used, and how torch and malloc are told to use them."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def available_cores() -> int:
    """How many cores this process may use: those it may run on, and no more than torch would (OMP_NUM_THREADS)."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), ours))


@contextmanager
def computing_alone(device: torch.device) -> Iterator[None]:
    """On the CPU, run every torch operation on one thread, so that how many there are decides no rounding.

    Memory that is freed stays with the process (see `keep_freed_memory`), also afterwards.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Names in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed memory for the next tensors instead of giving it back to the kernel.

    Otherwise many a graph of a small network is made of fresh pages, which must be zeroed. Elsewhere than with glibc
    nothing happens.

    Returns:
        Whether malloc was told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    largest = 2**31 - 1
    told = [
        mallopt(option, value)
        for option, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, largest), (_M_TOP_PAD, 2**26))
    ]
    return all(told)
