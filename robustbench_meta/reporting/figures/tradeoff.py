"""Clean against robust accuracy: a point a learner, a panel a scenario."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from robustbench_meta.reporting.figures.figure import (
    PaperFigure,
    boards_text,
    place_text,
    scenarios_of,
    scene_text,
    shared_setting,
)
from robustbench_meta.reporting.figures.layout import grid, room
from robustbench_meta.reporting.figures.style import FigureStyle, chance, faint_grid
from robustbench_meta.reporting.wording import sides, threat
from robustbench_meta.results.tables import CLEAN, WORST, LeaderboardTable, with_comparable_spreads

_LEAST = 2.0
"""Inches: the width that a panel needs."""


def draw_tradeoffs(boards: Iterable[LeaderboardTable], look: FigureStyle) -> Iterator[PaperFigure]:
    """A figure for each setting, norm and ε in which a learner has both numbers."""
    for group in scenarios_of(boards, attacked=True):
        told = [board for board in group if board.measured(board.columns[-1])]
        if told:
            yield _figure(told, look)


def _figure(group: list[LeaderboardTable], look: FigureStyle) -> PaperFigure:
    setting = group[0].setting
    shown = [
        board.scores[name][column] for board in group for name in board.measured(board.columns[-1])
        for column in (CLEAN, board.columns[-1])
    ]  # fmt: skip
    group = with_comparable_spreads(group, shown)
    lasts = list(dict.fromkeys(board.columns[-1] for board in group))
    width = look.wide("single" if len(group) == 1 else "double")
    titles = [look.fitted(_scene(board, told=len(lasts) > 1), room(len(group), width, _LEAST)) for board in group]
    lines = max(2, *(title.count("\n") + 1 for title in titles)) - 1 if len(group) > 1 else 1
    with look.styled():
        figure, panels = grid(
            look, len(group), width, _LEAST, [place_text(setting), threat(setting)], aspect=0.9, lines=lines
        )
        for axes, board, title in zip(panels, group, titles, strict=True):
            _panel(axes, board, look)
            if len(group) > 1:
                axes.set_title(title)
        _limits(panels, group)
        label = "robust" if len(lasts) > 1 else WORST if lasts == [WORST] else f"{look.shown(lasts[0])}:"
        look.axis_labels(figure, "clean accuracy (%)", f"{label} accuracy (%)")
        learners = sorted({name for board in group for name in board.measured(board.columns[-1])})
        look.legend(figure, {name: _handle(name, look) for name in learners})
    scene = f", {sides(setting)}" if len(group) == 1 else ""
    caption = (
        f"Accuracy without attack, and {_robust(lasts)} ({threat(setting)}{scene}), on {place_text(setting)}. "
        f"{boards_text(group, shown, 'error bars')} Grey: where an attack would take nothing."
    )
    return PaperFigure("tradeoff", shared_setting(group), figure, "Clean and robust accuracy", caption)


def _robust(lasts: list[str]) -> str:
    """What the robust accuracies of the panels are, by their boards' last columns, each told once."""
    if len(lasts) == 1:
        return "in the worst case" if lasts == [WORST] else f"under {lasts[0]}"
    if WORST not in lasts:
        return "under each scenario's only attack"
    alone = [name for name in lasts if name != WORST]
    named = f", {alone[0]}," if len(alone) == 1 else ""
    return f"in the worst case, or under the only attack{named} where a scenario has one"


def _scene(board: LeaderboardTable, *, told: bool) -> str:
    last = board.columns[-1]
    return scene_text(board.setting) + (f"\n({last if last == WORST else f'under {last}'})" if told else "")


def _panel(axes: Axes, board: LeaderboardTable, look: FigureStyle) -> None:
    for name in board.measured(board.columns[-1]):
        style = look.palette[name]
        clean, robust = board.scores[name][CLEAN], board.scores[name][board.columns[-1]]
        bars = [board.spread(score) for score in (clean, robust)]
        axes.errorbar(
            clean.mean, robust.mean, xerr=bars[0], yerr=bars[1], color=style.color, marker=style.marker, markersize=5,
            linestyle="none", elinewidth=0.9, label=name, zorder=3, clip_on=False,
        )  # fmt: skip
    axes.axline((0, 0), slope=1, color="#bbbbbb", linewidth=0.8)
    chance(axes, board.setting["way"])
    faint_grid(axes)


def _limits(panels: list[Axes], group: list[LeaderboardTable]) -> None:
    """The same for all panels: accuracies from 0 on, and all clean ones."""
    ends: tuple[list[float], list[float]] = [], []
    for board in group:
        for name in board.measured(board.columns[-1]):
            for values, column in zip(ends, (CLEAN, board.columns[-1]), strict=True):
                score = board.scores[name][column]
                bar = board.spread(score)
                values.extend([score.mean] if math.isnan(bar) else [score.mean - bar, score.mean + bar])
    low = max(0, 10 * math.floor((min(ends[0]) - 2) / 10))
    for axes in panels:
        axes.set_xlim(low, min(100, 10 * math.ceil((max(ends[0]) + 2) / 10)))
        axes.set_ylim(0, min(100, 10 * math.ceil((max(ends[1]) + 2) / 10)))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _handle(name: str, look: FigureStyle) -> Line2D:
    handle = look.handle(name)
    handle.set(linestyle="none", markersize=5)
    return handle
