"""A figure that was drawn, what it is about, and the sentences that a paper's caption needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from robustbench_meta.reporting.wording import flags_text, norm_layer, sides, spread_text, worst_text
from robustbench_meta.results.tables import LeaderboardTable, Score


@dataclass(frozen=True)
class PaperFigure:
    """A figure, with what tells it apart from others of its kind, a title and a caption."""

    kind: str
    setting: Mapping[str, Any]
    figure: Figure
    title: str
    caption: str


def place_text(told: Mapping[str, Any]) -> str:
    """`glyphs, 5-way 1-shot; conv4:width=32 (group norm, inductive), 600 meta-steps of 8 tasks`."""
    precision = "" if told["precision"] == "float32" else f", {told['precision']}"
    return (
        f"{told['dataset']}, {told['way']}-way {told['shot']}-shot; {told['backbone']} ({norm_layer(told)}, "
        f"{told['inference']}{precision}), {told['meta_steps']:,} meta-steps of {told['tasks_per_step']} tasks"
    )


def scene_name(told: Mapping[str, Any]) -> str:
    """What is done to support and query, or `no attack`."""
    return "no attack" if told["threat_norm"] == "none" else sides(told)


def scene_text(told: Mapping[str, Any]) -> str:
    """What is done to support and query, a line each."""
    return sides(told).replace(", ", ",\n", 1)


def boards_text(found: Iterable[LeaderboardTable], shown: Iterable[Score], what: str, mark: str = "Flagged ") -> str:
    """What the numbers rest on, what the worst case is, and which of the boards' are in doubt, and why.

    Args:
        found: the boards of a figure.
        shown: those of their numbers that it shows.
        what: its error bars are called.
        mark: what the sentences on numbers in doubt begin with.
    """
    boards = list(found)
    lines = [spread_text(what, (score.seeds for score in shown), boards[0].setting["episodes"])]
    lines += worst_text(boards, "that is shown")
    return " ".join([*lines, *flags_text(by_scenario(boards), mark)])


def by_scenario(boards: Iterable[LeaderboardTable]) -> dict[str, LeaderboardTable]:
    """Boards that differ in the scenario alone, by its name in words."""
    return {scene_name(board.setting): board for board in boards}
