"""`bench doctor`: does it work here, and what to do where it does not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from robustbench_meta import __version__
from robustbench_meta.cli.options import RESULTS, DataRoot, Debug, Json, NoLocalPlugins, Plugins, folder
from robustbench_meta.errors import BenchError, DataError, brief

_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}
_CGROUP = Path("/sys/fs/cgroup")
State = Literal["ok", "note", "wrong"]
_LEAST_BYTES = 2 * 2**30
"""Of free memory, and of disk space: with less, the profile `quick` may not come to its end."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    about: str
    state: State
    """`wrong`: a run cannot work as it is; `note`: it can, and there is something to know."""
    seen: str
    mend: str = ""
    """What to do, as a sentence or a command."""


def one_line(text: str) -> str:
    """Text of others, on one line and printable."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def size(count: int) -> str:
    """`1.5 GiB`."""
    return f"{count / 2**30:.1f} GiB"


def doctor(
    results: Annotated[
        Path, typer.Argument(metavar="DIR", parser=folder, help="The results folder. Default: ./results.")
    ] = RESULTS,
    data_root: DataRoot = None,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at versions, device, data, plugins and folders, and tell what to do where something is wrong.

    ok: works. note: works, and there is something to know. wrong: a run cannot work; the exit code is then 1.
    """
    found: Iterable[Finding] = examine(results, data_root, plugins, local_plugins=not no_local_plugins)
    if json:
        from robustbench_meta.cli.json_output import alone_on_stdout, print_document

        with alone_on_stdout() as stream:
            found = list(found)
            print_document(stream, findings=[finding._asdict() for finding in found], healthy=_healthy(found))
    else:
        found = _shown(found)
    if not _healthy(found):
        raise typer.Exit(1)


def _healthy(found: Iterable[Finding]) -> bool:
    return all(finding.state != "wrong" for finding in found)


def _shown(findings: Iterable[Finding]) -> list[Finding]:
    """Print each as soon as it is known."""
    from rich.table import Table
    from rich.text import Text

    from robustbench_meta.reporting.terminal.console import out

    console, found = out(), []
    for finding in findings:
        found.append(finding)
        told = Text(finding.seen, overflow="fold")
        if finding.mend:
            told.append(" → ", style=_STYLES[finding.state]).append(finding.mend, style="bold")
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(width=5)
        table.add_column(width=9, style="bold cyan")
        table.add_column(overflow="fold")
        table.add_row(Text(finding.state, style=_STYLES[finding.state]), finding.about, told)
        console.print(table)
    return found


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
        "version": check_version,
        "torch": check_torch,
        "device": check_device,
        "cores": check_cores,
        "memory": check_memory,
        "gradients": check_gradients,
        "plugins": partial(check_plugins, plugins, local_plugins),
        "data": partial(check_data, data_root),
        "results": partial(check_results, results),
        "cache": check_cache,
        "extras": check_extras,
    }
    for about, check in checks.items():
        try:
            yield from check()
        except (BenchError, OSError) as error:
            yield Finding(about, "wrong", one_line(str(error)) or brief(error))
        except Exception as error:  # whatever is wrong with a machine, the other checks are made
            yield Finding(about, "wrong", f"could not be looked at: {brief(error)}", "this is a bug: report it")


# -- the checks ---


EXTRAS = {"ray": "ray", "tensorboard": "tensorboard"}
"""Distributions that some options need, and the extra that brings each."""
MLFLOW = "mlflow-skinny"


def check_version() -> Iterator[Finding]:
    """Where this package runs, and what it needs and lacks."""
    where = Path(__file__).resolve().parents[1]
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
    from packaging.requirements import Requirement

    for line in needed:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        asked = f"{requirement.name}{requirement.specifier}"
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed; needed: {asked}"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} is installed; needed: {asked}"


def check_torch() -> Iterator[Finding]:
    """Whether torch can be imported, and what it was built for."""
    try:
        import torch
    except Exception as error:
        yield Finding("torch", "wrong", f"cannot be imported: {brief(error)}", "see https://pytorch.org/get-started")
        return
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Finding("torch", "ok", f"{torch.__version__}, built {build}")


def check_extras() -> Iterator[Finding]:
    """What some options need besides, and how to get it: MLflow in a step of its own, see docs/trackers.md."""
    found, missing = [], []
    for distribution in [*EXTRAS, MLFLOW]:
        try:
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(distribution)
    seen = f"{', '.join(found) or 'none'}; not installed: {', '.join(missing) or 'none'} (nothing else needs them)"
    extras = [EXTRAS[each] for each in missing if each in EXTRAS]
    steps = [f"'robustbench_meta[{','.join(extras)}]'"] if extras else []
    steps += [MLFLOW] if MLFLOW in missing else []
    yield Finding("extras", "ok", seen, " && ".join(f"python -m pip install {step}" for step in steps))


def check_plugins(folder: Path | None, local: bool) -> Iterator[Finding]:
    """What plugins are found, and which fail."""
    from robustbench_meta.registry.registry import CollisionError, load_registry

    registry = load_registry(folder, local=local, strict=False)
    counts = ", ".join(f"{len(registry.names(kind))} {kind}s" for kind in ("learner", "attack", "dataset", "backbone"))
    failed = [found for found in registry.found if found.error]
    yield Finding("plugins", "ok", f"{len(registry.found) - len(failed)} loaded, {len(failed)} failed; {counts}")
    for found in failed:
        ends_runs = isinstance(found.cause, CollisionError) or found.origin.kind == "built-in"
        mend = "rename or remove one of them" if isinstance(found.cause, CollisionError) else (
            "reinstall robustbench_meta" if found.origin.kind == "built-in" else "bench plugins --debug shows where"
        )  # fmt: skip
        told = one_line(f"{found.origin.kind} {found.origin.where} failed: {found.error}")
        yield Finding("plugins", "wrong" if ends_runs else "note", told, mend)


def check_gradients() -> Iterator[Finding]:
    """Whether second derivatives come out right."""
    from robustbench_meta.engine.preflight import meta_gradient_error

    error = meta_gradient_error()
    if error < 1e-6:
        yield Finding("gradients", "ok", "a meta-gradient through an inner step is what was derived by hand")
    else:
        yield Finding("gradients", "wrong", f"a meta-gradient is off by {error:.1g} of it", "install another torch")


def check_device() -> Iterator[Finding]:
    """The devices, each of which computes something."""
    import torch

    from robustbench_meta.runtime.devices import device_name

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        device = torch.device("cuda", index)
        try:
            right = bool((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device) == 8).all())
            free, whole = torch.cuda.mem_get_info(device)
        except Exception as error:
            yield Finding("device", "wrong", f"cuda:{index} cannot be used: {brief(error)}", "--device cpu works")
            continue
        seen = f"cuda:{index}, {device_name(device)}, {size(free)} of {size(whole)} free"
        if right:
            yield Finding("device", "ok", seen)
        else:
            yield Finding("device", "wrong", f"{seen}; it multiplies wrongly", "--device cpu works")
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
    from robustbench_meta.runtime.cpu import available_cores

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
    elif left < _LEAST_BYTES:
        yield Finding("memory", "note", f"{size(left)} free", "end other programs, or use --profile smoke, --jobs 1")
    else:
        yield Finding("memory", "ok", f"{size(left)} free")


def check_data(root: Path | None) -> Iterator[Finding]:
    """The data sets."""
    from robustbench_meta.experiment.data_library import list_data
    from robustbench_meta.runtime.paths import data_root

    try:
        rows = list_data(root)
    except (OSError, DataError) as error:
        told = f"{data_root(root)}: {error.strerror or brief(error)}" if isinstance(error, OSError) else str(error)
        yield Finding("data", "note", told, "name another folder: --data-root DIR")
        return
    for row in rows:
        told = one_line(f"{row.dataset}: {row.state}")
        if row.state in {"built in", "ready"}:
            yield Finding("data", "ok", told + (one_line(f", {row.where}") if row.state == "ready" else ""))
        elif row.state == "missing" and row.dataset != "omniglot":
            continue
        elif row.dataset == "omniglot":
            yield Finding("data", "note", told, "bench data download omniglot")
        else:
            told = one_line(f"{told}, {row.where}")
            yield Finding("data", "note", told, "remove it, and add whole files: bench data add NAME PATH")


def check_results(folder: Path) -> Iterator[Finding]:
    """Whether the results folder can be written, or made, and has locks."""
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
        yield Finding("results", "wrong", f"cannot write {folder}: {error.strerror or brief(error)}", mend)
        return
    new = "" if there == folder.absolute() else " (to be made)"
    free = shutil.disk_usage(there).free
    state: State = "note" if free < _LEAST_BYTES else "ok"
    seen = f"{folder}{new} can be written, {size(free)} free"
    yield Finding("results", state, seen, "free some space" if state == "note" else "")
    if not locks:
        yield Finding("results", "note", f"{folder}: its file system has no locks, so leases are used",
                      "nothing, if the clocks of the machines that share it agree")  # fmt: skip


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), folder.absolute())


def _locks(folder: Path) -> bool:
    """Whether the file system has locks of its own."""
    import filelock

    try:
        with filelock.FileLock(folder / "probe.lock", timeout=1, fallback_to_soft=False):
            return True
    except (OSError, NotImplementedError):
        return False


def check_cache() -> Iterator[Finding]:
    """Whether what is drawn can be kept."""
    from robustbench_meta.data.array_cache import ENVIRONMENT, cache_dir

    try:
        folder = cache_dir()
    except DataError as error:
        yield Finding("cache", "note", f"{error}; each run draws the glyphs anew", f"export {ENVIRONMENT}=DIR")
        return
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        seen = f"cannot write {folder}: {error.strerror or brief(error)}; each run draws the glyphs anew"
        yield Finding("cache", "note", seen, f"export {ENVIRONMENT}=DIR, a folder that you may write")
        return
    yield Finding("cache", "ok", f"{folder} can be written")
