"""What `bench run` does once its options are read; loaded late, for torch takes seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from robustbench_meta import leaderboard, runner
from robustbench_meta.cli.console import err, out
from robustbench_meta.cli.plan import cells_table, header, outcome, work
from robustbench_meta.cli.progress import showing_progress
from robustbench_meta.devices import choose_device
from robustbench_meta.grid import Grid
from robustbench_meta.registry import Registry, load_registry
from robustbench_meta.spec import RunSpec
from robustbench_meta.store import Store, is_done
from robustbench_meta.tables import tables


class Ready(NamedTuple):
    """A grid that can run here."""

    grid: Grid
    registry: Registry
    device: torch.device


def prepare(spec: RunSpec, plugins: Path | None, data_root: Path | None) -> Ready:
    """Find the device and the plugins, load the data, and expand the grid."""
    device = choose_device(spec.device)
    registry = load_registry(plugins)
    return Ready(runner.prepare(spec, registry, data_root), registry, device)


def execute(ready: Ready, results: Path) -> int:
    """Run the grid, show its tables, and return how many cells failed."""
    grid, registry, device = ready
    store, keys, console = Store(results), {cell.key for cell in grid.cells}, out()
    console.print(header(grid, registry, device, {key for key in keys if store.has(key)}))
    with showing_progress(registry.manager, err()):
        summary = runner.run(grid, registry, store, device)
    path = leaderboard.write(store)
    frame = leaderboard.build(store, keys)  # the worst case is over the run's own attacks
    for table in tables(frame, console.width):
        console.print(table)
    console.print(outcome(summary, path))
    return len(summary.failed)


def rehearse(ready: Ready, results: Path) -> int:
    """Show the cells, what is done already, and the work; write nothing, so that no Store is made."""
    grid, console = ready.grid, out()
    done = {cell.key for cell in grid.cells if is_done(results, cell.key)}
    console.print(header(grid, ready.registry, ready.device, done))
    console.print(cells_table(grid, done))
    console.print(work(grid, done))
    return 0
