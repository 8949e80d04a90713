"""One run from what is wanted to what became of it: the steps that the command line and the Python API share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustbench_meta.devices import choose_device
from robustbench_meta.executors import Policy
from robustbench_meta.executors.choice import check_executor, check_request, computes_here
from robustbench_meta.grid import Grid
from robustbench_meta.keeping import keep_seconds
from robustbench_meta.precision import check_precision
from robustbench_meta.registry import Registry, load_registry
from robustbench_meta.runner import Summary, prepare_all, run_all
from robustbench_meta.stopping import Stop
from robustbench_meta.store import Store
from robustbench_meta.suites import Suite
from robustbench_meta.tracking import attach


class Ready(NamedTuple):
    """A suite that can run here."""

    suite: Suite
    grids: list[Grid]
    """Of its parts."""
    registry: Registry
    device: torch.device
    plugins: Path | None
    local_plugins: bool
    data_root: Path | None

    @property
    def keys(self) -> set[str]:
        """Of all its cells."""
        return {cell.key for grid in self.grids for cell in grid.cells}


def prepare(
    suite: Suite, plugins: Path | None, local_plugins: bool, data_root: Path | None, policy: Policy,
    track: Sequence[str] = (), bring: Callable[[Registry], None] | None = None,
) -> Ready:  # fmt: skip
    """Find the device and the plugins, load the data, and expand the grids.

    Args:
        suite: what is to be run.
        plugins: a folder with more plugins; None: ./plugins if it is there.
        local_plugins: False for none of a folder.
        data_root: where data sets are.
        policy: how it is done.
        track: trackers, as typed.
        bring: adds plugins that were found in no other way.

    Raises:
        BenchError: something of it cannot be, and what to do.
    """
    specs = [part.spec() for part in suite.parts]
    check_executor(policy.executor)
    keep_seconds()
    device = choose_device(specs[0].device, here=computes_here(policy.executor))
    check_request(policy, str(device))
    for spec in specs:
        check_precision(spec.precision, device)
    registry = load_registry(plugins, local=local_plugins)
    if bring is not None:
        bring(registry)
    attach(registry, track)
    grids = prepare_all(specs, registry, data_root, [part.placed for part in suite.parts])
    return Ready(suite, grids, registry, device, plugins, local_plugins, data_root)


def compute(ready: Ready, store: Store, policy: Policy, stop: Stop) -> Summary:
    """Do what is not done yet; see `runner.run_all`."""
    return run_all(
        ready.grids, ready.registry, store, ready.device, policy, plugins=ready.plugins,
        local_plugins=ready.local_plugins, data_root=ready.data_root, stop=stop,
    )  # fmt: skip


def told_failures(summary: Summary) -> list[dict[str, Any]]:
    """Which cells failed and why, as plain data; `before`: in an earlier run, and not tried again."""
    return [
        {**cell.labels, "reason": reason, "before": before}
        for before, failed in ((False, summary.failed), (True, summary.failed_before))
        for cell, reason in failed
    ]
