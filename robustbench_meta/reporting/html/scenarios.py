"""Scenarios side by side: heat maps of learner × attack, and a panel each for clean and attacked support and query."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from robustbench_meta.options import SCENARIOS
from robustbench_meta.reporting.figures.scenario_bars import draw_scenarios
from robustbench_meta.reporting.html.embedded_figures import Drawings
from robustbench_meta.reporting.wording import sides, spread_text, threat
from robustbench_meta.results.tables import (
    CLEAN,
    SETTING,
    LeaderboardTable,
    Score,
    all_scores,
    clean_table,
    eps_of,
    with_comparable_spreads,
)

_ORDER = list(SCENARIOS)
UNATTACKED = "clean support, clean query"


@dataclass(frozen=True)
class Scene:
    """One scenario of a group: its name, and its numbers by learner."""

    name: str
    told: str
    columns: list[str]
    scores: dict[str, dict[str, Score]]
    board: LeaderboardTable
    """To which they belong."""


@dataclass(frozen=True)
class ThreatSection:
    """The scenarios of one setting, norm and ε, unattacked first."""

    setting: dict[str, Any]
    heading: str
    scenes: list[Scene]
    learners: list[str]
    figures: list[Markup]
    spread: str
    """What the numbers rest on, and what the error bars are."""

    def cell(self, scene: Scene, learner: str, column: str) -> Score | None:
        """A number of the heat map; None where there is none."""
        score = scene.scores.get(learner, {}).get(column)
        return None if score is None or math.isnan(score.mean) else score


def threats(boards: Iterable[LeaderboardTable], drawings: Drawings) -> list[ThreatSection]:
    """The boards that something was attacked in, those together that differ in the scenario alone.

    Args:
        boards: in the order in which they are read.
        drawings: of the page.
    """
    groups: dict[tuple[Any, ...], list[LeaderboardTable]] = {}
    for board in boards:
        if board.setting["threat_norm"] != "none" and eps_of(board.setting) > 0:
            groups.setdefault(tuple(board.setting[name] for name in [*SETTING, "threat_norm", "eps"]), []).append(board)
    return [_threat(group, drawings) for group in groups.values()]


def scenario(setting: Mapping[str, Any]) -> str:
    """`clean/adv`."""
    return f"{setting['support']}/{setting['query']}"


class Order:
    """Sorts what the page shows: places as the leaderboard has them, in each by scenario, norm, and size of ε.

    The leaderboard sorts scenarios by their names, and ε as text.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        places = frame[SETTING].drop_duplicates().itertuples(index=False, name=None)
        self._places = {place: at for at, place in enumerate(places)}

    def __call__(self, setting: Mapping[str, Any]) -> tuple[Any, ...]:
        """The key of a table's setting."""
        name, norm = scenario(setting), str(setting["threat_norm"])
        place = self._places[tuple(setting[column] for column in SETTING)]
        known = _ORDER.index(name) if name in _ORDER else len(_ORDER)
        return place, known, str(setting["surrogate"]), norm != "linf", norm, eps_of(setting)


def _threat(group: list[LeaderboardTable], drawings: Drawings) -> ThreatSection:
    figures = [drawings.embed(each) for each in draw_scenarios(group, drawings.look)]
    counts = [score.seeds for score in all_scores(group)]
    group = with_comparable_spreads(group, all_scores(group))
    learners = list(dict.fromkeys(name for board in group for name in board.scores))
    clean = clean_table(group)
    scenes = [Scene("clean/clean", UNATTACKED, clean.columns, clean.scores, clean)]
    for board in group:
        columns = board.columns[1:]
        rows = {name: {column: row[column] for column in columns} for name, row in board.scores.items()}
        scenes.append(Scene(scenario(board.setting), sides(board.setting), columns, rows, board))
    setting = dict(group[0].setting)
    told = spread_text("error bars", counts, setting["episodes"])
    if any(board.scores[name][CLEAN].seeds < row[CLEAN].seeds
           for board in group for name, row in clean.scores.items() if name in board.scores):  # fmt: skip
        told += " Without attack: each learner where it rests on the most seeds."
    return ThreatSection(setting, threat(setting), scenes, learners, figures, told)
