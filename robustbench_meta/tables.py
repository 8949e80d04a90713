"""The leaderboard for a terminal: one table a setting, a row a learner, the attacks as columns; and curves over ε."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from robustbench_meta.boards import CLEAN, PLACE, WORST, Board, Score, boards, shown
from robustbench_meta.curves import SCENE, Curve
from robustbench_meta.drawing import WIDE, draw, folded, portions, title
from robustbench_meta.probes import BLACK_BOX_QUERIES

POINTER = "What the flags mean: docs/flags.md."
"""Below a table with flags."""


def tables(frame: pd.DataFrame, width: int = 80) -> list[RenderableType]:
    """Tables of a leaderboard that fit `width` columns; too many attacks continue in another table below.

    Transductive and inductive learners, other threat models, scenarios or data are never in one table.
    """
    return [_drawn(board, width) for board in boards(frame)]


def _drawn(board: Board, width: int) -> RenderableType:
    names = {name: folded(name, max(16, width // 3)) for name in board.scores}
    cells = {
        column: {name: _cell(board, row[column], column) for name, row in board.scores.items()}
        for column in board.columns
    }
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
        parts += [draw(first, {column: (cells | more)[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_caption(board, wide, "#" in first), style="dim"), Text(""))


def _cell(board: Board, score: Score, column: str) -> Text:
    """`85.3 ±1.2`, the best of the column in bold, `!` where the number is flagged, `*` where seeds are missing."""
    scores = [row[column] for row in board.scores.values()]
    digits = max((len(shown(other.spread)) for other in scores if not math.isnan(other.spread)), default=0)
    text = Text(score.text(), style="bold" if score.text() == board.best(column) else "")
    if digits:
        alone = math.isnan(score.spread) or (_fewer(score, board) and score.seeds == 1)
        text.append(("" if alone else f" ±{shown(score.spread)}").ljust(digits + 2), style="not bold dim")
    room = max(len(_mark(board, other)) for other in scores)
    return text.append(_mark(board, score).ljust(room), style="not bold yellow")


def _mark(board: Board, score: Score) -> str:
    return ("!" if score.flags - board.shared else "") + ("*" if _fewer(score, board) else "")


def _fewer(score: Score, board: Board) -> bool:
    return 0 < score.seeds < board.seeds


def _caption(board: Board, wide: bool, ranked: bool) -> str:
    episodes = board.setting["episodes"]
    if board.seeds == 1:
        lines = [f"Accuracy in %; ± half of the 95 % interval over {episodes:,} episodes."]
    else:
        lines = [f"Accuracy in %, mean of {board.seeds} seeds ({episodes:,} episodes each)"]
        lines[0] += "; ± standard deviation of the seeds."
        if any(_fewer(score, board) for row in board.scores.values() for score in row.values()):
            lines.append("* rests on fewer seeds.")
    if WORST in board.columns:
        lines.append(worst_told(board.setting, "right under every attack of the table"))
        if any(_fewer(row[WORST], board) for row in board.scores.values()):
            lines.append("With * it is over the seeds that saw all attacks: the other columns have more.")
    if ranked:
        lines.append(
            "#: 1 + how many learners are significantly better in the last column; equal # cannot be told apart."
        )
        trained = {board.scores[name][board.columns[-1]].seeds for name in board.ranks}
        if 1 in trained:
            some = " where a learner has one seed" if len(trained) > 1 else ""
            lines.append(f"Ranks rest on one training each{some}: its luck is not in them.")
    if wide and len(board.columns) > 1:
        lines.append("Success: of the attack that turned most right answers wrong. Worst 10 %: of the episodes.")
    return "\n".join([" ".join(lines), *doubts(board)])


def worst_told(setting: Mapping[str, Any], told: str) -> str:
    """What the worst case is; attacked support makes other weights, of which no unattacked answer is known."""
    return f"Worst case: {told}, and without any." if setting["support"] == "clean" else f"Worst case: {told}."


def doubts(board: Board) -> list[str]:
    """The flags: those that all numbers share at once, the others with the numbers that have them; where to read on."""
    lines = [f"All: {', '.join(sorted(board.shared))}{searches(board, board.shared)}."] if board.shared else []
    lines += [f"! {flag}: {told}{searches(board, {flag})}." for flag, told in doubted(board).items()]
    return [*lines, POINTER] if lines else []


def doubted(board: Board) -> dict[str, str]:
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


def searches(board: Board, flags: Collection[str]) -> str:
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


# -- curves over ε -------------------------------------------------------------------------------------


def curve_tables(found: Sequence[Curve], width: int = 80) -> list[RenderableType]:
    """A table for each setting, threat and list of ε: a row a learner and attack, a column an ε, and the area."""
    groups: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in found:
        groups.setdefault((*(curve.told[name] for name in [*PLACE, *SCENE]), curve.eps), []).append(curve)
    return [_curves_drawn(group, width) for group in groups.values()]


def _curves_drawn(group: list[Curve], width: int) -> RenderableType:
    rows: dict[str, list[Curve]] = {}
    for curve in group:
        rows.setdefault(f"{curve.learner} under {curve.attack}", []).append(curve)
    places = {
        "learner": {row: folded(curves[0].learner, max(16, width // 4)) for row, curves in rows.items()},
        "attack": {row: folded(curves[0].attack, max(12, width // 5)) for row, curves in rows.items()},
    }
    seeds = max(map(len, rows.values()))
    cells = {
        f"ε = {eps}": {
            row: Text(shown(100 * float(np.mean([curve.accuracy(point)[0] for curve in curves]))))
            for row, curves in rows.items()
        }
        for point, eps in enumerate(group[0].eps)
    }
    cells["area"] = {row: _area(curves, seeds) for row, curves in rows.items()}
    parts: list[RenderableType] = [Text(line, style="bold") for line in title(group[0].told)]
    for chunk in portions(places, cells, width):
        parts += [draw(places, {column: cells[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_curve_caption(group[0], seeds), style="dim"), Text(""))


def _area(curves: list[Curve], seeds: int) -> Text:
    """`57.1 ±1.9`; `*` where seeds are missing, whose spread is then not comparable."""
    areas = [curve.area for curve in curves]
    means = np.array([mean for mean, _ in areas])
    spread = areas[0][1] if seeds == 1 else float(means.std(ddof=1)) if len(means) > 1 else math.nan
    text = Text(shown(100 * float(means.mean())), style="bold")
    text.append("" if math.isnan(spread) else f" ±{shown(100 * spread)}", style="not bold dim")
    return text.append("*" if len(means) < seeds else "", style="not bold yellow")


def _curve_caption(curve: Curve, seeds: int) -> str:
    episodes = f"{curve.episodes.shape[1]:,} episodes"
    lines = [
        f"Accuracy in % at each ε (0: without attack). Area: under the curve, over {curve.eps[-1]}: the mean over ε;"
    ]
    lines.append(
        f"± half of the 95 % interval over {episodes}." if seeds == 1 else
        f"± standard deviation of {seeds} seeds ({episodes} each); * rests on fewer seeds."
    )  # fmt: skip
    return " ".join(lines)
