"""Learning curves: accuracy over meta-steps, in meta-training and on the validation tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from robustbench_meta.reporting.figures.learning_curves import draw_learning
from robustbench_meta.reporting.html.embedded_figures import Drawings
from robustbench_meta.results.learning_curves import Validation, learning_curves
from robustbench_meta.results.tables import PLACE, learners_apart

_PLACE = [name for name in PLACE if name != "episodes"]


@dataclass(frozen=True)
class TrainingRow:
    """What stands in the table: a training's judgements at one step."""

    learner: str
    seed: int
    told: Validation
    kept: bool
    """Whether these weights were the ones that were kept."""


@dataclass(frozen=True)
class LearningCurves:
    """The learning curves of one setting."""

    told: dict[str, Any]
    figures: list[Markup]
    rows: list[TrainingRow]
    seeds: int
    against: list[str]
    """Which learners were trained against an attack, and which."""


def curve_sections(
    frame: pd.DataFrame, records: Sequence[Mapping[str, Any]], drawings: Drawings
) -> Iterator[LearningCurves]:
    """Of each setting in which something was trained."""
    curves = learning_curves(records)
    chosen = {str(record["training"]): record.get("chosen_step") for record in records}
    for _, rows in frame.groupby(_PLACE, sort=False, dropna=False):
        named = learners_apart(rows).drop_duplicates("training_hash")
        named = named[named["training_hash"].isin(curves)].sort_values(["learner", "seed"])
        if not named.empty:
            figures = [drawings.embed(each) for each in draw_learning(rows, records, drawings.look)]
            yield _course(named, curves, chosen, figures)


def _course(
    rows: pd.DataFrame, curves: Mapping[str, list[Validation]], chosen: Mapping[str, Any], figures: list[Markup]
) -> LearningCurves:  # fmt: skip
    told = {str(name): value for name, value in rows.iloc[0].items()}
    attacked = rows[rows["training_attack"] != "none"].drop_duplicates("learner")
    return LearningCurves(
        told, figures,
        [
            TrainingRow(str(row["learner"]), int(row["seed"]), each, each.step == chosen[row["training_hash"]])
            for row in rows.to_dict("records") for each in curves[row["training_hash"]]
        ],
        int(rows.groupby("learner")["seed"].nunique().max()),
        [
            f"{row['learner']} ({row['training_attack']}, ε = {row['training_eps']})"
            for row in attacked.to_dict("records")
        ],
    )  # fmt: skip
