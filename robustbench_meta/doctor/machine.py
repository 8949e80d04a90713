"""Devices, cores and memory, as they are in a container."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from robustbench_meta.doctor.finding import LEAST_BYTES, Finding, size
from robustbench_meta.errors import brief

_CGROUP = Path("/sys/fs/cgroup")


def check_device() -> Iterator[Finding]:
    """The devices, each of which computes something."""
    import torch  # noqa: PLC0415

    from robustbench_meta.devices import device_name  # noqa: PLC0415

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        device = torch.device("cuda", index)
        try:
            right = bool((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device) == 8).all())
            free, whole = torch.cuda.mem_get_info(device)
        except Exception as error:
            yield Finding("device", "wrong", f"cuda:{index} cannot be used: {brief(error)}", "--device cpu works")
            continue
        seen = f"cuda:{index}, {device_name(device)}, {free / 2**30:.1f} of {whole / 2**30:.1f} GiB free"
        yield (
            Finding("device", "ok", seen)
            if right
            else Finding("device", "wrong", f"{seen}; it multiplies wrongly", "--device cpu works")
        )
    if count:
        return
    name = device_name(torch.device("cpu"))
    if not (Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")):
        yield Finding("device", "ok", f"{name}; no CUDA device")
    elif torch.version.cuda is None:
        yield Finding("device", "note", f"{name}; there is an NVIDIA driver, and this build of torch is for CPUs",
                      "install a CUDA build of torch: https://pytorch.org/get-started")  # fmt: skip
    else:
        yield Finding("device", "note", f"{name}; there is an NVIDIA driver, and torch finds no device",
                      "see what nvidia-smi says, and CUDA_VISIBLE_DEVICES")  # fmt: skip


def check_cores() -> Iterator[Finding]:
    """How many cores a run uses, of those that it may."""
    from robustbench_meta.cores import available_cores  # noqa: PLC0415  # with torch

    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used, limit = available_cores(), cpu_limit()
    seen = f"{used} of {os.cpu_count() or ours} are used"
    if limit is not None:
        seen += f"; the container's limit is {limit:g}"
    told = os.environ.get("OMP_NUM_THREADS", "")
    if limit is not None and used > max(1.0, limit):
        advice = f"export OMP_NUM_THREADS={max(1, int(limit))}: more threads than cores slow a run down"
        yield Finding("cores", "note", seen, advice)
    elif told.isdecimal() and int(told) > ours:
        yield Finding("cores", "note", f"{seen}; OMP_NUM_THREADS={told}", f"export OMP_NUM_THREADS={ours}")
    elif used < min(ours, limit or ours) // 2:
        yield Finding("cores", "note", f"{seen}; OMP_NUM_THREADS={told or 'unset'}", "unset it to use all")
    else:
        yield Finding("cores", "ok", seen)


def cpu_limit(root: Path = _CGROUP) -> float | None:
    """How many cores the container may use; None: no limit, or none that is known."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        return None if quota.strip() in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def memory_left(root: Path = _CGROUP, known: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that may still be used: the machine's, and no more than the container's limit leaves; None: not known."""
    found = []
    try:
        match = re.search(r"^MemAvailable:\s*(\d+) kB", known.read_text(), re.MULTILINE)
        found += [1024 * int(match[1])] if match else []
    except OSError:
        pass
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):  # fmt: skip  # noqa: E501
        try:
            found.append(max(0, int((root / limit).read_text()) - int((root / used).read_text())))
        except (OSError, ValueError):  # `max`: no limit
            continue
    return min(found, default=None)


def check_memory() -> Iterator[Finding]:
    """How much memory is free."""
    left = memory_left()
    if left is None:
        yield Finding("memory", "ok", "not known on this system")
    elif left < LEAST_BYTES:
        yield Finding("memory", "note", f"{size(left)} free", "end other programs, or use --profile smoke, --jobs 1")
    else:
        yield Finding("memory", "ok", f"{size(left)} free")
