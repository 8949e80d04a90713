"""Data, results and cache: whether they are there and may be written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from robustbench_meta.doctor.finding import LEAST_BYTES, Finding, State, one_line, size
from robustbench_meta.errors import DataError, brief


def check_data(root: Path | None) -> Iterator[Finding]:
    """The data sets."""
    from robustbench_meta.data.library import list_data  # noqa: PLC0415
    from robustbench_meta.data.root import data_root  # noqa: PLC0415

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
        yield Finding("results", "wrong", f"{folder} cannot be written: {error.strerror or brief(error)}", mend)
        return
    new = "" if there == folder.absolute() else " (to be made)"
    free = shutil.disk_usage(there).free
    state: State = "note" if free < LEAST_BYTES else "ok"
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
    import filelock  # noqa: PLC0415

    try:
        with filelock.FileLock(folder / "probe.lock", timeout=1, fallback_to_soft=False):
            return True
    except (OSError, NotImplementedError):
        return False


def check_cache() -> Iterator[Finding]:
    """Whether what is drawn can be kept."""
    from robustbench_meta.data.cache import ENVIRONMENT, cache_dir  # noqa: PLC0415

    try:
        folder = cache_dir()
    except DataError as error:
        yield Finding("cache", "note", f"{error}; each run draws the glyphs anew", f"export {ENVIRONMENT}=DIR")
        return
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        seen = f"{folder} cannot be written: {error.strerror or brief(error)}; each run draws the glyphs anew"
        yield Finding("cache", "note", seen, f"export {ENVIRONMENT}=DIR, a folder that you may write")
        return
    yield Finding("cache", "ok", f"{folder} can be written")
