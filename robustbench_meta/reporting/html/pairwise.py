"""Learners in pairs: for each two, how far one is ahead under each threat, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from robustbench_meta.reporting.terminal.layout import sides, threat
from robustbench_meta.results.pairwise import Comparison, PairedTest, tests_text
from robustbench_meta.results.tables import PLACE, shown

MOST = 1500
"""Contrasts that the page has room for; of more, only those of the columns that learners are ranked by."""
WIDTH = 190.0
"""Of the little chart in each row."""


class ComparisonRow(NamedTuple):
    """One contrast as a row."""

    scene: str
    column: str
    a: str
    b: str
    difference: str
    points: float
    half: float
    p: str
    seeds_p: str
    ahead: str
    x: float
    low: float
    high: float


@dataclass(frozen=True)
class LearnerPair:
    """Two learners of one place."""

    told: dict[str, Any]
    a: str
    b: str
    rows: list[ComparisonRow]
    won: tuple[int, int, int]
    """How often A is ahead, B is, and neither."""
    reach: float
    """The points at either end of the charts."""
    zero: float


class PairwiseSection(NamedTuple):
    """All matches, and what they rest on."""

    learner_pairs: list[LearnerPair]
    contrasts: int
    tests: str
    """The comparisons for which p is corrected, in words."""
    shown: int
    luck: bool
    """Whether seeds were tested as well."""
    alone: bool
    """Whether some contrast rests on a single training."""


def pairwise_section(comparisons: Sequence[Comparison]) -> PairwiseSection:
    """The matches, in the order in which `bench compare` prints them."""
    contrasts = [contrast for pair in comparisons for contrast in pair.contrasts.values()]
    whole = len(contrasts) <= MOST
    pairs: dict[tuple[Any, ...], list[Comparison]] = {}
    for pair in comparisons:
        pairs.setdefault((*(pair.setting[name] for name in PLACE), pair.first, pair.second), []).append(pair)
    learner_pairs = [_pair(group, whole) for group in pairs.values()]
    return PairwiseSection(
        learner_pairs, len(contrasts), tests_text(comparisons), sum(len(learners.rows) for learners in learner_pairs),
        any(not math.isnan(contrast.seeds_p) for contrast in contrasts),
        any(1 in {len(contrast.first.by_seed), len(contrast.second.by_seed)} for contrast in contrasts),
    )  # fmt: skip


def _pair(group: list[Comparison], whole: bool) -> LearnerPair:
    chosen = [
        (pair, column, contrast) for pair in group for column, contrast in pair.contrasts.items()
        if whole or column == list(pair.contrasts)[-1]
    ]  # fmt: skip
    ends = [
        abs(contrast.paired.difference) + (0 if math.isnan(contrast.paired.ci95) else contrast.paired.ci95)
        for _, _, contrast in chosen
    ]
    reach = max(1.0, math.ceil(100 * max(ends)))
    ahead = [contrast.ahead for _, _, contrast in chosen]
    return LearnerPair(
        dict(group[0].setting), group[0].first, group[0].second, [_bout(*each, reach) for each in chosen],
        (ahead.count(1), ahead.count(-1), ahead.count(0)), reach, _across(0, reach),
    )  # fmt: skip


def _bout(pair: Comparison, column: str, contrast: PairedTest, reach: float) -> ComparisonRow:
    setting = pair.setting
    points, half = 100 * contrast.paired.difference, 100 * contrast.paired.ci95
    known = 0.0 if math.isnan(half) else half
    first, second = pair.scores[column]
    return ComparisonRow(
        "no attack" if setting["threat_norm"] == "none" else f"{threat(setting)}, {sides(setting)}", column,
        first.text() + _mark(pair, first.flags), second.text() + _mark(pair, second.flags),
        _signed(points) + ("" if math.isnan(half) else f" ±{shown(half)}"), round(points, 4), round(known, 4),
        _p(contrast.corrected), _p(contrast.seeds_p), {1: pair.first, -1: pair.second, 0: ""}[contrast.ahead],
        *(_across(each, reach) for each in (points, points - known, points + known)),
    )  # fmt: skip


def _across(points: float, reach: float) -> float:
    """Where a difference stands in the little chart, to a tenth of a unit."""
    return round(WIDTH / 2 + points / reach * (WIDTH / 2 - 6), 1)


def _mark(pair: Comparison, flags: frozenset[str]) -> str:
    return "!" if flags - pair.board.shared else ""


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−") if abs(points) >= 0.05 else "0.0"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
