"""The machine: what it is, how many threads, how fast it multiplies matrices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

import torch

from benchmarks.outcomes import Machine
from robustbench_meta.runtime.devices import device_name, wait

PACKAGES = ("robustbench_meta", "torch", "higher", "torchopt", "torchattacks", "numpy")
SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product tells the machine's rate."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up(device: torch.device, threads: int) -> None:
    """For all but us: the threads, and on CUDA what the suite sets for us (no TF32, repeatable kernels)."""
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def describe(device: torch.device) -> Machine:
    """Machine, threads and versions, with a first measurement of the matrix product."""
    multiply = matrix_product(device)
    multiply()
    seconds = min(_clock(multiply, device) for _ in range(5))
    return Machine(
        device=device_name(device),
        cpu=device_name(torch.device("cpu")),
        cores=cores(),
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), **versions()},
        matmul_gflops=matrix_product_gflop(device) / seconds,
    )


def versions() -> dict[str, str]:
    """The versions of what takes part; a library that is not there is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def matrix_product(device: torch.device) -> Callable[[], None]:
    """A float32 product of two square matrices, into memory that is there already."""
    side = SIDE[device.type]
    left, right, out = (torch.rand(side, side, device=device) for _ in range(3))

    def multiply() -> None:
        torch.mm(left, right, out=out)

    return multiply


def matrix_product_gflop(device: torch.device) -> float:
    """Its work, in 10⁹ floating-point operations."""
    return float(2 * SIDE[device.type] ** 3) / 1e9


def _clock(run: Callable[[], object], device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started
