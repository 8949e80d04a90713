"""Curves over ε for a terminal: a table for each setting, threat and list of ε, a row a learner and attack."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from robustbench_meta.reporting.terminal.layout import draw_table, folded, portions, title
from robustbench_meta.results.curves import Curve, grouped, over_seeds
from robustbench_meta.results.tables import shown


def curve_tables(found: Sequence[Curve], width: int = 80) -> list[RenderableType]:
    """Tables of accuracies by ε, and of the area under them, that fit `width` columns."""
    return [_drawn(group, width) for group in grouped(found)]


def _drawn(group: list[Curve], width: int) -> RenderableType:
    rows: dict[str, list[Curve]] = {}
    for curve in group:
        rows.setdefault(f"{curve.learner} under {curve.attack}", []).append(curve)
    places = {
        "learner": {row: folded(curves[0].learner, max(16, width // 4)) for row, curves in rows.items()},
        "attack": {row: folded(curves[0].attack, max(12, width // 5)) for row, curves in rows.items()},
    }
    seeds = max(map(len, rows.values()))
    means = {row: over_seeds(curves, seeds)[0] for row, curves in rows.items()}
    cells = {
        f"ε = {eps}": {row: Text(shown(means[row][point])) for row in rows} for point, eps in enumerate(group[0].eps)
    }
    cells["area"] = {row: _area(curves, seeds) for row, curves in rows.items()}
    parts: list[RenderableType] = [Text(line, style="bold") for line in title(group[0].told)]
    for chunk in portions(places, cells, width):
        parts += [draw_table(places, {column: cells[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_caption(group[0], seeds), style="dim"), Text(""))


def _area(curves: list[Curve], seeds: int) -> Text:
    """`57.1 ±1.9`; `*` where seeds are missing, whose spread is then not comparable."""
    means, spreads = over_seeds(curves, seeds)
    text = Text(shown(means[-1]))
    text.append("" if math.isnan(spreads[-1]) else f" ±{shown(spreads[-1])}", style="dim")
    return text.append("*" if len(curves) < seeds else "", style="yellow")


def _caption(curve: Curve, seeds: int) -> str:
    episodes = f"{curve.episodes.shape[1]:,} episodes"
    lines = [
        f"Accuracy in % at each ε (0: without attack). Area: under the curve, over {curve.eps[-1]}: the mean over ε;"
    ]
    lines.append(
        f"± half of the 95 % interval over {episodes}." if seeds == 1 else
        f"± standard deviation of {seeds} seeds ({episodes} each); * rests on fewer seeds."
    )  # fmt: skip
    return " ".join(lines)
