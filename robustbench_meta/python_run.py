"""A run of the Python API: progress where it is wanted, Ctrl-C that keeps what is under way, and what became of it."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from robustbench_meta.jobs import runner
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.jobs.runner import PreparedRun
from robustbench_meta.reporting.results import Results
from robustbench_meta.results import frames, leaderboard
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.interrupts import Stop, Stopped

Progress = bool | Literal["auto"]
"""Whether progress is shown; `auto`: on a terminal and in a notebook. True: elsewhere, too, as lines on stderr."""
_log = logging.getLogger(__name__)


def done(ready: PreparedRun, folder: Path, policy: Policy, progress: Progress, *, kept: bool) -> Results:
    """Run it, and read what became of it.

    Args:
        ready: what is to be run.
        folder: where results go.
        policy: how it is done.
        progress: whether it is shown.
        kept: whether the folder stays.
    """
    store, stop = Store(folder), Stop()
    with _showing(ready, progress), _interruptible(stop, folder if kept else None):
        summary = runner.compute(ready, store, policy, stop)
    if kept:
        leaderboard.write(store)
    records = [record for record in store.records() if record["key"] in ready.keys]
    found = Results(records, frames.failed(runner.failures_of(summary)), folder if kept else None)
    if not found.failed.empty:
        _log.warning("%d of %d cells failed: see `failed` of the results", len(found.failed), len(ready.keys))
    return found


def _showing(ready: PreparedRun, progress: Progress) -> AbstractContextManager[Any]:
    if progress is False:
        return nullcontext()
    from robustbench_meta.reporting.terminal.console import err, is_screen  # noqa: PLC0415  # how the command line shows it
    from robustbench_meta.reporting.terminal.progress import showing_progress  # noqa: PLC0415  # the same

    console = err()
    return showing_progress(
        ready.registry.manager, console, show=progress is True or console.is_jupyter or is_screen(console)
    )


@contextlib.contextmanager
def _interruptible(stop: Stop, folder: Path | None) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM let what is under way be kept; they then have the effect that they usually have."""
    try:
        with stop.listening(lambda: _log.warning("stopping: saving unfinished work; interrupt again to stop at once")):
            yield
    except Stopped:
        if stop.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        told = "nothing was saved" if folder is None else f"saved in {folder}: repeat the call to resume"
        raise KeyboardInterrupt(f"interrupted; {told}") from None


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch has at most so many threads, and a run as many processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
