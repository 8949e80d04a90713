"""Heat maps: learner × attack, a panel a scenario, every number written in its cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize

from robustbench_meta.reporting.figures.figure import PaperFigure, boards_text, place_text, scenarios_of, shared_setting
from robustbench_meta.reporting.figures.style import FigureStyle
from robustbench_meta.reporting.wording import sides, threat
from robustbench_meta.results.tables import (
    CLEAN,
    WORST,
    LeaderboardTable,
    Score,
    all_scores,
    shown,
    with_comparable_spreads,
)

_COLORS = "cividis"
"""Made for colour-blind readers: Nuñez, Anderton and Renslow (2018)."""


def draw_heatmaps(boards: Iterable[LeaderboardTable], look: FigureStyle) -> Iterator[PaperFigure]:
    """A figure for each setting, norm and ε that something was attacked in."""
    for group in scenarios_of(boards, attacked=True):
        yield from _figures(group, look)


def _figures(group: list[LeaderboardTable], look: FigureStyle) -> Iterator[PaperFigure]:
    columns = max(len(board.columns) for board in group)
    names = max(look.inches(min(len(name), 26)) for board in group for name in board.scores)
    wide = look.wide("single" if columns <= 4 and names < 1.2 else "double")
    turned = (wide - names - 0.7) / columns < look.inches(4, look.small) * 1.1
    unit = 0.17 if turned else 0.3
    left = [name for board in group for name in (board.columns if turned else board.scores)]
    room = max(1.0, wide - max(look.inches(min(len(name), 26), look.small) for name in left) - 0.6)
    titles = [look.fitted(sides(board.setting), room) for board in group]
    heights = [
        unit * len(board.columns if turned else board.scores) + 0.3 + look.high(title.count("\n"))
        for board, title in zip(group, titles, strict=True)
    ]
    parts = list(_parts(heights))
    for number, (start, part) in enumerate(parts, start=1):
        end = start + len(part)
        drawn = _figure(group[start:end], titles[start:end], wide, part, turned, look)
        yield replace(drawn, setting={**drawn.setting, "part": number}) if len(parts) > 1 else drawn


def _parts(heights: list[float]) -> Iterator[tuple[int, list[float]]]:
    start = 0
    while start < len(heights):
        end = start + 1
        while end < len(heights) and sum(heights[start : end + 1]) < 7.5:
            end += 1
        yield start, heights[start:end]
        start = end


def _figure(
    group: list[LeaderboardTable], titles: list[str], width: float, heights: list[float], turned: bool,
    look: FigureStyle,
) -> PaperFigure:  # fmt: skip
    group, setting = with_comparable_spreads(group, all_scores(group)), group[0].setting
    with look.styled():
        same = len({tuple(board.columns) for board in group}) == 1 and (
            not turned or len({frozenset(board.scores) for board in group}) == 1
        )
        room = (width - 1.6) / max(len(board.scores if turned else board.columns) for board in group)
        below = max(look.below(list(board.scores) if turned else board.columns, room) for board in group)
        labels = below * (1 if same else len(group)) + 0.1
        figure = look.figure(width, sum(heights) + labels, [place_text(setting), threat(setting)])
        panels = figure.subplots(len(group), 1, height_ratios=heights, squeeze=False)[:, 0]
        order = list(max(group, key=lambda board: len(board.scores)).scores)
        for axes, board, title in zip(panels, group, titles, strict=True):
            mesh = _panel(axes, board, [name for name in order if name in board.scores], turned, room, look)
            if same and axes is not panels[-1]:
                axes.set_xticklabels([])
            axes.set_title(title, loc="left")
        bar = figure.colorbar(
            mesh, ax=list(panels), fraction=0.05, pad=0.015, aspect=sum(heights) / 0.09, ticks=[0, 50, 100]
        )
        bar.outline.set_visible(False)
        bar.set_label("accuracy (%)")
    scene = f", {sides(setting)}" if len(group) == 1 else ""
    caption = (
        f"Accuracy in % by learner and attack ({threat(setting)}{scene}) on {place_text(setting)}. "
        f"{boards_text(group, all_scores(group), '±', mark='! ')}"
    )
    if any(board.doubts() for board in group):
        caption += " In the figure, ! marks the numbers that are in doubt."
    return PaperFigure("heatmap", shared_setting(group), figure, "Accuracy by learner and attack", caption)


def _panel(
    axes: Axes, board: LeaderboardTable, learners: list[str], turned: bool, room: float, look: FigureStyle
) -> QuadMesh:
    columns = board.columns
    values = np.array([[board.scores[name][column].mean for column in columns] for name in learners])
    across, down = (learners, columns) if turned else (columns, learners)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values.T if turned else values), cmap=_COLORS, vmin=0, vmax=100, edgecolors="white",
        linewidth=0.8,
    )  # fmt: skip
    axes.invert_yaxis()
    look.across(axes, np.arange(len(across)) + 0.5, across, room)
    axes.set_yticks(np.arange(len(down)) + 0.5, [look.shown(name, 26) for name in down])
    for place in [1] * (columns[0] == CLEAN and len(columns) > 1) + [len(columns) - 1] * (columns[-1] == WORST):
        (axes.axhline if turned else axes.axvline)(place, color="white", linewidth=4)
    tall = not turned and room > look.inches(5, look.small - 1)
    for row, name in enumerate(learners):
        for column, told in enumerate(columns):
            x, y = (row + 0.5, column + 0.5) if turned else (column + 0.5, row + 0.5)
            text = _cell(board.scores[name][told], board, tall)
            axes.text(x, y, text, ha="center", va="center", color=ink(values[row, column]), fontsize=look.small - 1,
                      linespacing=1.0)  # fmt: skip
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def _cell(score: Score, board: LeaderboardTable, tall: bool) -> str:
    mark = "!" if score.flags - board.shared else ""
    own = board.spread(score)
    return f"{score.text()}{mark}" + (f"\n±{shown(own)}" if tall and not math.isnan(own) else "")


def ink(value: float) -> str:
    """Black or white, whichever has more contrast with a cell's colour, as WCAG 2 defines it: 4.5 or more for any."""
    if math.isnan(value):
        return "black"
    shares = mpl.colormaps[_COLORS](Normalize(0, 100)(value))[:3]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"
