"""What `bench run` does once its options are read; loaded late, for torch takes seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from robustbench_meta import runner
from robustbench_meta.cli.console import err, out
from robustbench_meta.cli.plan import cells_table, header, outcome, work
from robustbench_meta.cli.progress import showing_progress
from robustbench_meta.cores import available_cores
from robustbench_meta.devices import choose_device
from robustbench_meta.executors import Policy
from robustbench_meta.executors.choice import check_executor, check_request, computes_here
from robustbench_meta.executors.schedule import side_by_side, tasks_of
from robustbench_meta.grid import Grid
from robustbench_meta.keeping import keep_seconds
from robustbench_meta.precision import check_precision
from robustbench_meta.registry import Registry, load_registry
from robustbench_meta.spec import RunSpec
from robustbench_meta.stopping import Stop
from robustbench_meta.store import Store, is_done, is_trained


class Ready(NamedTuple):
    """A grid that can run here."""

    grid: Grid
    registry: Registry
    device: torch.device
    plugins: Path | None
    local_plugins: bool
    data_root: Path | None


def prepare(
    spec: RunSpec, plugins: Path | None, local_plugins: bool, data_root: Path | None, policy: Policy
) -> Ready:  # fmt: skip
    """Find the device and the plugins, load the data, and expand the grid."""
    check_executor(policy.executor)
    keep_seconds()
    device = choose_device(spec.device, here=computes_here(policy.executor))
    check_request(policy, str(device))
    check_precision(spec.precision, device)
    registry = load_registry(plugins, local=local_plugins)
    grid = runner.prepare(spec, registry, data_root)
    return Ready(grid, registry, device, plugins, local_plugins, data_root)


def execute(ready: Ready, results: Path, policy: Policy, stop: Stop) -> int:
    """Run the grid, show its tables, and return how many of its cells failed, now or before."""
    grid, registry, device, plugins, local_plugins, data_root = ready
    store, keys, console = Store(results), {cell.key for cell in grid.cells}, out()
    done = set() if policy.fresh else {key for key in keys if store.has(key)}
    console.print(header(grid, registry, device, done))
    with showing_progress(registry.manager, err()):
        summary = runner.run(
            grid, registry, store, device, policy, plugins=plugins, local_plugins=local_plugins,
            data_root=data_root, stop=stop,
        )  # fmt: skip
    from robustbench_meta import leaderboard  # with pandas, which the first progress need not wait for
    from robustbench_meta.curves import curves
    from robustbench_meta.tables import curve_tables, tables

    path = leaderboard.write(store)
    frame, samples = leaderboard.read(store, keys)  # the worst case is over the run's own attacks
    for table in [*tables(frame, console.width), *curve_tables(curves(frame, samples), console.width)]:
        console.print(table)
    console.print(outcome(summary, path))
    return len(summary.failed) + len(summary.failed_before)


def rehearse(ready: Ready, results: Path, policy: Policy) -> None:
    """Show the cells, what is done already, and the work; write nothing."""
    grid, console, store = ready.grid, out(), Store(results, write=False)
    keys = [cell.key for cell in grid.cells]
    states = dict.fromkeys(keys, "to do")
    if not policy.fresh:
        states |= {key: "failed" for key in keys if not policy.retry_failed and store.failure(key) is not None}
        states |= {key: "done" for key in keys if is_done(results, key)}
    console.print(header(grid, ready.registry, ready.device, {key for key in keys if states[key] == "done"}))
    console.print(cells_table(grid, states))
    pending = {key for key in keys if states[key] == "to do"}
    todo = tasks_of(grid, pending, lambda key: is_trained(results, key) and not policy.fresh)
    console.print(work(grid, pending, todo, side_by_side(policy.jobs, todo, ready.device, available_cores())))
