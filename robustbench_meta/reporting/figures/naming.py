"""Boards that belong into one figure: those that differ in the scenario alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robustbench_meta.options import SCENARIOS
from robustbench_meta.results.tables import PLACE, LeaderboardTable, eps_of


def scenarios_of(boards: Iterable[LeaderboardTable], *, attacked: bool = False) -> list[list[LeaderboardTable]]:
    """The boards of each setting, norm and ε, in the order of the scenarios; `attacked` leaves the others out."""
    groups: dict[tuple[Any, ...], list[LeaderboardTable]] = {}
    for board in boards:
        if board.setting["threat_norm"] != "none" or not attacked:
            groups.setdefault(tuple(board.setting[name] for name in [*PLACE, "threat_norm", "eps"]), []).append(board)
    return [sorted(group, key=lambda board: scenario_place(board.setting)) for group in groups.values()]


def at_zero(setting: Mapping[Any, Any]) -> bool:
    """Whether something was attacked with ε = 0, where an attack changes nothing."""
    return setting["threat_norm"] != "none" and eps_of(setting) == 0


def shared_setting(group: list[LeaderboardTable]) -> dict[str, Any]:
    """What tells the figure of a group from those of others; the scenario too, if it is one alone."""
    names = [*PLACE, "threat_norm", "eps", *(["support", "query", "surrogate"] if len(group) == 1 else [])]
    return {name: group[0].setting[name] for name in names}


def scenario_place(setting: Mapping[str, Any]) -> tuple[int, str]:
    """Sorts scenarios: ADML's four, then the others."""
    scenario = f"{setting['support']}/{setting['query']}"
    return list(SCENARIOS).index(scenario) if scenario in SCENARIOS else len(SCENARIOS), str(setting["surrogate"])
