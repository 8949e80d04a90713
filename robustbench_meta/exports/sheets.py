"""The leaderboard's tables as cells of text, each with what it stands for: what Markdown and LaTeX are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustbench_meta.boards import WORST, Board, attacks_of, boards, groups, shown
from robustbench_meta.comparison import ranked
from robustbench_meta.samples import Samples
from robustbench_meta.tables import POINTER, doubts, worst_told


@dataclass(frozen=True)
class Cell:
    """A number in percent as tables show it."""

    mean: str
    """Empty: there is none."""
    spread: str = ""
    """Behind ±; empty: there is none."""
    bold: bool = False
    """No learner of its table is significantly better by it."""
    doubted: bool = False
    """It has a flag that not all numbers of the table have."""
    fewer: bool = False
    """It rests on fewer seeds than others."""


@dataclass(frozen=True)
class Sheet:
    """One table: learners in order of rank, by column."""

    setting: Mapping[str, Any]
    columns: list[str]
    rows: dict[str, dict[str, Cell]]
    notes: list[str]
    """What ±, bold and marks mean, and which numbers are in doubt."""

    def turned(self) -> tuple[str, list[str], dict[str, list[Cell]]]:
        """Attacks as rows: what the first column holds, the learners, and a row of cells for each column."""
        rows = {column: [row[column] for row in self.rows.values()] for column in self.columns}
        return "attack", list(self.rows), rows

    def upright(self) -> tuple[str, list[str], dict[str, list[Cell]]]:
        """Learners as rows: what the first column holds, the columns, and a row of cells for each learner."""
        rows = {name: [row[column] for column in self.columns] for name, row in self.rows.items()}
        return "learner", self.columns, rows


def sheets(frame: pd.DataFrame, samples: Samples) -> Iterator[Sheet]:
    """The tables of a leaderboard, as `bench leaderboard` shows them."""
    for rows, board in zip(groups(frame), boards(frame), strict=True):
        best = leaders(rows, board, samples)
        cells = {name: {column: _cell(board, name, column, best) for column in board.columns} for name in board.scores}
        yield Sheet(board.setting, board.columns, cells, _notes(board, any(best.values())))


def leaders(rows: pd.DataFrame, board: Board, samples: Samples) -> dict[str, set[str]]:
    """By column: the learners than which none is significantly better; none where there are no two to compare.

    All pairs of a column are tested together, as for the table's ranks, which are those of its last column.
    """
    attacks, found = attacks_of(rows), {}
    parts = {str(name): part for name, part in rows.groupby("learner", sort=False)}
    for column in board.columns:
        taken = {name: samples.of(part, column, attacks) for name, part in parts.items()}
        known = {name: sample for name, sample in taken.items() if sample is not None}
        ranks = ranked(known) if len(known) > 1 else {}
        found[column] = {name for name, rank in ranks.items() if rank == 1}
    return found


def _cell(board: Board, name: str, column: str, best: Mapping[str, set[str]]) -> Cell:
    score = board.scores[name][column]
    if math.isnan(score.mean):
        return Cell("")
    fewer = score.seeds < board.seeds
    told = not math.isnan(score.spread) and not (fewer and score.seeds == 1)
    doubted = bool(score.flags - board.shared)
    return Cell(score.text(), shown(score.spread) if told else "", name in best[column], doubted, fewer)


def _notes(board: Board, ranked_: bool) -> list[str]:
    episodes, scores = board.setting["episodes"], [each for row in board.scores.values() for each in row.values()]
    lines = [
        f"Accuracy in %; ± half of the 95 % interval over {episodes:,} episodes, one training each." if board.seeds == 1
        else f"Accuracy in %, mean of {board.seeds} seeds ({episodes:,} episodes each); ± standard deviation of these."
    ]  # fmt: skip
    if WORST in board.columns:
        lines.append(worst_told(board.setting, "right under every attack of the table"))
    if ranked_:
        by = "episodes" + (" and seeds" if board.seeds > 1 else "")
        lines.append(
            "Bold: all that cannot be told apart from the best, for no learner is significantly better "
            f"(5 %, paired over {by}, Holm's correction in each column)."
        )
    if any(0 < score.seeds < board.seeds for score in scores):
        lines.append("* rests on fewer seeds.")
    return lines + [line for line in doubts(board) if line != POINTER]
