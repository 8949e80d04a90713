"""What a machine has of all that a run needs, and what to do about the rest; no check can end the others."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from robustbench_meta import __version__
from robustbench_meta.errors import BenchError, brief

State = Literal["ok", "note", "wrong"]
EXTRAS = {
    "ray": "'robustbench_meta[ray]'", "submitit": "'robustbench_meta[slurm]'",
    "tensorboard": "'robustbench_meta[tensorboard]'", "mlflow-skinny": "mlflow-skinny",
}  # fmt: skip
"""Distributions that some options need, and what pip is asked for to get each; MLflow: see docs/trackers.md."""
LEAST_BYTES = 2 * 2**30
"""Of free memory, and of disk space: with less, the profile `quick` may not come to its end."""
_CGROUP = Path("/sys/fs/cgroup")


class Finding(NamedTuple):
    """One thing that was looked at."""

    about: str
    state: State
    """`wrong`: a run cannot work as it is; `note`: it can, and there is something to know."""
    seen: str
    mend: str = ""
    """What to do, as a sentence or a command."""


def examine(
    results: Path, data_root: Path | None = None, plugins: Path | None = None, *, local_plugins: bool = True
) -> Iterator[Finding]:  # fmt: skip
    """All findings, one after the other; nothing is left behind, and no exception comes of it.

    Args:
        results: the folder that runs would write to; it need not exist.
        data_root: where data sets are, if not in the user's folder.
        plugins: a folder with plugins.
        local_plugins: False to load none of a folder.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "version": _version,
        "torch": _torch,
        "device": _device,
        "cores": _cores,
        "memory": _memory,
        "gradients": _gradients,
        "plugins": partial(_plugins, plugins, local_plugins),
        "data": partial(_data, data_root),
        "results": partial(_results, results),
        "cache": _cache,
        "extras": _extras,
    }
    for about, check in checks.items():
        try:
            yield from check()
        except (BenchError, OSError) as error:
            yield Finding(about, "wrong", _one_line(str(error)) or brief(error))
        except Exception as error:  # whatever is wrong with a machine, the other checks are made
            yield Finding(about, "wrong", f"could not be looked at: {brief(error)}", "this is a bug: report it")


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


# -- software --------------------------------------------------------------------------------------


def _version() -> Iterator[Finding]:
    where = Path(__file__).resolve().parent
    python = f"Python {platform.python_version()} at {sys.executable or 'an unknown place'}"
    yield Finding("version", "ok", f"robustbench_meta {__version__} at {where}; {python}; {platform.platform()}")
    for lack in _lacking():
        yield Finding("packages", "wrong", lack, "python -m pip install --upgrade robustbench_meta")


def _lacking() -> Iterator[str]:
    """What is declared as needed and not installed, or in another version."""
    try:
        needed = importlib.metadata.requires("robustbench_meta") or []
    except importlib.metadata.PackageNotFoundError:
        return  # run from a folder, without being installed
    for line in needed:
        requirement, _, marker = line.partition(";")
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if "extra" in marker or match is None:
            continue
        try:
            found = importlib.metadata.version(match[0])
        except importlib.metadata.PackageNotFoundError:
            yield f"{match[0]} is not installed; needed: {requirement.strip()}"
            continue
        if not _fits(found, requirement[match.end() :]):
            yield f"{match[0]} {found} is installed; needed: {requirement.strip()}"


def _fits(version: str, bounds: str) -> bool:
    """Whether a release lies within `>=2.8,<2.14`, by its numbers."""
    compare: dict[str, Callable[[list[int], list[int]], bool]] = {
        ">=": lambda one, two: one >= two, "<": lambda one, two: one < two, "==": lambda one, two: one == two,
        "<=": lambda one, two: one <= two, ">": lambda one, two: one > two, "!=": lambda one, two: one != two,
    }  # fmt: skip
    for sign, bound in re.findall(r"(>=|<=|==|!=|<|>)\s*([\d.]+)", bounds):
        length = max(len(_numbers(version)), len(_numbers(bound)))
        one, two = (each + [0] * (length - len(each)) for each in (_numbers(version), _numbers(bound)))
        if not compare[sign](one, two):
            return False
    return True


def _numbers(version: str) -> list[int]:
    release = re.match(r"\d+(\.\d+)*", version.partition("+")[0])
    return [int(number) for number in release[0].split(".")] if release else []


def _torch() -> Iterator[Finding]:
    try:
        import torch  # noqa: PLC0415  # takes seconds, and may fail
    except Exception as error:
        yield Finding("torch", "wrong", f"cannot be imported: {brief(error)}", "see https://pytorch.org/get-started")
        return
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Finding("torch", "ok", f"{torch.__version__}, built {build}")


def _extras() -> Iterator[Finding]:
    found, missing = [], []
    for distribution in EXTRAS:
        try:
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(distribution)
    seen = f"{', '.join(found) or 'none'}; not installed: {', '.join(missing) or 'none'} (nothing else needs them)"
    mend = f"python -m pip install {' '.join(EXTRAS[each] for each in missing)}" if missing else ""
    yield Finding("extras", "ok", seen, mend)


def _plugins(folder: Path | None, local: bool) -> Iterator[Finding]:
    from robustbench_meta.registry import CollisionError, load_registry  # noqa: PLC0415  # with torch

    registry = load_registry(folder, local=local, strict=False)
    counts = ", ".join(f"{len(registry.names(kind))} {kind}s" for kind in ("learner", "attack", "dataset", "backbone"))
    failed = [found for found in registry.found if found.error]
    yield Finding("plugins", "ok", f"{len(registry.found) - len(failed)} loaded, {len(failed)} failed; {counts}")
    for found in failed:
        ends_runs = isinstance(found.cause, CollisionError) or found.origin.kind == "built-in"
        mend = "rename or remove one of them" if isinstance(found.cause, CollisionError) else (
            "reinstall robustbench_meta" if found.origin.kind == "built-in" else "bench plugins --debug shows where"
        )  # fmt: skip
        told = _one_line(f"{found.origin.kind} {found.origin.where} failed: {found.error}")
        yield Finding("plugins", "wrong" if ends_runs else "note", told, mend)


# -- the machine -----------------------------------------------------------------------------------


def _device() -> Iterator[Finding]:
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


def _cores() -> Iterator[Finding]:
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


def _memory() -> Iterator[Finding]:
    left = memory_left()
    if left is None:
        yield Finding("memory", "ok", "not known on this system")
    elif left < LEAST_BYTES:
        yield Finding("memory", "note", f"{_size(left)} free", "end other programs, or use --profile smoke, --jobs 1")
    else:
        yield Finding("memory", "ok", f"{_size(left)} free")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _gradients() -> Iterator[Finding]:
    from robustbench_meta.selfcheck import meta_gradient_error  # noqa: PLC0415  # with torch

    error = meta_gradient_error()
    if error < 1e-6:
        yield Finding("gradients", "ok", "a meta-gradient through an inner step is what was derived by hand")
    else:
        yield Finding("gradients", "wrong", f"a meta-gradient is off by {error:.1g} of it", "install another torch")


# -- folders ---------------------------------------------------------------------------------------


def _data(root: Path | None) -> Iterator[Finding]:
    from robustbench_meta.data.library import list_data  # noqa: PLC0415
    from robustbench_meta.data.root import data_root  # noqa: PLC0415

    try:
        rows = list_data(root)
    except OSError as error:
        told = f"{data_root(root)}: {error.strerror or brief(error)}"
        yield Finding("data", "note", told, "name another folder: --data-root DIR")
        return
    for row in rows:
        told = _one_line(f"{row.dataset}: {row.state}")
        if row.state in {"built in", "ready"}:
            yield Finding("data", "ok", told + (_one_line(f", {row.where}") if row.state == "ready" else ""))
        elif row.dataset == "omniglot":
            yield Finding("data", "note", told, "bench data download omniglot")
        else:
            told = _one_line(f"{told}, {row.where}")
            yield Finding("data", "note", told, "remove it, and add whole files: bench data add NAME PATH")


def _results(folder: Path) -> Iterator[Finding]:
    mend = "name another folder: --results DIR"
    try:
        there = _nearest(folder)
        if not there.is_dir():
            yield Finding("results", "wrong", f"{folder} cannot be made: {there} is a file", mend)
            return
        with tempfile.TemporaryDirectory(dir=there, prefix=".probe-") as probe:
            (Path(probe) / "probe").write_bytes(b"0" * 4096)
            locks = _locks(Path(probe))
    except OSError as error:
        yield Finding("results", "wrong", f"{folder} cannot be written: {error.strerror or brief(error)}", mend)
        return
    new = "" if there == folder.absolute() else " (to be made)"
    free = shutil.disk_usage(there).free
    state: State = "note" if free < LEAST_BYTES else "ok"
    seen = f"{folder}{new} can be written, {_size(free)} free"
    yield Finding("results", state, seen, "free some space" if state == "note" else "")
    if not locks:
        yield Finding("results", "note", f"{folder}: its file system has no locks, so leases are used",
                      "nothing, if the clocks of the machines that share it agree")  # fmt: skip


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), folder.absolute())


def _locks(folder: Path) -> bool:
    """Whether the file system has locks of its own."""
    import filelock  # noqa: PLC0415

    try:
        with filelock.FileLock(folder / "probe.lock", timeout=1, fallback_to_soft=False):
            return True
    except (OSError, NotImplementedError):
        return False


def _cache() -> Iterator[Finding]:
    from robustbench_meta.data.cache import ENVIRONMENT, cache_dir  # noqa: PLC0415

    folder = cache_dir()
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        seen = f"{folder} cannot be written: {error.strerror or brief(error)}; each run draws the glyphs anew"
        yield Finding("cache", "note", seen, f"export {ENVIRONMENT}=DIR, a folder that you may write")
        return
    yield Finding("cache", "ok", f"{folder} can be written")
