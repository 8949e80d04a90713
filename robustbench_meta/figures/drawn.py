"""A figure that was drawn, what it is about, and the sentences that a paper's caption needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.figure import Figure

from robustbench_meta.boards import CLEAN, WORST, Board, Score
from robustbench_meta.drawing import sides
from robustbench_meta.tables import POINTER, doubts, worst_told


@dataclass(frozen=True)
class Drawn:
    """A figure, with what tells it apart from others of its kind, a title and a caption."""

    kind: str
    setting: Mapping[str, Any]
    figure: Figure
    title: str
    caption: str


def place_told(told: Mapping[str, Any]) -> str:
    """`glyphs, 5-way 1-shot; conv4:width=32 (group norm, inductive), 600 meta-steps of 8 tasks`."""
    norm = "no" if told["norm"] == "none" else told["norm"]
    precision = "" if told["precision"] == "float32" else f", {told['precision']}"
    return (
        f"{told['dataset']}, {told['way']}-way {told['shot']}-shot; {told['backbone']} ({norm} norm, "
        f"{told['inference']}{precision}), {told['meta_steps']:,} meta-steps of {told['tasks_per_step']} tasks"
    )


def scene_told(told: Mapping[str, Any]) -> str:
    """What is done to support and query, a line each."""
    return sides(told).replace(", ", ",\n", 1)


def numbers(found: Iterable[Board]) -> list[Score]:
    """All numbers of these boards."""
    return [score for board in found for row in board.scores.values() for score in row.values()]


def alike(found: Iterable[Board], shown: Iterable[Score]) -> list[Board]:
    """The boards of a figure, without the intervals of single seeds if it shows numbers of several seeds, in any panel.

    They would be intervals over episodes beside deviations between seeds.
    """
    if max((score.seeds for score in shown), default=1) <= 1:
        return list(found)
    return [
        replace(board, scores={name: {column: _bare(score) for column, score in row.items()}
                               for name, row in board.scores.items()})
        for board in found
    ]  # fmt: skip


def _bare(score: Score) -> Score:
    return replace(score, spread=math.nan) if score.seeds == 1 else score


def spread_told(what: str, seeds: Iterable[int], episodes: int) -> str:
    """What the numbers are means of, and what the error bars (`what`) are."""
    counts = {count for count in seeds if count}
    if counts <= {1}:
        return f"Means over {episodes:,} test episodes, of one training each; {what}: 95 % intervals over episodes."
    most, fewer = max(counts), len(counts) > 1
    return (
        f"Means over {most} seeds{' (some rest on fewer)' if fewer else ''} of {episodes:,} test episodes each; "
        f"{what}: standard deviation between seeds{', none where there is one seed' if 1 in counts else ''}."
    )


def boards_told(found: Iterable[Board], shown: Iterable[Score], what: str) -> str:
    """What the numbers rest on, what the worst case is, and which of the boards' are in doubt, and why.

    Args:
        found: the boards of a figure.
        shown: those of their numbers that it shows.
        what: its error bars are called.
    """
    boards = list(found)
    lines = [spread_told(what, (score.seeds for score in shown), boards[0].setting["episodes"])]
    worst = [board for board in boards if WORST in board.columns]
    if worst:
        clean = all(board.setting["support"] == CLEAN for board in worst)
        told = worst_told({"support": CLEAN if clean else ""}, "right under every attack that is shown")
        partly = not clean and any(board.setting["support"] == CLEAN for board in worst)
        lines.append(f"{told[:-1]}, and, with clean support, without any." if partly else told)
    for board in boards:
        flags = doubts(board)
        if flags:
            where = f"{sides(board.setting)}: " if len(boards) > 1 and board.setting["threat_norm"] != "none" else ""
            lines.append(where + " ".join(line for line in flags if line != POINTER))
    return " ".join(lines)
