"""Accuracy over ε: a figure a setting and scenario, a panel an attack, a line a learner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from robustbench_meta.reporting.figures.figure import PaperFigure, place_text
from robustbench_meta.reporting.figures.layout import grid, room
from robustbench_meta.reporting.figures.style import FigureStyle, chance, percents
from robustbench_meta.reporting.wording import (
    flags_text,
    meaning_at_zero,
    norm_name,
    sides,
    size_axis,
    size_name,
    size_shown,
    spread_text,
    title,
)
from robustbench_meta.results.curves import SCENE, Curve, grouped, over_seeds
from robustbench_meta.results.tables import SETTING, LeaderboardTable, scores_of

_MOST = 12
"""Panels in a figure."""


def draw_curves(found: Sequence[Curve], frame: pd.DataFrame, look: FigureStyle) -> Iterator[PaperFigure]:
    """The figures of these curves, of a leaderboard's rows: those that share a table share a figure."""
    rows = frame.drop_duplicates("spec_hash").set_index("spec_hash", drop=False)
    for group in grouped(found):
        attacks = list(dict.fromkeys(curve.attack for curve in group))
        for start in range(0, len(attacks), _MOST):
            part = start // _MOST + 1 if len(attacks) > _MOST else 0
            yield _figure(group, attacks[start : start + _MOST], rows, look, part)


def _figure(group: list[Curve], attacks: list[str], rows: pd.DataFrame, look: FigureStyle, part: int) -> PaperFigure:
    told = group[0].told
    width = look.wide("single" if len(attacks) == 1 else "double")
    lines_ = [(curve.learner, curve.attack) for curve in group]
    seeds = [lines_.count(line) for line in lines_]
    with look.styled():
        titles = [look.fitted(attack, room(len(attacks), width, 1.75)) for attack in attacks]
        lines = max(name.count("\n") + 1 for name in titles)
        figure, panels = grid(look, len(attacks), width, 1.75, title(told), lines=lines)
        for axes, attack, name in zip(panels, attacks, titles, strict=True):
            _panel(axes, [curve for curve in group if curve.attack == attack], look, most=max(seeds))
            if len(attacks) > 1:
                axes.set_title(name)
        look.axis_labels(figure, size_axis(told["threat_norm"]), "accuracy (%)")
        look.legend(figure, {name: look.handle(name) for name in sorted({curve.learner for curve in group})})
    under = f" under {attacks[0]}" if len(attacks) == 1 else ""
    heading = f"Accuracy over {size_name(told['threat_norm'])}"
    scene = f"{norm_name(told['threat_norm'])}, {sides(told)}"
    told_flags = flags_text(_points([curve for curve in group if curve.attack in attacks], rows))
    caption = " ".join([
        f"{heading}{under} ({scene}; at 0: {meaning_at_zero(told)}) on {place_text(told)}.",
        spread_text("bands", seeds, group[0].episodes.shape[1]), *told_flags, "Dotted: chance.",
    ])  # fmt: skip
    setting = {name: told[name] for name in [*SETTING, *SCENE]} | {"eps": f"0-{group[0].eps[-1]}-{len(group[0].eps)}"}
    return PaperFigure("curves", setting | ({"part": part} if part else {}), figure, heading, caption)


def _points(group: list[Curve], rows: pd.DataFrame) -> dict[str, LeaderboardTable]:
    """What curves show at each ε that was run, as a table would have it."""
    found = {}
    attacks = list(dict.fromkeys(curve.attack for curve in group))
    for point, eps in enumerate(group[0].eps):
        run = [curve for curve in group if curve.keys[point] not in curve.keys[point + 1 :]]
        if run:  # else it is the accuracy without attack, of the record of the next ε
            part = rows.loc[[curve.keys[point] for curve in run]].assign(
                learner=[curve.learner for curve in run], attack=[curve.attack for curve in run]
            )
            scores = {str(name): scores_of(mine, attacks) for name, mine in part.groupby("learner", sort=True)}
            found[size_shown(group[0].told["threat_norm"], eps)] = LeaderboardTable(
                {str(name): value for name, value in part.iloc[0].items()}, attacks, scores, {}
            )
    return found


def _panel(axes: Axes, group: list[Curve], look: FigureStyle, *, most: int) -> None:
    """The learners under one attack: the mean over seeds, in a band of the interval, or of the seeds' spread.

    A curve of one seed has no band where others of the figure, in any panel, have several: `most` of them.
    """
    for learner in sorted({curve.learner for curve in group}):
        mine = [curve for curve in group if curve.learner == learner]
        means, spread = (numbers[:-1] for numbers in over_seeds(mine, most))
        style = look.palette[learner]
        axes.plot(
            mine[0].values, means, color=style.color, marker=style.marker, linestyle=style.line, label=learner,
            clip_on=False, zorder=3,
        )  # fmt: skip
        if not np.isnan(spread).any():
            axes.fill_between(
                mine[0].values, np.clip(means - spread, 0, 100), np.clip(means + spread, 0, 100), color=style.color,
                alpha=0.18, linewidth=0,
            )  # fmt: skip
    chance(axes, group[0].told["way"])
    axes.set_xlim(0, group[0].values[-1])
    exact = group[0].told["threat_norm"] == "severity" or all("/" in text for text in group[0].eps[1:])
    if exact and len(group[0].eps) <= 6:
        axes.set_xticks(group[0].values, group[0].eps)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    percents(axes)
