"""Chooses the device, and names it for the record."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from robustbench_meta.errors import BenchError


def choose_device(text: str) -> torch.device:
    """Read auto | cpu | cuda | cuda:i; auto takes CUDA when there is one.

    Raises:
        BenchError: not one of these, or a CUDA device that this machine or this build of torch has not.
    """
    if text == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if text == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", text)
    if match is None:
        raise BenchError(f"--device '{text}' is not a device; expected auto, cpu, cuda or cuda:0, cuda:1, …")
    if not torch.cuda.is_available():
        why = (
            f"this build of torch ({torch.__version__}) has no CUDA support: install a CUDA build"
            if torch.version.cuda is None
            else "torch finds no CUDA device or driver: see what `nvidia-smi` says"
        )
        raise BenchError(f"--device {text}: {why}, or use --device cpu")
    index = int(match[1] or 0)
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BenchError(f"--device {text}: this machine has {count} CUDA device(s), cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """The device for the leaderboard: its kind and model."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_cpu_model()}, {torch.get_num_threads()} threads)"


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
