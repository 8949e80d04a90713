"""Runs a grid: skips what is done, has an executor do the rest, writes the records and tells the events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustbench_meta.cores import available_cores
from robustbench_meta.executors import Executor, Recipe
from robustbench_meta.executors.in_process import InProcess
from robustbench_meta.executors.processes import Processes
from robustbench_meta.executors.schedule import jobs_of, side_by_side
from robustbench_meta.grid import Cell, Grid, Training, Work, prepare
from robustbench_meta.options import Jobs
from robustbench_meta.precision import check_precision
from robustbench_meta.registry import Registry
from robustbench_meta.store import Store, is_trained

__all__ = ["Cell", "Grid", "Summary", "Training", "Work", "prepare", "run"]


@dataclass
class Summary:
    """What became of a run's cells."""

    finished: int = 0
    skipped: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)


def run(
    grid: Grid,
    registry: Registry,
    store: Store,
    device: torch.device,
    *,
    jobs: Jobs = 1,
    plugins: Path | None = None,
    data_root: Path | None = None,
) -> Summary:
    """Compute the cells of a grid that the store does not hold yet; a cell that fails costs no other.

    Progress is told through the event hooks.

    Args:
        grid: what to run.
        registry: the plugins that hear the events.
        store: where records and checkpoints go.
        device: what computes.
        jobs: how many trainings are done side by side. More than one go to processes of their own, which
            make the grid again; a script that asks for this needs `if __name__ == "__main__":`.
        plugins: where `registry` found local plugins, for those processes.
        data_root: where `grid` found its data, for those processes.

    Raises:
        BenchError: the device has not the grid's precision.
    """
    check_precision(grid.run.precision, device)
    desk = _Desk(grid, registry, store)
    pending = [cell.key for cell in grid.cells if not store.has(cell.key)]
    desk.summary.skipped = len(grid.cells) - len(pending)
    about = grid.run.model_dump(mode="json")
    registry.tell("run_started", run=about, cells=len(pending))
    todo, cores = jobs_of(grid, pending, lambda key: is_trained(store.root, key)), available_cores()
    workers = side_by_side(jobs, todo, device, cores)
    executor: Executor = InProcess(grid, store, device, cores)
    if workers > 1:
        executor = Processes(Recipe(grid.run, plugins, data_root, store.root, str(device)), workers, cores)
    executor.run(todo, desk.hear)
    registry.tell("run_finished", run=about, finished=desk.summary.finished, failed=len(desk.summary.failed))
    return desk.summary


class _Desk:
    """Where all events of the work arrive: writes records, keeps count, calls the hooks."""

    def __init__(self, grid: Grid, registry: Registry, store: Store) -> None:
        self._cells = {cell.key: cell for cell in grid.cells}
        self._registry, self._store = registry, store
        self.summary = Summary()

    def hear(self, event: str, /, **facts: Any) -> None:
        """See `Executor.run`."""
        if event == "cell_finished":
            self._finished(**facts)
        elif event == "cell_failed":
            self._failed(**facts)
        else:
            self._registry.tell(event, **facts)

    def _finished(self, record: Mapping[str, Any]) -> None:
        self._store.write_record(record)
        self.summary.finished += 1
        self._registry.tell("cell_finished", record=record)

    def _failed(self, key: str, reason: str) -> None:
        cell = self._cells[key]
        self.summary.failed.append((cell, reason))
        self._registry.tell(
            "cell_failed", cell=cell.spec.model_dump(mode="json"), training=cell.training.title, reason=reason
        )
