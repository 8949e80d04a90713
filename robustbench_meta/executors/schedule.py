"""Which tasks a run consists of, how much work each is, and how many are done side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from robustbench_meta.executors import Task
from robustbench_meta.grid import Cell, Grid, Training
from robustbench_meta.options import Jobs
from robustbench_meta.probes import CHECKED

WORTH_STARTING = 2000
"""The tasks (episodes) that a run must go through for worker processes to pay: about 20 s with the profile quick's
network on two cores, where starting a worker takes a few seconds."""
MOST_CELLS = 64
"""In one task: each is locked while it is under way."""


def tasks_of(
    grid: Grid, pending: Collection[str], trained: Callable[[str], bool], *, bundles: int = 1
) -> list[Task]:  # fmt: skip
    """A training for each checkpoint that is missing, and the evaluations of what is pending, in the order of the grid.

    The cost counts episodes: each once for its meta-gradient (twice for a learner that attacks its training tasks),
    for each adaptation and for each attack; no attack is taken to be dearer than another.

    Args:
        grid: the run.
        pending: the keys of the cells that are still to do.
        trained: whether there is a checkpoint of that key, so that nothing is to be trained.
        bundles: into how many evaluations to split the cells of a training, for workers that would have nothing to do;
            into fewer where these would be too small to pay.
    """
    found: dict[str, Task] = {}
    for training in grid.trainings:
        cells = [cell for cell in grid.of(training) if cell.key in pending]
        worth = max(1, _evaluation(grid, training, cells).cost // WORTH_STARTING)
        evaluations = [_evaluation(grid, training, bundle) for bundle in _bundled(cells, min(bundles, worth))]
        waiting = sum(task.cost for task in evaluations)
        for needed in grid.needed([cell.key for cell in cells]):
            if needed.key not in found and not trained(needed.key):
                found[needed.key] = Task(needed.key, needed.title, cost=_training_cost(grid, needed) + waiting)
        found |= {f"{training.key} {index}": task for index, task in enumerate(evaluations)}
    return list(found.values())


def _evaluation(grid: Grid, training: Training, cells: Sequence[Cell]) -> Task:
    keys = [cell.key for cell in cells]
    work, needs = grid.estimate(keys), tuple(needed.key for needed in grid.needed(keys))
    cost = work.adaptations + work.attacked_tasks
    return Task(training.key, training.title, tuple(keys), needs, cost)


def _training_cost(grid: Grid, training: Training) -> int:
    return training.spec.meta_steps * grid.run.size("tasks_per_step") * (2 if training.attack else 1)


def _bundled(cells: Sequence[Cell], count: int) -> list[list[Cell]]:
    """Cells of one attack stay together: they share what is costly."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.spec.attack.plugin.model_dump_json(), []).append(cell)
    bundles: list[list[Cell]] = [[] for _ in range(min(count, len(groups)))]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(bundles, key=len).extend(group)
    return [bundle[start : start + MOST_CELLS] for bundle in bundles for start in range(0, len(bundle), MOST_CELLS)]


def shares_of(grid: Grid, pending: Collection[str], trained: Callable[[str], bool]) -> list[dict[str, Any]]:
    """What is to do for each training of a run, as the event `run_started` tells it; costs are those of `tasks_of`."""
    tasks = tasks_of(grid, pending, trained)
    shares: dict[str, dict[str, Any]] = {
        task.training: {"training": task.title, "cells": 0, "train": _own(task, tasks), "test": 0, "checked": 0}
        for task in reversed(tasks)
    }
    checked = min(CHECKED, grid.run.size("episodes")) if grid.battery is not None else 0
    for task in tasks:
        shares[task.training]["checked"] += checked * len(task.cells)
        shares[task.training]["cells"] += len(task.cells)
        shares[task.training]["test"] += task.cost if task.cells else 0
    return list(reversed(shares.values()))


def side_by_side(wanted: Jobs, tasks: Sequence[Task], device: torch.device, cores: int) -> int:
    """How many tasks to do at a time, at most one for each training.

    `auto` is one a core on the CPU, if the run is long enough to pay for starting processes; on CUDA one a device.
    """
    trainings = len({task.training for task in tasks})
    if wanted == "auto":
        if device.type == "cuda":
            wanted = torch.cuda.device_count() if device.index is None else 1
        else:
            cost = sum(task.cost for task in tasks if task.cells) + sum(_own(task, tasks) for task in tasks)
            wanted = cores if cost >= WORTH_STARTING else 1
    return max(1, min(wanted, trainings))


def _own(task: Task, tasks: Sequence[Task]) -> int:
    """The cost of a training without what waits for it."""
    if task.cells:
        return 0
    return max(0, task.cost - sum(other.cost for other in tasks if other.cells and other.training == task.training))
