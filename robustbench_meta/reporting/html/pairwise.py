"""Learners in pairs: for each two, how far one is ahead under each threat, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from robustbench_meta.reporting.table import TableCell, comparison_table
from robustbench_meta.reporting.wording import sides, threat
from robustbench_meta.results.pairwise import Comparison, PairedTest, tests_text
from robustbench_meta.results.tables import SETTING

MOST = 1500
"""Comparisons that the page has room for; of more, only those of the columns that learners are ranked by."""
WIDTH = 190.0
"""Of the little chart in each row."""


class ComparisonRow(NamedTuple):
    """One column of a table: its cells, and the ends and middle of the interval in the chart."""

    scene: str
    column: str
    cells: dict[str, TableCell]
    low: float
    middle: float
    high: float


class LearnerPair(NamedTuple):
    """Two learners of one place."""

    setting: Mapping[str, Any]
    first: str
    second: str
    rows: list[ComparisonRow]
    won: tuple[int, int, int]
    """How often the first is ahead, the second is, and neither."""
    reach: int
    """The points at either end of the charts."""


class PairwiseSection(NamedTuple):
    """All pairs, and what they rest on."""

    pairs: list[LearnerPair]
    comparisons: int
    tests: str
    """The comparisons for which p is corrected, in words."""
    shown: int
    seeds: bool
    """Whether seeds were tested as well."""
    alone: bool
    """Whether some comparison rests on a single training."""


def pairwise_section(comparisons: Sequence[Comparison]) -> PairwiseSection:
    """The pairs, in the order in which `bench compare` prints them."""
    tests = [test for pair in comparisons for test in pair.contrasts.values()]
    seeds = any(not math.isnan(test.seeds_p) for test in tests)
    groups: dict[tuple[Any, ...], list[Comparison]] = {}
    for pair in comparisons:
        groups.setdefault((*(pair.setting[name] for name in SETTING), pair.first, pair.second), []).append(pair)
    pairs = [_pair(group, len(tests) <= MOST, seeds) for group in groups.values()]
    return PairwiseSection(
        pairs, len(tests), tests_text(comparisons), sum(len(pair.rows) for pair in pairs), seeds,
        any(1 in {len(test.first.by_seed), len(test.second.by_seed)} for test in tests),
    )  # fmt: skip


def _pair(group: list[Comparison], whole: bool, seeds: bool) -> LearnerPair:
    chosen = [
        (pair, column, test) for pair in group for column, test in pair.contrasts.items()
        if whole or column == list(pair.contrasts)[-1]
    ]  # fmt: skip
    reach = max(1, math.ceil(100 * max(abs(test.paired.difference) + _half(test) for _, _, test in chosen)))
    rows = []
    tables = {id(pair): comparison_table(pair, seeds=seeds) for pair in group}
    for pair, column, test in chosen:
        table = tables[id(pair)]
        cells = dict(zip(table.columns, table.rows[table.names.index(column)][1], strict=True))
        scene = threat(pair.setting)
        if pair.setting["threat_norm"] != "none":
            scene += f", {sides(pair.setting)}"
        ends = (100 * (test.paired.difference + side * _half(test)) for side in (-1, 0, 1))
        places = (round(WIDTH / 2 + points / reach * (WIDTH / 2 - 6), 1) for points in ends)
        rows.append(ComparisonRow(scene, column, cells, *places))
    ahead = [test.ahead for _, _, test in chosen]
    won = ahead.count(1), ahead.count(-1), ahead.count(0)
    return LearnerPair(group[0].setting, group[0].first, group[0].second, rows, won, reach)


def _half(test: PairedTest) -> float:
    return 0.0 if math.isnan(test.paired.ci95) else test.paired.ci95
