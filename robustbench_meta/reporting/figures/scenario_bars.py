"""Scenarios as bars: a panel for each of clean and attacked support and query, a group an attack, a bar a learner."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from robustbench_meta.reporting.figures.figure import PaperFigure, boards_text, place_text, scenarios_of, shared_setting
from robustbench_meta.reporting.figures.layout import packed
from robustbench_meta.reporting.figures.scenes import Piece, ScenarioLayout, planned
from robustbench_meta.reporting.figures.sizes import TALLEST
from robustbench_meta.reporting.figures.style import FigureStyle, chance, percents
from robustbench_meta.reporting.wording import threat
from robustbench_meta.results.tables import LeaderboardTable, all_scores, with_comparable_spreads

_SPARE = 0.5
"""Inches by which rows may be lower where they then fit a page."""
_REACH = 0.1
"""Inches that an attack's name may reach beyond its panel."""


def draw_scenarios(boards: Iterable[LeaderboardTable], look: FigureStyle) -> Iterator[PaperFigure]:
    """A figure for each setting, norm and ε that something was attacked in."""
    for group in scenarios_of(boards, attacked=True):
        yield from _figures(group, look)


def _figures(group: list[LeaderboardTable], look: FigureStyle) -> Iterator[PaperFigure]:
    """One, or several where the rows of panels are more than a page holds."""
    shown = all_scores(group)
    group, setting = with_comparable_spreads(group, shown), group[0].setting
    learners = sorted({name for board in group for name in board.scores})
    plan = planned(group, len(learners), look)
    caption = (
        f"Accuracy by scenario ({threat(setting)}) on {place_text(setting)}. {boards_text(group, shown, 'error bars')} "
        "Dotted: chance."
    )
    below = max(look.below(piece.columns, plan.room, _REACH) for piece in plan.pieces)
    lines = max(title.count("\n") + 1 for title in plan.titles)
    height = 1.45 + below + look.high(max(0, lines - 2))
    parts = math.ceil(len(plan.rows) / max(1, int((TALLEST - 0.8) / (height - _SPARE))))
    rows = math.ceil(len(plan.rows) / parts)
    for number, start in enumerate(range(0, len(plan.rows), rows), start=1):
        part = plan.part(start, start + rows)
        figure = _figure(part, height, learners, [place_text(setting), threat(setting)], look)
        told = shared_setting(group) | ({"part": number} if parts > 1 else {})
        yield PaperFigure("scenarios", told, figure, "Accuracy by scenario", caption)


def _figure(plan: ScenarioLayout, height: float, learners: list[str], title: list[str], look: FigureStyle) -> Figure:
    with look.styled():
        figure, panels = packed(look, plan.rows, plan.across, plan.width, height, title)
        sizes = [size for row in plan.rows for size in row]
        for axes, piece, name, size in zip(panels, plan.pieces, plan.titles, sizes, strict=True):
            _panel(axes, piece, size, learners, plan.room, look)
            axes.set_title(name)
        look.axis_labels(figure, "", "accuracy (%)")
        look.legend(figure, {name: _patch(name, look) for name in learners})
    return figure


def _panel(axes: Axes, piece: Piece, size: int, learners: list[str], room: float, look: FigureStyle) -> None:
    board, columns, bar = piece.board, piece.columns, 0.82 / len(learners)
    for place, name in enumerate(learners):
        row: dict[str, Any] = board.scores.get(name, {})
        found = [(x, row[column]) for x, column in enumerate(columns) if column in row]
        spreads = np.array([board.spread(score) for _, score in found])
        means = np.array([score.mean for _, score in found])
        x = np.array([x for x, _ in found]) + (place - (len(learners) - 1) / 2) * bar
        style = look.palette[name]
        axes.bar(x, means, bar * 0.92, color=style.color, label=name, linewidth=0, hatch=style.hatch, edgecolor="white")
        axes.errorbar(
            x, means, [np.minimum(spreads, means), np.minimum(spreads, 100 - means)], fmt="none", ecolor="#222222",
            elinewidth=0.8, capsize=min(2.0, 20 * bar),
        )  # fmt: skip
    look.across(axes, range(len(columns)), columns, room, _REACH)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim((len(columns) - 1 - size) / 2, (len(columns) - 1 + size) / 2)
    chance(axes, board.setting["way"])
    percents(axes)


def _patch(name: str, look: FigureStyle) -> Any:
    return Patch(facecolor=look.palette[name].color, hatch=look.palette[name].hatch, edgecolor="white", linewidth=0)
