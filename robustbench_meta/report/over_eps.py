"""Accuracy over ε: a panel an attack, a line a learner, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_meta.boards import shown
from robustbench_meta.curves import Curve, grouped, over_seeds
from robustbench_meta.drawing import norm_name, sides
from robustbench_meta.report.charts import PERCENTS, Line, Palette, Panel, Scale, Tick, outline, thinned

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320.0, 214.0, 34.0, 308.0, 10.0, 172.0


@dataclass(frozen=True)
class Sweep:
    """The curves of one setting and scenario at the same ε."""

    told: dict[str, Any]
    heading: str
    panels: list[Panel]
    eps: list[str]
    rows: list[tuple[str, str, list[str], str]]
    """Learner, attack, accuracy at each ε, area."""
    spread: str
    """What bands and ± are."""
    learners: list[str]


def sweeps(found: Sequence[Curve], palette: Palette) -> Iterator[Sweep]:
    """All curves, those together that share a table of the leaderboard but for ε."""
    for group in grouped(found):
        yield _sweep(group, palette)


def _sweep(group: list[Curve], palette: Palette) -> Sweep:
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
    attacks = list(dict.fromkeys(attack for _, attack in lines))
    return Sweep(
        told, heading, [_panel(attack, lines, seeds, heading, palette) for attack in attacks], list(group[0].eps),
        [(learner, attack, *_numbers(curves, seeds)) for (learner, attack), curves in lines.items()], spread,
        sorted({learner for learner, _ in lines}),
    )  # fmt: skip


def _panel(
    attack: str, lines: dict[tuple[str, str], list[Curve]], seeds: int, heading: str, palette: Palette
) -> Panel:  # fmt: skip
    mine = {learner: curves for (learner, other), curves in lines.items() if other == attack}
    first = next(iter(mine.values()))[0]
    across, up = Scale(0.0, float(first.values[-1]), _LEFT, _RIGHT), Scale(0.0, 100.0, _BOTTOM, _TOP)
    drawn = []
    for learner in sorted(mine):
        means, spread = (numbers[:-1] for numbers in over_seeds(mine[learner], seeds))
        points = [(across(x), up(y)) for x, y in zip(first.values, means, strict=True)]
        band = outline(first.values.tolist(), means.tolist(), spread.tolist(), across, up)
        drawn.append(Line(learner, palette[learner], points, band, points))
    ticks = [Tick(across(float(value)), eps) for value, eps in zip(first.values, first.eps, strict=True)]
    return Panel(
        title=attack,
        told=f"Accuracy over ε from 0 to {first.eps[-1]} under {attack}; {heading}. A line each for {', '.join(mine)}. "
        "The numbers stand in the table below.",
        width=_WIDTH, height=_HEIGHT, left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM,
        x_ticks=thinned(ticks, 6), y_ticks=[Tick(up(value), label) for value, label in PERCENTS], x_label="ε",
        lines=drawn, rule=up(100 / first.told["way"]),
    )  # fmt: skip


def _numbers(curves: list[Curve], seeds: int) -> tuple[list[str], str]:
    """What stands in the table: the accuracies, and the area with its spread."""
    *cells, area = [
        shown(mean) + ("" if math.isnan(half) else f" ±{shown(half)}")
        for mean, half in zip(*over_seeds(curves, seeds), strict=True)
    ]
    return cells, area + ("*" if len(curves) < seeds else "")
