"""Chooses the device, names it for the record, and says how much of its memory was used."""

from __future__ import annotations

import contextlib
import platform
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from robustbench_meta.errors import BenchError, DeviceLostError

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def choose_device(text: str, *, here: bool = True) -> torch.device:
    """Read auto | cpu | cuda | cuda:i; auto takes CUDA when there is one.

    `here`: this machine computes. Another one may have a CUDA device where this one has none.

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
    if not torch.cuda.is_available() and not here:
        return torch.device(text)
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


def is_lost(error: BaseException) -> bool:
    """Whether this process cannot compute on CUDA any more after an error."""
    if isinstance(error, DeviceLostError):
        return True
    lost = getattr(torch, "AcceleratorError", ())
    return any("CUDA error: " in str(each) or isinstance(each, lost) for each in (error, error.__cause__))


def device_name(device: torch.device) -> str:
    """The device for the leaderboard: its kind and model."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_cpu_model()})"


def wait(device: torch.device) -> None:
    """Wait until the device has done all work, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def send(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """An array on `device`; to a GPU from pinned memory, so that nobody waits."""
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # Linux: VmHWM begins anew


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since `reset_peak_memory`; None where the system does not tell.

    On CUDA: of this process's tensors. On a CPU: see `peak_resident`.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int | None:
    """The most bytes that this whole process held, torch's libraries and the data among them; None if not known.

    Since `reset_peak_memory` on Linux, elsewhere since the process was started.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        lines = _STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
