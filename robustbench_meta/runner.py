"""Runs grids: skips what is done, has an executor do the rest, writes the records and tells the events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_meta.desk import Desk, Summary, Tells
from robustbench_meta.executors import Policy, Recipe
from robustbench_meta.executors.choice import choose
from robustbench_meta.executors.schedule import shares_of, tasks_of
from robustbench_meta.grid import Cell, Grid, Training, Work, prepare, prepare_all
from robustbench_meta.precision import check_precision
from robustbench_meta.registry import Registry
from robustbench_meta.stopping import Stop
from robustbench_meta.store import Store

__all__ = ["Cell", "Grid", "Policy", "Summary", "Training", "Work", "prepare", "prepare_all", "run", "run_all"]


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
    return run_all(
        [grid], registry, store, device, policy, plugins=plugins, local_plugins=local_plugins, data_root=data_root,
        stop=stop,
    )  # fmt: skip


def run_all(
    grids: Sequence[Grid],
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
    """Compute the cells of the parts of a suite, one part after the other, as one run.

    The events tell of one run with the cells of all parts; a training that several parts need is done once.

    Args:
        grids: the parts, of which no two have a cell in common, see `prepare_all`.
        registry: as for `run`, with all that follows.
        store: as for `run`.
        device: as for `run`.
        policy: as for `run`; `fresh` forgets what is kept of all parts before the first begins.
        plugins: as for `run`.
        local_plugins: as for `run`.
        data_root: as for `run`.
        stop: as for `run`.

    Raises:
        BenchError: as of `run`.
    """
    policy, stop, summary = policy or Policy(), Stop() if stop is None else stop, Summary()
    for grid in grids:
        check_precision(grid.run.precision, device)
    parts = [_begin(grid, store, policy, summary) for grid in grids]
    about = _about(grids)
    registry.tell(
        "run_started", run=about, cells=sum(map(len, parts)), work=_work(grids, parts, store), results=str(store.root),
        trainings=_trainings(grids, parts),
    )  # fmt: skip
    try:
        for number, (grid, todo) in enumerate(zip(grids, parts, strict=True), 1):
            recipe = Recipe(grid.run, plugins, data_root, store.root, str(device), local_plugins)
            teller: Tells = _Teller(registry, number) if len(grids) > 1 else registry
            _run_part(grid, todo, teller, store, device, policy, recipe, stop, summary)
    finally:
        store.locks.give_back_all()
        registry.tell("run_finished", run=about, finished=summary.finished, failed=len(summary.failed))
    return summary


def _begin(grid: Grid, store: Store, policy: Policy, summary: Summary) -> list[str]:
    """The keys of the cells that are still to do; the others are counted."""
    keys = [cell.key for cell in grid.cells]
    if policy.fresh:
        store.forget(keys, [training.key for training in grid.needed(keys)])
    pending = [key for key in keys if not store.has(key)]
    failed = {} if policy.retry_failed else {key: why for key in pending if (why := store.failure(key)) is not None}
    summary.skipped += len(keys) - len(pending)
    summary.failed_before += [(cell, failed[cell.key]) for cell in grid.cells if cell.key in failed]
    todo = [key for key in pending if key not in failed]
    for key in todo:
        store.forget_failure(key)
    return todo


def _run_part(
    grid: Grid, todo: Sequence[str], teller: Tells, store: Store, device: torch.device, policy: Policy,
    recipe: Recipe, stop: Stop, summary: Summary,
) -> None:  # fmt: skip
    """Have an executor do what is to do of one grid."""
    tasks, slots = tasks_of(grid, todo, store.has_checkpoint), 1
    if tasks:
        executor = choose(policy, recipe, grid, store, tasks, device)
        slots = executor.slots
    trainings = len({task.training for task in tasks})
    if slots > trainings > 0:
        tasks = tasks_of(grid, todo, store.has_checkpoint, bundles=-(-slots // trainings))
    if tasks:
        desk = Desk(grid, teller, store, tasks, stop=stop, cell_timeout=policy.cell_timeout)
        desk.summary = summary
        executor.run(desk)
    store.tidy(training.key for training in grid.needed([cell.key for cell in grid.cells]))


@dataclass(frozen=True)
class _Teller:
    """Tells the events of one part: learners of one name are in several."""

    registry: Registry
    part: int

    def tell(self, event: str, /, **facts: Any) -> None:
        """Tell an event, with the part in the label of the training."""
        if "training" in facts:
            facts["training"] = _titled(facts["training"], self.part)
        self.registry.tell(event, **facts)


def _titled(training: str, part: int) -> str:
    return f"{training}, part {part}"


def _work(grids: Sequence[Grid], parts: Sequence[Sequence[str]], store: Store) -> list[dict[str, Any]]:
    """What is to do for each training of all parts; what an earlier part trains is not trained again."""
    made: set[str] = set()
    shares = []
    for number, (grid, todo) in enumerate(zip(grids, parts, strict=True), 1):
        needed = [training.key for training in grid.needed(todo)]
        there = made | {key for key in needed if store.has_checkpoint(key)}
        for share in shares_of(grid, todo, there.__contains__):
            title = _titled(share["training"], number) if len(grids) > 1 else share["training"]
            shares.append({**share, "training": title})
        made |= set(needed)
    return shares


def _trainings(grids: Sequence[Grid], parts: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """By its key what each training is that the cells still to do need, as plain data."""
    found: dict[str, dict[str, Any]] = {}
    for number, (grid, todo) in enumerate(zip(grids, parts, strict=True), 1):
        for training in grid.needed(todo):
            title = _titled(training.title, number) if len(grids) > 1 else training.title
            about = {"title": title, "learner": training.label, **grid.labels}
            found.setdefault(training.key, {**about, "spec": training.spec.model_dump(mode="json")})
    return found


def _about(grids: Sequence[Grid]) -> Mapping[str, Any]:
    """What is run, as plain data: of several parts what they share, lists joined, None where they differ, and each."""
    parts = [grid.run.model_dump(mode="json") for grid in grids]
    if len(parts) == 1:
        return parts[0]
    shared: dict[str, Any] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if isinstance(values[0], list):
            shared[name] = list(dict.fromkeys(each for value in values for each in value))
        else:
            shared[name] = values[0] if all(value == values[0] for value in values) else None
    return {**shared, "parts": parts}
