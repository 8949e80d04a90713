"""The leaderboard for a terminal: one table a setting, a row a learner, the attacks as columns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_meta.boards import WORST, Board, Score, boards

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_SIDES = {"clean": "clean", "adv": "attacked"}
_WIDE = 120
_GAP = 3
"""Blanks between two columns."""


def tables(frame: pd.DataFrame, width: int = 80) -> list[RenderableType]:
    """Tables of a leaderboard that fit `width` columns; too many attacks continue in another table below.

    Transductive and inductive learners, other threat models, scenarios or data are never in one table.
    """
    return [_drawn(board, width) for board in boards(frame)]


def _drawn(board: Board, width: int) -> RenderableType:
    names = {name: _folded(name, max(16, width // 3)) for name in board.scores}
    cells = {
        column: {name: _cell(board, row[column], column) for name, row in board.scores.items()}
        for column in board.columns
    }
    more = {
        extra: {name: Text(row[extra], style="dim") for name, row in board.extras.items()}
        for extra in next(iter(board.extras.values()))
    }
    chunks = list(_chunks(names, cells | more, width))
    wide = width >= _WIDE and len(chunks) == 1
    parts: list[RenderableType] = [Text(line, style="bold") for line in _title(board)]
    for chunk in chunks if wide else _chunks(names, cells, width):
        parts += [_table(names, {column: (cells | more)[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_caption(board, wide), style="dim"), Text(""))


def _table(names: Mapping[str, str], cells: Mapping[str, Mapping[str, Text]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    table.add_column("learner", no_wrap=True, vertical="bottom")
    for column in cells:
        table.add_column(_folded(column, 12), justify="right", no_wrap=True)
    for learner, shown in names.items():
        table.add_row(Text(shown), *(column[learner] for column in cells.values()))
    return table


def _chunks(names: Mapping[str, str], cells: Mapping[str, Mapping[str, Text]], width: int) -> Iterator[list[str]]:
    """The columns in portions that fit beside the learners' names."""
    first = max(_widest(name) for name in ["learner", *names.values()])
    chunk: list[str] = []
    used = first
    for column, texts in cells.items():
        need = _GAP + max(_widest(_folded(column, 12)), *(text.cell_len for text in texts.values()))
        if chunk and used + need > width:
            yield chunk
            chunk, used = [], first
        chunk.append(column)
        used += need
    yield chunk


def _cell(board: Board, score: Score, column: str) -> Text:
    """`85.3 ±1.2`, the best of the column in bold, `!` where the number is flagged, `*` where seeds are missing."""
    scores = [row[column] for row in board.scores.values()]
    digits = max((len(f"{other.spread:.1f}") for other in scores if not math.isnan(other.spread)), default=0)
    text = Text(score.text(), style="bold" if score.text() == board.best(column) else "")
    if digits:
        alone = math.isnan(score.spread) or (_fewer(score, board) and score.seeds == 1)
        text.append(("" if alone else f" ±{score.spread:.1f}").ljust(digits + 2), style="not bold dim")
    if any(other.flags or _fewer(other, board) for other in scores):
        text.append("!" if score.flags else "*" if _fewer(score, board) else " ", style="not bold yellow")
    return text


def _fewer(score: Score, board: Board) -> bool:
    return 0 < score.seeds < board.seeds


def _title(board: Board) -> list[str]:
    told = board.setting
    first = f"{told['dataset']} · {told['way']}-way {told['shot']}-shot · {told['backbone']}"
    if "meta_steps" in told:
        first += f" · {told['meta_steps']:,} meta-steps"
    if told["precision"] != "float32":
        first += f" · {told['precision']}"
    inference = f"{told['inference']} ({'no' if told['norm'] == 'none' else told['norm']} norm)"
    if told["threat_norm"] == "none":
        return [first, f"no attack · {inference}"]
    sides = f"{_SIDES[told['support']]} support, {_SIDES[told['query']]} query"
    return [first, f"{_NORMS.get(told['threat_norm'], told['threat_norm'])} ε = {told['eps']} · {sides} · {inference}"]


def _caption(board: Board, wide: bool) -> str:
    episodes = board.setting["episodes"]
    if board.seeds == 1:
        lines = [f"Accuracy in %; ± half of the 95 % interval over {episodes:,} episodes."]
    else:
        lines = [f"Accuracy in %, mean of {board.seeds} seeds ({episodes:,} episodes each)"]
        lines[0] += "; ± standard deviation of the seeds."
        if any(_fewer(score, board) for row in board.scores.values() for score in row.values()):
            lines.append("* rests on fewer seeds.")
    if WORST in board.columns:
        lines.append("Worst case: right under every attack of the table.")
    if wide and len(board.columns) > 1:
        lines.append("Success: of the attack that turned most right answers wrong. Worst 10 %: of the episodes.")
    flags = [
        f"! {name} under {column}: {score.flags}."
        for name, row in board.scores.items()
        for column, score in row.items()
        if score.flags
    ]
    return "\n".join([" ".join(lines), *flags])


def _folded(label: str, width: int) -> str:
    """A label broken after ':' and ',' and at blanks, where it is longer than `width`."""
    lines = [""]
    for piece in re.findall(r"[^:, ]+[:, ]*|[:, ]+", label):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _widest(text: str) -> int:
    return max(len(line) for line in text.split("\n"))
