"""The leaderboards as the page shows them: places, and in each its tables; the numbers are the boards'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustbench_meta.reporting.html.scenarios import UNATTACKED, scenario
from robustbench_meta.reporting.wording import (
    FlagNote,
    accuracy_text,
    fewer_text,
    flags_of,
    luck_text,
    norm_layer,
    sides,
    threat,
    worst_text,
)
from robustbench_meta.results.tables import CLEAN, SETTING, LeaderboardTable


@dataclass(frozen=True)
class RankTable:
    """One table."""

    id: str
    board: LeaderboardTable
    threat: str
    scenario: str
    sides: str
    ranked: bool
    extras: list[str]
    caption: str
    doubts: list[FlagNote]
    verdict: str
    """Who is ahead, in a sentence."""
    rows: list[str]
    """The learners, in the order of the place."""

    @property
    def columns(self) -> list[str]:
        """The board's, that which decides the rank first: it is what a narrow screen shows."""
        *others, last = self.board.columns
        return [last, *others]


@dataclass(frozen=True)
class ComparableTables:
    """All tables of learners that may be compared: one data set, task, network, recipe and way of inference."""

    id: str
    told: Mapping[str, Any]
    heading: str
    facts: list[str]
    distinguished: str
    """Its heading, with its facts where another place has the same."""
    caption: str
    tables: list[RankTable]


def places(boards: Iterable[LeaderboardTable]) -> list[ComparableTables]:
    """The tables by place, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[LeaderboardTable]] = {}
    for board in boards:
        groups.setdefault(tuple(board.setting[name] for name in SETTING), []).append(board)
    names = [heading(group[0].setting) for group in groups.values()]
    count = 0
    found = []
    for number, group in enumerate(groups.values(), 1):
        rows = _order(group)
        tables = [_table(board, count + place, rows) for place, board in enumerate(group, 1)]
        count += len(group)
        told = group[0].setting
        name = heading(told)
        apart = ", ".join([name, *facts(told)]) if names.count(name) > 1 else name
        found.append(
            ComparableTables(f"place-{number}", told, name, facts(told), apart, _caption_of_all(tables), tables)
        )
    return found


def heading(told: Mapping[str, Any]) -> str:
    """`glyphs, 5-way 1-shot, conv4:width=32, inductive`."""
    precision = [] if told["precision"] == "float32" else [told["precision"]]
    task = f"{told['way']}-way {told['shot']}-shot"
    return ", ".join([told["dataset"], task, told["backbone"], told["inference"], *precision])


def facts(told: Mapping[str, Any]) -> list[str]:
    """What the heading of a place leaves out."""
    queries = "1 query" if told["queries"] == 1 else f"{told['queries']} queries"
    return [
        f"{queries} a class",
        f"{told['meta_steps']:,} meta-steps of {told['tasks_per_step']} tasks",
        norm_layer(told),
        f"{told['episodes']:,} test episodes",
    ]


def _order(group: Sequence[LeaderboardTable]) -> list[str]:
    """The learners of a place by the mean of what decides their ranks, so that all its tables have one order."""
    found: dict[str, list[float]] = {}
    attacked = [board for board in group if board.setting["threat_norm"] != "none"]
    for board in attacked or group:
        for name, row in board.scores.items():
            found.setdefault(name, []).append(row[board.columns[-1]].mean)
    means = {name: np.nanmean(values) for name, values in found.items() if not np.isnan(values).all()}
    names = {name for board in group for name in board.scores}
    return sorted(names, key=lambda name: (-means.get(name, -math.inf), name))


def _verdict(board: LeaderboardTable) -> str:
    """Who is ahead in the column that decides the rank, by how much, and whether flags deny it."""
    column = board.columns[-1]
    scores = {name: row[column] for name, row in board.scores.items() if not math.isnan(row[column].mean)}
    if not scores:
        return "no number."
    flagged = {name for columns in board.doubts().values() for names in columns.values() for name in names}
    told = {name: f"{name} {score.text()} %{' (flagged)' if name in flagged else ''}"
            for name, score in scores.items()}  # fmt: skip
    first = [name for name in scores if board.ranks.get(name) == 1]
    others = [name for name in scores if name not in first]
    if len(scores) == 1:
        return f"{told[next(iter(scores))]}; no other learner to compare with."
    if not first:
        return f"{', '.join(told.values())}; not ranked."
    rest = f", ahead of {', '.join(told[name] for name in others)}" if others else ""
    apart = " cannot be told apart" if len(first) > 1 else ""
    return f"{', '.join(told[name] for name in first)}{apart}{rest}."


def _table(board: LeaderboardTable, number: int, rows: Sequence[str]) -> RankTable:
    setting = board.setting
    caption = " ".join([accuracy_text(board), *fewer_text(board)])
    return RankTable(
        f"table-{number}", board, threat(setting), scenario(setting),
        UNATTACKED if setting["threat_norm"] == "none" else sides(setting),
        len(board.scores) > 1 and bool(board.ranks), list(next(iter(board.extras.values()))), caption,
        flags_of(board, "all numbers of this table"), _verdict(board), [name for name in rows if name in board.scores],
    )  # fmt: skip


def _caption_of_all(tables: Sequence[RankTable]) -> str:
    found = [table.board for table in tables]
    lines = worst_text(found, "of the table")
    ranked = [table.board for table in tables if table.ranked]
    if ranked:
        lines.append("Rank: 1 + how many learners are significantly better in the shaded column; "
                     "equal ranks cannot be told apart.")  # fmt: skip
        if any(set(board.measured(board.columns[-1])) - set(board.ranks) for board in ranked):
            lines.append("No rank where flags deny the number.")
        lines.append("Bold: none is significantly better in that column. Ranks and bold correct for the pairs in one "
                     "column, the comparisons in pairs for all of them, and so may tell fewer apart.")  # fmt: skip
        lines += luck_text(ranked)
    if any(board.columns != [CLEAN] for board in found):
        lines.append("Success: share of the right answers that the best attack turned wrong.")
        lines.append("Worst 10 %: accuracy in the worst tenth of the episodes, under the best attack.")
    return " ".join(lines)
