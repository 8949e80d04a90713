"""A figure that was drawn, which boards belong into it, and the sentences that a paper's caption needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from robustbench_meta.options import SCENARIOS
from robustbench_meta.reporting.wording import flags_text, norm_layer, sides, spread_text, worst_text
from robustbench_meta.results.tables import SETTING, LeaderboardTable, Score, eps_of


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


def scenarios_of(boards: Iterable[LeaderboardTable], *, attacked: bool = False) -> list[list[LeaderboardTable]]:
    """The boards of each setting, norm and ε, in the order of the scenarios; `attacked` leaves the others out."""
    groups: dict[tuple[Any, ...], list[LeaderboardTable]] = {}
    for board in boards:
        if board.setting["threat_norm"] != "none" or not attacked:
            groups.setdefault(tuple(board.setting[name] for name in [*SETTING, "threat_norm", "eps"]), []).append(board)
    return [sorted(group, key=lambda board: scenario_place(board.setting)) for group in groups.values()]


def at_zero(setting: Mapping[Any, Any]) -> bool:
    """Whether something was attacked with ε = 0, where an attack changes nothing."""
    return setting["threat_norm"] != "none" and eps_of(setting) == 0


def shared_setting(group: list[LeaderboardTable]) -> dict[str, Any]:
    """What tells the figure of a group from those of others; the scenario too, if it is one alone."""
    names = [*SETTING, "threat_norm", "eps", *(["support", "query", "surrogate"] if len(group) == 1 else [])]
    return {name: group[0].setting[name] for name in names}


def scenario_place(setting: Mapping[str, Any]) -> tuple[int, str]:
    """Sorts scenarios: ADML's four, then the others."""
    scenario = f"{setting['support']}/{setting['query']}"
    return list(SCENARIOS).index(scenario) if scenario in SCENARIOS else len(SCENARIOS), str(setting["surrogate"])
