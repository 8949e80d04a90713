"""What a run consists of: trainings, the cells that each is tested in, how much work they are, and how many workers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robustbench_meta.evaluation.evaluator import chunks_of
from robustbench_meta.experiment.grid import Cell, Grid, Training
from robustbench_meta.experiment.probes import checked_of
from robustbench_meta.options import Jobs

WORTH_STARTING = 2000
"""The tasks (episodes) that a run must go through for worker processes to pay: about 20 s with the profile quick's
network on two cores, where starting a worker takes a few seconds."""


@dataclass(frozen=True, eq=False)
class JobTarget:
    """A training that pending cells need."""

    grid: Grid
    training: Training
    key: str
    """Of the training."""
    title: str
    """Of the training, with the number of the part of the run if there are several."""

    @property
    def train_cost(self) -> int:
        """Tasks, each once for its meta-gradient; twice for a learner that attacks its training tasks."""
        steps = self.training.spec.meta_steps * self.grid.run.size("tasks_per_step")
        return steps * (2 if self.training.attack else 1)


@dataclass(frozen=True, eq=False)
class EvaluationGroup(JobTarget):
    """The cells of one training in one part of a run: they are evaluated together."""

    cells: dict[str, Cell]
    """Those that are still to do."""
    wants: dict[str, list[str]]
    """By cell, the keys of the trainings whose checkpoints its evaluation reads."""
    chunks: list[range]
    """Of the episodes."""
    pairs: int
    """How many (episode, attack) pairs there were to do at first."""
    cost: int
    """Episodes, each once for each adaptation and each attack; no attack is taken to be dearer than another."""

    @property
    def needs(self) -> set[str]:
        """The keys of the trainings whose checkpoints are read."""
        return {key for cell in self.cells for key in self.wants[cell]}


def evaluation_groups(grids: Sequence[Grid], pending: Collection[str], device: str) -> list[EvaluationGroup]:
    """The pending cells by part and training, in the order of the grids."""
    groups = []
    for number, grid in enumerate(grids, 1):
        for training in grid.trainings:
            cells = {cell.key: cell for cell in grid.of(training) if cell.key in pending}
            if not cells:
                continue
            key = training.key
            wants = {
                cell.key: [key, cell.surrogate.key] if cell.surrogate and cell.surrogate.path is None else [key]
                for cell in cells.values()
            }
            episodes, work = grid.run.size("episodes"), grid.estimate(set(cells))
            groups.append(
                EvaluationGroup(
                    grid, training, key, _title(training, number, grids), cells, wants,
                    chunks_of(episodes, device, grid.run.chunk), len(cells) * episodes,
                    work.adaptations + work.attacked_tasks,
                )
            )  # fmt: skip
    return groups


def required_trainings(grids: Sequence[Grid], pending: Collection[str]) -> dict[str, JobTarget]:
    """The trainings that the pending cells need, surrogates' among them, by key."""
    needed: dict[str, JobTarget] = {}
    for number, grid in enumerate(grids, 1):
        for training in grid.needed(pending):
            needed.setdefault(training.key, JobTarget(grid, training, training.key, _title(training, number, grids)))
    return needed


def _title(training: Training, part: int, grids: Sequence[Grid]) -> str:
    return f"{training.title}, part {part}" if len(grids) > 1 else training.title


def work_of(
    groups: Iterable[EvaluationGroup], needed: Mapping[str, JobTarget], trained: Callable[[str], bool]
) -> list[dict[str, Any]]:  # fmt: skip
    """What is to do for each training, as the hook `run_started` has it."""
    shares: dict[str, dict[str, Any]] = {}

    def share(target: JobTarget) -> dict[str, Any]:
        empty = {"training": target.title, "cells": 0, "train": 0, "test": 0, "checked": 0}
        return shares.setdefault(target.title, empty)

    for key, target in needed.items():
        share(target)["train"] = 0 if trained(key) else target.train_cost
    for group in groups:
        checked = checked_of(group.chunks[-1].stop) if group.grid.probe_plan is not None else 0
        share(group)["cells"] += len(group.cells)
        share(group)["test"] += group.cost
        share(group)["checked"] += checked * len(group.cells)
    return list(shares.values())


def workers_for(wanted: Jobs, work: Sequence[Mapping[str, Any]], device: torch.device, cores: int) -> int:
    """How many workers a run gets, at most one for each training.

    `auto` is one a core on the CPU, if the run is long enough to pay for starting processes; on CUDA one a device.
    """
    if wanted == "auto":
        if device.type == "cuda":
            wanted = torch.cuda.device_count() if device.index is None else 1
        else:
            wanted = cores if sum(each["train"] + each["test"] for each in work) >= WORTH_STARTING else 1
    return max(1, min(wanted, len(work)))
