"""Accuracy over ε: the figures, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from robustbench_meta.reporting.figures.curves import draw_curves
from robustbench_meta.reporting.html.embedded_figures import Drawings
from robustbench_meta.reporting.terminal.layout import norm_name, sides
from robustbench_meta.results.curves import Curve, grouped, over_seeds
from robustbench_meta.results.tables import shown


@dataclass(frozen=True)
class Sweep:
    """The curves of one setting and scenario at the same ε."""

    told: dict[str, Any]
    heading: str
    figures: list[Markup]
    eps: list[str]
    rows: list[tuple[str, str, list[str], str]]
    """Learner, attack, accuracy at each ε, area."""
    spread: str
    """What bands and ± are."""


def sweeps(found: Sequence[Curve], frame: pd.DataFrame, drawings: Drawings) -> Iterator[Sweep]:
    """All curves of a leaderboard's rows, those together that share a table of it but for ε."""
    for group in grouped(found):
        yield _sweep(group, frame, drawings)


def _sweep(group: list[Curve], frame: pd.DataFrame, drawings: Drawings) -> Sweep:
    lines: dict[tuple[str, str], list[Curve]] = {}
    for curve in group:
        lines.setdefault((curve.learner, curve.attack), []).append(curve)
    told = dict(group[0].told)
    seeds = max(map(len, lines.values()))
    episodes = group[0].episodes.shape[1]
    spread = f"95 % intervals over {episodes:,} episodes"
    if seeds > 1:
        spread = f"standard deviation of {seeds} seeds ({episodes:,} episodes each); * rests on fewer seeds"
    heading = f"{norm_name(told['threat_norm'])} over ε · {sides(told)}"
    return Sweep(
        told, heading, [drawings.embed(each) for each in draw_curves(group, frame, drawings.look)], list(group[0].eps),
        [(learner, attack, *_numbers(curves, seeds)) for (learner, attack), curves in lines.items()], spread,
    )  # fmt: skip


def _numbers(curves: list[Curve], seeds: int) -> tuple[list[str], str]:
    """What stands in the table: the accuracies, and the area with its spread."""
    *cells, area = [
        shown(mean) + ("" if math.isnan(half) else f" ±{shown(half)}")
        for mean, half in zip(*over_seeds(curves, seeds), strict=True)
    ]
    return cells, area + ("*" if len(curves) < seeds else "")
