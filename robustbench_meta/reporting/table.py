"""One model for all tables of results: defined here once, drawn by the terminal, the report, notebooks and exports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from robustbench_meta.reporting.wording import size_shown
from robustbench_meta.results.corruptions import MEAN, KindTable
from robustbench_meta.results.curves import Curve, over_seeds
from robustbench_meta.results.pairwise import Comparison
from robustbench_meta.results.tables import LeaderboardTable, Score, shown


class TableCell(NamedTuple):
    """A cell: text or a number, with what is written around it."""

    text: str
    spread: str = ""
    """Behind ±; empty: none."""
    bold: bool = False
    flags: Sequence[str] = ()
    """Marked by `!`: the flags that not all numbers of the table have."""
    fewer: bool = False
    """Marked by `*`: it rests on fewer seeds than others."""
    value: float | None = None
    """What the report sorts by where the text is no plain number."""

    @property
    def marks(self) -> str:
        """`!`, `*`, both or neither."""
        return "!" * bool(self.flags) + "*" * self.fewer


@dataclass(frozen=True)
class Table:
    """Columns of equal length: those of text that name the rows, then the others."""

    heads: dict[str, list[str]]
    columns: dict[str, list[TableCell]]
    left: frozenset[str] = field(default=frozenset())
    """Columns that hold text, which the report aligns to the left."""

    @property
    def rows(self) -> list[tuple[list[str], list[TableCell]]]:
        """By row: the names, and the cells."""
        names = zip(*self.heads.values(), strict=True)
        cells = zip(*self.columns.values(), strict=True) if self.columns else ([] for _ in self.names)
        return [(list(name), list(row)) for name, row in zip(names, cells, strict=True)]

    @property
    def names(self) -> list[str]:
        """Of the rows, in the last column of names."""
        return list(self.heads.values())[-1]

    def turned(self, head: str) -> Table:
        """Columns as rows; `head` is what their names are called."""
        cells = zip(*self.columns.values(), strict=True)
        return Table({head: list(self.columns)}, dict(zip(self.names, map(list, cells), strict=True)))


def number_cell(value: float, digits: int = 1) -> TableCell:
    """`1,234.5`; a dash where it is not known."""
    return TableCell(f"{value:,.{digits}f}" if math.isfinite(value) else "–", value=value)


def leaderboard_table(board: LeaderboardTable, learners: Sequence[str] | None = None) -> Table:
    """Learners by clean accuracy, attacks and worst case; the column `#` has ranks, if there are any.

    Args:
        board: the numbers.
        learners: the order of the rows; by default that of the ranks.
    """
    names = list(board.scores if learners is None else learners)
    ranks = {"#": [str(board.ranks.get(name, "–")) for name in names]} if len(names) > 1 and board.ranks else {}
    columns = {
        column: [score_cell(board, board.scores[name][column], bold=board.leads(name, column)) for name in names]
        for column in board.columns
    }
    return Table(ranks | {"learner": names}, columns)


def export_table(board: LeaderboardTable, *, turned: bool = False) -> Table:
    """The same without ranks, for papers and pages; `turned` makes attacks the rows."""
    table = Table({"learner": list(board.scores)}, leaderboard_table(board).columns)
    return table.turned("attack") if turned else table


def score_cell(board: LeaderboardTable, score: Score, *, bold: bool = False) -> TableCell:
    """One number of a leaderboard's table."""
    spread = board.spread(score)
    return TableCell(
        score.text(), "" if math.isnan(spread) else shown(spread), bold, board.marks(score), board.fewer(score),
        round(score.mean, 4),
    )  # fmt: skip


def curve_table(group: Sequence[Curve]) -> Table:
    """Learners and attacks by accuracy at each ε, and by the area under the curve."""
    lines: dict[tuple[str, str], list[Curve]] = {}
    for curve in group:
        lines.setdefault((curve.learner, curve.attack), []).append(curve)
    most = max(map(len, lines.values()))
    sizes = [size_shown(group[0].told["threat_norm"], eps) for eps in group[0].eps]
    columns: dict[str, list[TableCell]] = {name: [] for name in [*sizes, "area"]}
    for seeds in lines.values():
        for cells, mean, spread in zip(columns.values(), *over_seeds(seeds, most), strict=True):
            fewer = cells is columns["area"] and len(seeds) < most
            cells.append(TableCell(shown(mean), "" if math.isnan(spread) else shown(spread), fewer=fewer, value=mean))
    return Table({"learner": [learner for learner, _ in lines], "under": [attack for _, attack in lines]}, columns)


def corruption_table(found: KindTable) -> Table:
    """Kinds of corruption by learner: with few learners and many kinds, it is narrow."""

    def cell(learner: str, kind: str) -> TableCell:
        mean, spread, seeds = found.number(learner, kind)
        return TableCell(
            "–" if math.isnan(mean) else shown(mean), _half(spread), kind == MEAN, fewer=0 < seeds < found.seeds,
            value=mean,
        )  # fmt: skip

    return Table(
        {"corruption": list(found.kinds)},
        {learner: [cell(learner, kind) for kind in found.kinds] for learner in found.episodes},
    )


def comparison_table(pair: Comparison, *, seeds: bool) -> Table:
    """Columns of the leaderboard by A, B, their difference, its p-values, and the better one.

    Args:
        pair: the two learners at one threat.
        seeds: whether to show the test over seeds.
    """
    board, tests = pair.board, pair.contrasts.values()
    columns = {
        letter: [_share(board, pair.scores[column][which]) for column in pair.contrasts]
        for which, letter in enumerate("AB")
    }
    columns["A − B"] = [
        TableCell(
            signed(points := 100 * test.paired.difference), _half(100 * test.paired.ci95), bold=True, value=points
        )
        for test in tests
    ]
    columns["p"] = [TableCell(_p(test.corrected)) for test in tests]
    if seeds:
        columns["p seeds"] = [TableCell(_p(test.seeds_p)) for test in tests]
    ahead = {1: pair.first, -1: pair.second, 0: ""}
    columns["ahead"] = [TableCell(ahead[test.ahead]) for test in tests]
    return Table({"under": list(pair.contrasts)}, columns, frozenset({"ahead"}))


def _share(board: LeaderboardTable, score: Score) -> TableCell:
    return TableCell(score.text(), shown(score.spread) if score.seeds > 1 else "", flags=board.marks(score))


def _half(points: float) -> str:
    return "" if math.isnan(points) else shown(points)


def signed(points: float) -> str:
    """`+1.2` or `−1.2`."""
    return f"{points:+.1f}".replace("-", "−") if abs(points) >= 0.05 else "0.0"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
