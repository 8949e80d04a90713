"""The leaderboard for a terminal: one table a setting, a row a learner, the attacks as columns; and curves over ε."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from robustbench_meta.experiment.probes import BLACK_BOX_QUERIES
from robustbench_meta.reporting.terminal.layout import WIDE, draw_table, folded, portions, title
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.pairwise import judged
from robustbench_meta.results.tables import CLEAN, WORST, LeaderboardTable, Score, boards, shown

POINTER = "What the flags mean: docs/flags.md."
"""Below a table with flags."""


def tables(frame: pd.DataFrame, width: int = 80, samples: Samples | None = None) -> list[RenderableType]:
    """Tables of a leaderboard that fit `width` columns; too many attacks continue in another table below.

    Transductive and inductive learners, other threat models, scenarios or data are never in one table. Bold is what
    cannot be told apart from the best of its column; without samples only the last column is known, by its ranks.
    """
    found = boards(frame) if samples is None else judged(frame, samples)
    return [_drawn(board, width) for board in found]


def _drawn(board: LeaderboardTable, width: int) -> RenderableType:
    names = {name: folded(name, max(16, width // 3)) for name in board.scores}
    cells = {column: {name: _cell(board, name, column) for name in board.scores} for column in board.columns}
    more = {
        extra: {name: Text(row[extra], style="dim") for name, row in board.extras.items()}
        for extra in next(iter(board.extras.values()))
    }
    first = {"learner": names}
    if len(names) > 1 and board.ranks:
        first = {"#": {name: str(board.ranks.get(name, "–")) for name in names}, **first}
    whole = list(portions(first, cells | more, width))
    wide = width >= WIDE and len(whole) == 1
    parts: list[RenderableType] = [Text(line, style="bold") for line in title(board.setting)]
    for chunk in whole if wide else portions(first, cells, width):
        parts += [draw_table(first, {column: (cells | more)[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_caption(board, wide, "#" in first), style="dim"), Text(""))


def _cell(board: LeaderboardTable, name: str, column: str) -> Text:
    """`85.3 ±1.2`, bold if among the best, `!` where the number is flagged, `*` where seeds are missing."""
    score = board.scores[name][column]
    scores = [row[column] for row in board.scores.values()]
    digits = max((len(shown(other.spread)) for other in scores if not math.isnan(other.spread)), default=0)
    text = Text(score.text(), style="bold" if board.leads(name, column) else "")
    if digits:
        spread = board.spread(score)
        text.append(("" if math.isnan(spread) else f" ±{shown(spread)}").ljust(digits + 2), style="not bold dim")
    room = max(len(_mark(board, other)) for other in scores)
    return text.append(_mark(board, score).ljust(room), style="not bold yellow")


def _mark(board: LeaderboardTable, score: Score) -> str:
    return ("!" if board.marks(score) else "") + ("*" if board.fewer(score) else "")


def _caption(board: LeaderboardTable, wide: bool, ranked: bool) -> str:
    episodes = board.setting["episodes"]
    if board.seeds == 1:
        lines = [f"Accuracy in %; ± half of the 95 % interval over {episodes:,} episodes."]
    else:
        lines = [f"Accuracy in %, mean of {board.seeds} seeds ({episodes:,} episodes each)"]
        lines[0] += "; ± standard deviation of the seeds."
        if any(board.fewer(score) for row in board.scores.values() for score in row.values()):
            lines.append("* rests on fewer seeds.")
    if WORST in board.columns:
        lines.append(worst_text(board.setting, "right under every attack of the table"))
        if any(board.fewer(row[WORST]) for row in board.scores.values()):
            lines.append("With * it is over the seeds that saw all attacks: the other columns have more.")
    if ranked:
        lines.append(
            "#: 1 + how many learners are significantly better in the last column; equal # cannot be told apart."
        )
        if set(board.measured(board.columns[-1])) - set(board.ranks):
            lines.append("No rank (–) where flags deny the number.")
        trained = {board.scores[name][board.columns[-1]].seeds for name in board.ranks}
        if 1 in trained:
            some = " where a learner has one seed" if len(trained) > 1 else ""
            lines.append(f"Ranks rest on one training each{some}: its luck is not in them.")
    if wide and len(board.columns) > 1:
        lines.append("Success: of the attack that turned most right answers wrong. Worst 10 %: of the episodes.")
    return "\n".join([" ".join(lines), *doubts(board)])


def worst_text(setting: Mapping[str, Any], told: str) -> str:
    """What the worst case is; attacked support makes other weights, of which no unattacked answer is known."""
    return f"Worst case: {told}, and without any." if setting["support"] == "clean" else f"Worst case: {told}."


def doubts(board: LeaderboardTable) -> list[str]:
    """The flags: those that all numbers share at once, the others with the numbers that have them; where to read on."""
    lines = [f"All: {', '.join(sorted(board.shared))}{searches(board, board.shared)}."] if board.shared else []
    lines += [f"! {flag}: {told}{searches(board, {flag})}." for flag, told in has_flags(board).items()]
    return [*lines, POINTER] if lines else []


def has_flags(board: LeaderboardTable) -> dict[str, str]:
    """Of each flag that not all numbers share: the numbers that have it, in words."""
    found = {}
    for flag, columns in board.doubts().items():
        throughout = board.throughout(flag)
        told = list(throughout)
        for column, flagged in columns.items():
            names = [name for name in flagged if name not in throughout]
            if len(names) > 1 and set(names) == set(board.measured(column)):
                told.append(f"all under {column}")
            else:
                told += [name if column == CLEAN else f"{name} under {column}" for name in names]
        found[flag] = ", ".join(told)
    return found


def searches(board: LeaderboardTable, flags: Collection[str]) -> str:
    """Behind masked gradients: what the probe without gradients left, of each learner where it left less."""
    if "masked-gradients" not in flags:
        return ""
    left = {name: board.searched(name) for name in board.scores}
    told = {name: f"{shown(points)} %" for name, points in left.items() if not math.isnan(points)}
    if not told:
        return ""
    flagged = [
        name for name, row in board.scores.items() if any("masked-gradients" in score.flags for score in row.values())
    ]
    each = ", ".join(points if len(flagged) == 1 else f"{points} of {name}" for name, points in told.items())
    return f" (a {BLACK_BOX_QUERIES}-query search leaves {each})"
