"""Learning curves: accuracy over meta-steps, in meta-training and on the validation tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from robustbench_meta.reporting.figures.figure import PaperFigure, place_text
from robustbench_meta.reporting.figures.layout import grid
from robustbench_meta.reporting.figures.style import FigureStyle, chance, percents
from robustbench_meta.reporting.wording import meaning
from robustbench_meta.results.learning_curves import Validation, learning_curves
from robustbench_meta.results.tables import SETTING, with_distinct_learners

_PLACE = [name for name in SETTING if name != "episodes"]
_PANELS = {"meta-training tasks": "accuracy", "validation tasks": "validation_accuracy"}


def draw_learning(
    frame: pd.DataFrame, records: Sequence[Mapping[str, Any]], look: FigureStyle
) -> Iterator[PaperFigure]:
    """A figure for each setting in which something was trained."""
    curves = learning_curves(records)
    chosen = {str(record["training"]): record.get("chosen_step") for record in records}
    for _, rows in frame.groupby(_PLACE, sort=False, dropna=False):
        named = with_distinct_learners(rows)
        named = named[named["training_hash"].isin(curves)]
        if not named.empty:
            flags = _flags(named)
            yield _figure(named.drop_duplicates("training_hash"), curves, chosen, flags, look)


def _figure(
    rows: pd.DataFrame, curves: Mapping[str, list[Validation]], chosen: Mapping[str, Any], flags: str, look: FigureStyle
) -> PaperFigure:  # fmt: skip
    told = {str(name): value for name, value in rows.iloc[0].items()}
    with look.styled():
        figure, panels = grid(look, 2, look.wide("double"), 1.5, [place_text(told)], aspect=0.6)
        for axes, (name, field) in zip(panels, _PANELS.items(), strict=True):
            for learner, part in rows.groupby("learner", sort=True):
                _line(axes, str(learner), [(curves[key], chosen[key]) for key in part["training_hash"]], field, look)
            axes.set_title(name)
            chance(axes, told["way"])
            axes.set_xlim(left=0)
            percents(axes)
        look.axis_labels(figure, "meta-steps", "accuracy (%)")
        look.legend(figure, {name: look.handle(name) for name in sorted(rows["learner"].unique())})
    seeds = int(rows.groupby("learner")["seed"].nunique().max())
    several = f" Thin: each of {seeds} seeds; thick: their mean." if seeds > 1 else ""
    caption = (
        f"Accuracy over meta-steps on {place_text(told)}: in meta-training of what each learner's objective judges, on "
        f"validation tasks of clean queries (with a training attack: the mean of clean and attacked ones).{several} "
        f"Markers: the weights that were kept. Dotted: chance."
        f"{flags}"
    )
    return PaperFigure("learning", {name: told[name] for name in _PLACE}, figure, "Accuracy over meta-steps", caption)


def _flags(rows: pd.DataFrame) -> str:
    each = rows["flags"].fillna("").str.split()
    told = []
    for flag in sorted({flag for flags in each for flag in flags}):
        has = each.map(lambda flags, flag=flag: flag in flags).astype(bool)
        told.append(f"{flag} ({meaning(flag)}): {'all' if has.all() else ', '.join(sorted(set(rows['learner'][has])))}")
    return f" Flagged among the test results of these weights: {'; '.join(told)}." if told else ""


def _line(
    axes: Axes, learner: str, seeds: list[tuple[list[Validation], Any]], field: str, look: FigureStyle
) -> None:  # fmt: skip
    """The seeds of a learner, and their mean where all were judged at the same steps."""
    style = look.palette[learner]
    several = len(seeds) > 1
    for history, kept in seeds:
        steps, values = [each.step for each in history], [100 * getattr(each, field) for each in history]
        axes.plot(
            steps, values, color=style.color, linestyle=style.line, linewidth=0.6 if several else None,
            alpha=0.5 if several else 1, label=None if several else learner,
        )  # fmt: skip
        if field.startswith("validation") and kept in steps:
            axes.plot(
                [kept], [values[steps.index(kept)]], color=style.color, marker=style.marker, markersize=4.5,
                markeredgecolor="white", markeredgewidth=0.5, linestyle="none", zorder=4,
            )  # fmt: skip
    if several and len({tuple(each.step for each in history) for history, _ in seeds}) == 1:
        means = 100 * np.mean([[getattr(each, field) for each in history] for history, _ in seeds], axis=0)
        axes.plot([each.step for each in seeds[0][0]], means, color=style.color, linestyle=style.line, label=learner)
