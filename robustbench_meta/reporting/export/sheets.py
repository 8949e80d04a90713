"""The leaderboard's tables as cells of text, each with what it stands for: what Markdown and LaTeX are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustbench_meta.reporting.terminal.leaderboard import worst_text
from robustbench_meta.reporting.wording import flags_text
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.pairwise import judged
from robustbench_meta.results.tables import WORST, LeaderboardTable, shown


@dataclass(frozen=True)
class SheetCell:
    """A number in percent as tables show it."""

    mean: str
    """Empty: there is none."""
    spread: str = ""
    """Behind ±; empty: there is none."""
    bold: bool = False
    """No learner of its table is significantly better by it."""
    has_flags: bool = False
    """It has a flag that not all numbers of the table have."""
    fewer: bool = False
    """It rests on fewer seeds than others."""


@dataclass(frozen=True)
class Sheet:
    """One table: learners in order of rank, by column."""

    setting: Mapping[str, Any]
    columns: list[str]
    rows: dict[str, dict[str, SheetCell]]
    notes: list[str]
    """What ±, bold and marks mean, and which numbers are in doubt."""

    def turned(self) -> tuple[str, list[str], dict[str, list[SheetCell]]]:
        """Attacks as rows: what the first column holds, the learners, and a row of cells for each column."""
        rows = {column: [row[column] for row in self.rows.values()] for column in self.columns}
        return "attack", list(self.rows), rows

    def upright(self) -> tuple[str, list[str], dict[str, list[SheetCell]]]:
        """Learners as rows: what the first column holds, the columns, and a row of cells for each learner."""
        rows = {name: [row[column] for column in self.columns] for name, row in self.rows.items()}
        return "learner", self.columns, rows


def sheets(frame: pd.DataFrame, samples: Samples) -> Iterator[Sheet]:
    """The tables of a leaderboard, as `bench leaderboard` shows them."""
    for board in judged(frame, samples):
        cells = {name: {column: _cell(board, name, column) for column in board.columns} for name in board.scores}
        yield Sheet(board.setting, board.columns, cells, _notes(board, any(board.leaders.values())))


def _cell(board: LeaderboardTable, name: str, column: str) -> SheetCell:
    score = board.scores[name][column]
    if math.isnan(score.mean):
        return SheetCell("")
    spread = "" if math.isnan(board.spread(score)) else shown(board.spread(score))
    return SheetCell(score.text(), spread, board.leads(name, column), bool(board.marks(score)), board.fewer(score))


def _notes(board: LeaderboardTable, ranked_: bool) -> list[str]:
    episodes, scores = board.setting["episodes"], [each for row in board.scores.values() for each in row.values()]
    lines = [
        f"Accuracy in %; ± half of the 95 % interval over {episodes:,} episodes, one training each." if board.seeds == 1
        else f"Accuracy in %, mean of {board.seeds} seeds ({episodes:,} episodes each); ± standard deviation of these."
    ]  # fmt: skip
    if WORST in board.columns:
        lines.append(worst_text(board.setting, "right under every attack of the table"))
    if ranked_:
        by = "episodes" + (" and seeds" if board.seeds > 1 else "")
        lines.append(
            "Bold: all that cannot be told apart from the best, for no learner is significantly better "
            f"(5 %, paired over {by}, Holm's correction for the pairs under one attack)."
        )
    if any(map(board.fewer, scores)):
        lines.append("* rests on fewer seeds.")
    return lines + flags_text({"": board}, "! ")
