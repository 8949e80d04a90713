"""What it took: training, adapting and attacking, in time, memory, and passes through the attacked model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from robustbench_meta.reporting.terminal.layout import sides
from robustbench_meta.results.tables import PLACE, learners_apart

_PLACE = [*PLACE, "device"]


class TrainingCost(NamedTuple):
    """A learner's own: means over its seeds."""

    learner: str
    seeds: int
    parameters: int
    train_seconds: float
    adapt_ms: float
    check_ms: float
    memory_mb: float


class AttackCost(NamedTuple):
    """An attack's on a learner: means over ε and seeds."""

    attack: str
    scene: str
    learner: str
    rows: int
    attack_ms: float
    forward: float
    gradients: float


@dataclass(frozen=True)
class CostTable:
    """Of one place and device."""

    device: str
    told: dict[str, Any]
    learners: list[TrainingCost]
    attacks: list[AttackCost]


def cost_tables(frame: pd.DataFrame) -> Iterator[CostTable]:
    """The costs of each place and device, in the order of the leaderboard."""
    for _, rows in frame.groupby(_PLACE, sort=False, dropna=False):
        named = learners_apart(rows)
        told = {str(name): value for name, value in named.iloc[0].items()}
        yield CostTable(str(told["device"]), told, list(_upkeep(named)), list(_efforts(named)))


def _upkeep(rows: pd.DataFrame) -> Iterator[TrainingCost]:
    for learner, part in rows.groupby("learner", sort=True):
        trained = part.drop_duplicates("training_hash")
        yield TrainingCost(
            str(learner), int(part["seed"].nunique()), int(part["parameters"].iloc[0]), _mean(trained["train_seconds"]),
            _mean(part["adapt_ms_per_task"]), _mean(part["check_ms_per_task"]), _mean(part["peak_memory_mb"]),
        )  # fmt: skip


def _efforts(rows: pd.DataFrame) -> Iterator[AttackCost]:
    attacked = rows[rows["threat_norm"] != "none"]
    for names, part in attacked.groupby(["attack", "support", "query", "surrogate", "learner"], sort=True):
        attack, support, query, surrogate, learner = names
        scene = sides({"support": support, "query": query, "surrogate": surrogate})
        yield AttackCost(
            str(attack), scene, str(learner), len(part), _mean(part["attack_ms_per_task"]),
            _mean(part["forward_per_image"]), _mean(part["gradients_per_image"]),
        )  # fmt: skip


def _mean(values: pd.Series[float]) -> float:
    """NaN where none is known."""
    known = values.dropna()
    return float(known.mean()) if len(known) else math.nan
