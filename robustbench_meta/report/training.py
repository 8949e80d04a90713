"""Learning curves: accuracy over meta-steps, in meta-training and on the validation tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta.boards import PLACE, learners_apart, shown
from robustbench_meta.learning import Validation, learning_curves
from robustbench_meta.report.charts import PERCENTS, Line, Palette, Panel, Scale, Tick, rounded, thinned

_PLACE = [name for name in PLACE if name != "episodes"]
_PANELS = {"meta-training tasks": "accuracy", "validation tasks": "validation_accuracy"}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360.0, 228.0, 34.0, 344.0, 10.0, 186.0


@dataclass(frozen=True)
class Trained:
    """What stands in the table: a training's judgements at one step."""

    learner: str
    seed: int
    told: Validation
    kept: bool
    """Whether these weights were the ones that were kept."""


@dataclass(frozen=True)
class Course:
    """The learning curves of one setting."""

    told: dict[str, Any]
    panels: list[Panel]
    rows: list[Trained]
    learners: list[str]
    seeds: int
    against: list[str]
    """Which learners were trained against an attack, and which."""


def courses(frame: pd.DataFrame, records: Sequence[Mapping[str, Any]], palette: Palette) -> Iterator[Course]:
    """Of each setting in which something was trained."""
    curves = learning_curves(records)
    chosen = {str(record["training"]): record.get("chosen_step") for record in records}
    for _, rows in frame.groupby(_PLACE, sort=False, dropna=False):
        named = learners_apart(rows).drop_duplicates("training_hash")
        named = named[named["training_hash"].isin(curves)].sort_values(["learner", "seed"])
        if not named.empty:
            yield _course(named, curves, chosen, palette)


def _course(
    rows: pd.DataFrame, curves: Mapping[str, list[Validation]], chosen: Mapping[str, Any], palette: Palette
) -> Course:  # fmt: skip
    told = {str(name): value for name, value in rows.iloc[0].items()}
    attacked = rows[rows["training_attack"] != "none"].drop_duplicates("learner")
    return Course(
        told, [_panel(title, name, rows, curves, chosen, palette) for title, name in _PANELS.items()],
        [
            Trained(str(row["learner"]), int(row["seed"]), each, each.step == chosen[row["training_hash"]])
            for row in rows.to_dict("records") for each in curves[row["training_hash"]]
        ],
        sorted(rows["learner"].unique()), int(rows.groupby("learner")["seed"].nunique().max()),
        [
            f"{row['learner']} ({row['training_attack']}, ε = {row['training_eps']})"
            for row in attacked.to_dict("records")
        ],
    )  # fmt: skip


def _panel(
    title: str, name: str, rows: pd.DataFrame, curves: Mapping[str, list[Validation]], chosen: Mapping[str, Any],
    palette: Palette,
) -> Panel:  # fmt: skip
    last = max(each.step for key in rows["training_hash"] for each in curves[key])
    across, up = Scale(0.0, max(float(last), 1.0), _LEFT, _RIGHT), Scale(0.0, 100.0, _BOTTOM, _TOP)
    drawn: list[Line] = []
    for learner, part in rows.groupby("learner", sort=True):
        style = palette[str(learner)]
        each = [(curves[key], chosen[key]) for key in part["training_hash"]]
        for history, kept in each:
            seen = [told for told in history if math.isfinite(getattr(told, name))]
            points = [(across(told.step), up(100 * getattr(told, name))) for told in seen]
            marked = [points[at] for at, told in enumerate(seen) if told.step == kept]
            shown_marks = marked if name.startswith("validation") else []
            drawn.append(Line(str(learner), style, points, marked=shown_marks, faint=len(each) > 1))
        if len(each) > 1 and len({tuple(told.step for told in history) for history, _ in each}) == 1:
            means = 100 * np.mean([[getattr(told, name) for told in history] for history, _ in each], axis=0)
            steps = [told.step for told in each[0][0]]
            points = [(across(x), up(y)) for x, y in zip(steps, means, strict=True) if math.isfinite(y)]
            drawn.append(Line(str(learner), style, points))
    ticks = [Tick(across(step), f"{step:,.0f}") for step in rounded(0, last, 5)]
    last_each = {
        learner: getattr(curves[part["training_hash"].iloc[0]][-1], name)
        for learner, part in rows.groupby("learner", sort=True)
    }
    known = [f"{name} {shown(100 * value)} %" for name, value in last_each.items() if math.isfinite(value)]
    finals = ", ".join(known) or "not known"
    return Panel(
        title=title, told=f"Accuracy on {title} over {last:,} meta-steps; at the last: {finals}.",
        width=_WIDTH, height=_HEIGHT, left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM, x_ticks=thinned(ticks, 6),
        y_ticks=[Tick(up(value), label) for value, label in PERCENTS], x_label="meta-steps", lines=drawn,
        rule=up(100 / int(rows["way"].iloc[0])),
    )  # fmt: skip
