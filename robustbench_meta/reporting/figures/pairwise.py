"""Two learners on the same episodes: how far one is ahead, with intervals, a panel a scenario."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from robustbench_meta.reporting.figures.figure import PaperFigure, at_zero, by_scenario, place_text, scenario_place
from robustbench_meta.reporting.figures.style import GREY, FigureStyle, faint_grid
from robustbench_meta.reporting.wording import flags_text, sides, threat
from robustbench_meta.results.pairwise import Comparison, tests_text
from robustbench_meta.results.tables import SETTING, WORST

_ROW = 0.2
"""Inches."""


def draw_comparisons(found: Sequence[Comparison], look: FigureStyle, *, zero: bool = True) -> Iterator[PaperFigure]:
    """A figure for each two learners, setting, norm and ε; the difference without attack stands above.

    Attacks at ε = 0 are drawn if `zero`.
    """
    comparisons = tests_text(found)
    pairs: dict[tuple[Any, ...], list[Comparison]] = {}
    for pair in found:
        pairs.setdefault((*(pair.setting[name] for name in SETTING), pair.first, pair.second), []).append(pair)
    for group in pairs.values():
        clean = [pair for pair in group if pair.setting["threat_norm"] == "none"]
        threats: dict[tuple[str, str], list[Comparison]] = {}
        for pair in group:
            if pair not in clean and (zero or not at_zero(pair.setting)):
                threats.setdefault((pair.setting["threat_norm"], pair.setting["eps"]), []).append(pair)
        for part in threats.values() or [[]]:
            yield _figure([*clean, *sorted(part, key=lambda pair: scenario_place(pair.setting))], comparisons, look)


def _figure(group: list[Comparison], comparisons: str, look: FigureStyle) -> PaperFigure:
    last = group[-1]
    attacked = [pair for pair in group if pair.setting["threat_norm"] != "none"]
    width = look.wide("single")
    labels = {column: look.fitted(column, 0.4 * width) for pair in group for column in pair.contrasts}
    row = max(_ROW, look.high(max(label.count("\n") + 1 for label in labels.values())))
    heights = [row * len(pair.contrasts) + 0.08 for pair in group]
    room = width - max(map(look.breadth, labels.values())) - 0.15
    titles = ["no attack" if pair not in attacked else look.fitted(sides(pair.setting), room) for pair in group]
    high = sum(0.22 + look.high(title.count("\n")) for title in titles) if attacked else 0
    ahead = f"◂ {look.shown(last.second, 18)} ahead    points    {look.shown(last.first, 18)} ahead ▸"
    with look.styled():
        figure = look.figure(width, sum(heights) + high + 0.85, [place_text(last.setting), threat(last.setting)])
        panels = figure.subplots(len(group), 1, height_ratios=heights, sharex=True, squeeze=False)[:, 0]
        for axes, pair, title in zip(panels, group, titles, strict=True):
            _panel(axes, pair, [labels[column] for column in pair.contrasts], look)
            if attacked:
                axes.set_title(title, loc="left")
        _limits(panels[-1], group)
        if "\n" not in ahead and look.breadth(ahead) <= room:
            panels[-1].set_xlabel(ahead)
        else:
            look.axis_labels(figure, "difference in points, first − second", "")
    return PaperFigure(
        "compare", {**last.setting, "first": last.first, "second": last.second} | _scene(attacked), figure,
        f"{last.first} against {last.second}", _caption(group, comparisons),
    )  # fmt: skip


def _scene(attacked: list[Comparison]) -> dict[str, Any]:
    return dict.fromkeys(("support", "query", "surrogate"), "") if len(attacked) > 1 else {}


def _panel(axes: Axes, pair: Comparison, labels: list[str], look: FigureStyle) -> None:
    color = look.palette[pair.first].color, look.palette[pair.second].color
    axes.axvline(0, color=GREY, linewidth=0.8)
    for place, contrast in enumerate(pair.contrasts.values()):
        points, half = 100 * contrast.paired.difference, 100 * contrast.paired.ci95
        ink = GREY if not contrast.ahead else color[0] if contrast.ahead > 0 else color[1]
        axes.errorbar(
            points, place, xerr=half, color=ink, marker="o", markersize=4, capsize=2, elinewidth=1.1,
            markerfacecolor=ink if contrast.ahead else "white",
        )  # fmt: skip
    axes.set_yticks(range(len(pair.contrasts)), labels)
    axes.set_ylim(len(pair.contrasts) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    faint_grid(axes, "x")


def _limits(axes: Axes, group: list[Comparison]) -> None:
    """Zero in the middle, and all intervals inside."""
    contrasts = [contrast.paired for pair in group for contrast in pair.contrasts.values()]
    reach = max(abs(each.difference) + (0 if math.isnan(each.ci95) else each.ci95) for each in contrasts)
    most = 100 * float(np.maximum(reach, 0.005)) * 1.08
    axes.set_xlim(-most, most)


def _caption(group: list[Comparison], comparisons: str) -> str:
    last = group[-1]
    contrasts = [contrast for pair in group for contrast in pair.contrasts.values()]
    counts = {len(sample.by_seed) for each in contrasts for sample in (each.first, each.second)}
    seeds = max(counts)
    scene = f", {sides(last.setting)}" if len(group) <= 2 and last.setting["threat_norm"] != "none" else ""
    lines = [
        f"Difference in accuracy, {last.first} − {last.second}, in points ({threat(last.setting)}{scene}) on "
        f"{place_text(last.setting)}.",
        f"Mean over the same {last.setting['episodes']:,} test episodes"
        + (f", each over {seeds} seeds{' (some over fewer)' if len(counts) > 1 else ''}" if seeds > 1 else "")
        + "; bars: 95 % intervals.",
        f"Filled: told apart at 5 % (paired t-test over episodes, Holm's correction for {comparisons}"
        + (", and Welch's test over seeds); hollow: not." if seeds > 1 else "); hollow: not."),
    ]
    if any(WORST in pair.contrasts for pair in group):
        lines.append("Worst case: under every attack that the two were under.")
    if 1 in counts:
        trained = "One training each" if seeds == 1 else "Where there is one training"
        lines.append(f"{trained}: its luck is not in the intervals.")
    boards = [pair.board for pair in group]
    flagged = [board for board in boards if board.shared or board.doubts() or board.setting["threat_norm"] != "none"]
    return " ".join([*lines, *flags_text(by_scenario(flagged))])
