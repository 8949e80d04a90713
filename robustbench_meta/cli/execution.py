"""What `bench run` does once its options are read; loaded late, for torch takes seconds to import."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from robustbench_meta import runner
from robustbench_meta.cli.console import err, out
from robustbench_meta.cli.plan import cells_table, header, outcome, work
from robustbench_meta.cli.progress import showing_progress
from robustbench_meta.cores import available_cores
from robustbench_meta.devices import choose_device
from robustbench_meta.executors.schedule import jobs_of, side_by_side
from robustbench_meta.grid import Grid
from robustbench_meta.options import Jobs
from robustbench_meta.precision import check_precision
from robustbench_meta.registry import Registry, load_registry
from robustbench_meta.spec import RunSpec
from robustbench_meta.store import Store, is_done, is_trained


class Ready(NamedTuple):
    """A grid that can run here."""

    grid: Grid
    registry: Registry
    device: torch.device
    plugins: Path | None
    data_root: Path | None


def prepare(spec: RunSpec, plugins: Path | None, data_root: Path | None) -> Ready:
    """Find the device and the plugins, load the data, and expand the grid."""
    device = choose_device(spec.device)
    check_precision(spec.precision, device)
    registry = load_registry(plugins)
    return Ready(runner.prepare(spec, registry, data_root), registry, device, plugins, data_root)


def execute(ready: Ready, results: Path, jobs: Jobs) -> int:
    """Run the grid, show its tables, and return how many cells failed."""
    grid, registry, device, plugins, data_root = ready
    store, keys, console = Store(results), {cell.key for cell in grid.cells}, out()
    console.print(header(grid, registry, device, {key for key in keys if store.has(key)}))
    with showing_progress(registry.manager, err()):
        summary = runner.run(grid, registry, store, device, jobs=jobs, plugins=plugins, data_root=data_root)
    from robustbench_meta import leaderboard  # with pandas, which the first progress need not wait for
    from robustbench_meta.curves import curves
    from robustbench_meta.tables import curve_tables, tables

    path = leaderboard.write(store)
    frame, samples = leaderboard.read(store, keys)  # the worst case is over the run's own attacks
    for table in [*tables(frame, console.width), *curve_tables(curves(frame, samples), console.width)]:
        console.print(table)
    console.print(outcome(summary, path))
    return len(summary.failed)


def rehearse(ready: Ready, results: Path, jobs: Jobs) -> int:
    """Show the cells, what is done already, and the work; write nothing, so that no Store is made."""
    grid, console = ready.grid, out()
    done = {cell.key for cell in grid.cells if is_done(results, cell.key)}
    console.print(header(grid, ready.registry, ready.device, done))
    console.print(cells_table(grid, done))
    todo = jobs_of(grid, {cell.key for cell in grid.cells} - done, partial(is_trained, results))
    console.print(work(grid, done, side_by_side(jobs, todo, ready.device, available_cores())))
    return 0
