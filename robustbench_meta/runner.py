"""Runs a grid: skips what is done, has an executor do the rest, writes the records and tells the events."""

from __future__ import annotations

from pathlib import Path

import torch

from robustbench_meta.desk import Desk, Summary
from robustbench_meta.executors import Policy, Recipe
from robustbench_meta.executors.choice import choose
from robustbench_meta.executors.schedule import tasks_of
from robustbench_meta.grid import Cell, Grid, Training, Work, prepare
from robustbench_meta.precision import check_precision
from robustbench_meta.registry import Registry
from robustbench_meta.stopping import Stop
from robustbench_meta.store import Store

__all__ = ["Cell", "Grid", "Policy", "Summary", "Training", "Work", "prepare", "run"]


def run(
    grid: Grid,
    registry: Registry,
    store: Store,
    device: torch.device,
    policy: Policy | None = None,
    *,
    plugins: Path | None = None,
    local_plugins: bool = True,
    data_root: Path | None = None,
    stop: Stop | None = None,
) -> Summary:
    """Compute the cells of a grid that the store does not hold yet; a cell that fails costs no other.

    Progress is told through the event hooks.

    Args:
        grid: what to run.
        registry: the plugins that hear the events.
        store: where records and checkpoints go.
        device: what computes.
        policy: how.
        plugins: where `registry` found local plugins, for other processes.
        local_plugins: whether it looked for any.
        data_root: where `grid` found its data, for other processes.
        stop: whether to stop.

    Raises:
        Stopped: `stop` was told; what was finished, and most of what was under way, is kept.
        BenchError: the device has not the grid's precision, or the executor is not to be had.
        StorageError: something cannot be written.
    """
    policy = policy or Policy()
    check_precision(grid.run.precision, device)
    keys = [cell.key for cell in grid.cells]
    if policy.fresh:
        store.forget(keys, [training.key for training in grid.needed(keys)])
    pending = [key for key in keys if not store.has(key)]
    failed = {} if policy.retry_failed else {key: why for key in pending if (why := store.failure(key)) is not None}
    todo = [key for key in pending if key not in failed]
    for key in todo:
        store.forget_failure(key)
    about = grid.run.model_dump(mode="json")
    registry.tell("run_started", run=about, cells=len(todo))
    tasks, slots = tasks_of(grid, todo, store.has_checkpoint), 1
    if tasks:
        recipe = Recipe(grid.run, plugins, data_root, store.root, str(device), local_plugins)
        executor = choose(policy, recipe, grid, store, tasks, device)
        slots = executor.slots
    trainings = len({task.training for task in tasks})
    if slots > trainings > 0:
        tasks = tasks_of(grid, todo, store.has_checkpoint, bundles=-(-slots // trainings))
    desk = Desk(grid, registry, store, tasks, stop=stop, cell_timeout=policy.cell_timeout)
    summary = desk.summary
    summary.skipped = len(keys) - len(pending)
    summary.failed_before = [(cell, failed[cell.key]) for cell in grid.cells if cell.key in failed]
    try:
        if tasks:
            executor.run(desk)
        store.tidy(training.key for training in grid.needed(keys))
    finally:
        store.locks.give_back_all()
        registry.tell("run_finished", run=about, finished=summary.finished, failed=len(summary.failed))
    return summary
