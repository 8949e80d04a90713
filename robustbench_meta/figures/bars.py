"""Scenarios as bars: a panel for each of clean and attacked support and query, a group an attack, a bar a learner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from robustbench_meta.boards import CLEAN, Board
from robustbench_meta.drawing import norm_name
from robustbench_meta.figures.drawn import Drawn, boards_told, place_told
from robustbench_meta.figures.look import GREY, Look, percents
from robustbench_meta.figures.panels import packed
from robustbench_meta.figures.settings import scenarios_of, shared_setting


def draw_scenarios(boards: Iterable[Board], look: Look) -> Iterator[Drawn]:
    """A figure for each setting, norm and ε that something was attacked in."""
    for group in scenarios_of(boards, attacked=True):
        yield _figure(group, look)


def _figure(group: list[Board], look: Look) -> Drawn:
    setting = group[0].setting
    threat = f"{norm_name(setting['threat_norm'])} ε = {setting['eps']}"
    learners = sorted({name for board in group for name in board.scores})
    whole = max(group, key=lambda board: len(board.scores))
    columns = 1 + sum(len(board.columns) - 1 for board in group)
    width = look.wide("single" if columns * len(learners) <= 14 else "double")
    most = max(2, int((width - 0.4) / (0.08 * max(len(learners), 4))))  # narrower bars are not seen
    pieces = [(whole, [CLEAN])]
    for board in group:
        pieces += [(board, board.columns[start : start + most]) for start in range(1, len(board.columns), most)]
    room = (width - 0.5) / min(most, columns) - 0.03
    below = max(look.below(shown, room) for _, shown in pieces)
    with look.styled():
        figure, panels = packed(
            look, [len(shown) for _, shown in pieces], most, width, 1.45 + below, [place_told(setting), threat]
        )
        for axes, (board, shown) in zip(panels, pieces, strict=True):
            _panel(axes, board, shown, learners, room, look)
            more = "" if shown[0] in {CLEAN, board.columns[1]} else " …"
            axes.set_title("no attack" if shown == [CLEAN] else look.scene(board.setting) + more)
        figure.supylabel("accuracy (%)", fontsize=look.font_size)
        look.legend(figure, {name: _patch(name, look) for name in learners})
    caption = (
        f"Accuracy by scenario ({threat}) on {place_told(setting)}. {boards_told(group, 'error bars')} Dotted: chance."
    )
    return Drawn("scenarios", shared_setting(group), figure, "Accuracy by scenario", caption)


def _panel(
    axes: Axes, board: Board, columns: list[str], learners: list[str], room: float, look: Look
) -> None:  # fmt: skip
    bar = 0.82 / len(learners)
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
    look.across(axes, range(len(columns)), columns, room)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.axhline(100 / board.setting["way"], color=GREY, linewidth=0.8, linestyle=":")
    percents(axes)


def _patch(name: str, look: Look) -> Any:
    return Patch(facecolor=look.palette[name].color, hatch=look.palette[name].hatch, edgecolor="white", linewidth=0)
