"""What a run consists of: groups of cells by their training, how much work they are, and how many workers pay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robustbench_meta.evaluation.evaluator import chunks_of
from robustbench_meta.experiment.grid import Cell, Grid, Training
from robustbench_meta.experiment.probes import CHECKED
from robustbench_meta.options import Jobs

WORTH_STARTING = 2000
"""The tasks (episodes) that a run must go through for worker processes to pay: about 20 s with the profile quick's
network on two cores, where starting a worker takes a few seconds."""


@dataclass
class Group:
    """The cells of one training in one part of a run: they are evaluated together."""

    grid: Grid
    training: Training
    key: str
    """Of the training."""
    title: str
    """Of the training, with the number of the part if there are several."""
    cells: dict[str, Cell]
    """Those that are still to do."""
    wants: dict[str, list[str]]
    """By cell, the keys of the trainings whose checkpoints its evaluation reads."""
    chunks: list[range]
    """Of the episodes."""
    cost: int
    """Episodes, each once for each adaptation and each attack; no attack is taken to be dearer than another."""

    @property
    def needs(self) -> set[str]:
        """The keys of the trainings whose checkpoints are read."""
        return {key for cell in self.cells for key in self.wants[cell]}

    @property
    def pairs(self) -> int:
        """How many (episode, attack) pairs there are."""
        return len(self.cells) * self.chunks[-1].stop


@dataclass(frozen=True)
class Needed:
    """A training that pending cells need."""

    grid: Grid
    training: Training
    key: str
    title: str

    @property
    def cost(self) -> int:
        """Tasks, each once for its meta-gradient; twice for a learner that attacks its training tasks."""
        steps = self.training.spec.meta_steps * self.grid.run.size("tasks_per_step")
        return steps * (2 if self.training.attack else 1)


def titled(training: Training, part: int, parts: int) -> str:
    """The title of a training: learners of one name may be in several parts of a run."""
    return f"{training.title}, part {part}" if parts > 1 else training.title


def groups_of(grids: Sequence[Grid], pending: Collection[str], device: str) -> list[Group]:
    """The pending cells by part and training, in the order of the grids."""
    groups = []
    for number, grid in enumerate(grids, 1):
        for training in grid.trainings:
            cells = {cell.key: cell for cell in grid.of(training) if cell.key in pending}
            if not cells:
                continue
            key = training.key
            surrogates = {each: cell.surrogate for each, cell in cells.items()}
            wants = {
                each: [key, *([surrogate.key] if surrogate is not None and surrogate.path is None else [])]
                for each, surrogate in surrogates.items()
            }
            chunks, work = chunks_of(grid.run.size("episodes"), device, grid.run.chunk), grid.estimate(set(cells))
            cost = work.adaptations + work.attacked_tasks
            title = titled(training, number, len(grids))
            groups.append(Group(grid, training, key, title, cells, wants, chunks, cost))
    return groups


def needed_of(grids: Sequence[Grid], pending: Collection[str]) -> dict[str, Needed]:
    """The trainings that the pending cells need, surrogates' among them, by key."""
    found: dict[str, Needed] = {}
    for number, grid in enumerate(grids, 1):
        for training in grid.needed(pending):
            key = training.key
            found.setdefault(key, Needed(grid, training, key, titled(training, number, len(grids))))
    return found


def work_of(
    groups: Iterable[Group], needed: Mapping[str, Needed], trained: Callable[[str], bool]
) -> list[dict[str, Any]]:  # fmt: skip
    """What is to do for each training, as the hook `run_started` has it."""
    shares: dict[str, dict[str, Any]] = {}
    for key, each in needed.items():
        cost = 0 if trained(key) else each.cost
        shares[each.title] = {"training": each.title, "cells": 0, "train": cost, "test": 0, "checked": 0}
    for group in groups:
        empty = {"training": group.title, "cells": 0, "train": 0, "test": 0, "checked": 0}
        share = shares.setdefault(group.title, empty)
        checked = min(CHECKED, group.chunks[-1].stop) if group.grid.probe_plan is not None else 0
        share["cells"] += len(group.cells)
        share["test"] += group.cost
        share["checked"] += checked * len(group.cells)
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
