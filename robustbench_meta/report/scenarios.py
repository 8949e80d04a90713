"""Scenarios side by side: heat maps of learner × attack, and a panel each for clean and attacked support and query."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustbench_meta.boards import CLEAN, PLACE, Board, Score, alike, eps_of, numbers, shown, unattacked
from robustbench_meta.captions import spread_told
from robustbench_meta.drawing import sides, threat
from robustbench_meta.report.charts import PERCENTS, Dot, Palette, Panel, Scale, Tick

_ORDER = ["clean/clean", "clean/adv", "adv/clean", "adv/adv", "poisoned/clean", "poisoned/adv", "clean/transfer"]
UNATTACKED = "clean support, clean query"
_WIDTH, _LEFT, _RIGHT, _TOP = 380.0, 112.0, 366.0, 10.0
_LETTERS = 15
"""Of an attack's name beside its row."""


@dataclass(frozen=True)
class Scene:
    """One scenario of a group: its name, and its numbers by learner."""

    name: str
    told: str
    columns: list[str]
    scores: dict[str, dict[str, Score]]
    board: Board
    """To which they belong."""


@dataclass(frozen=True)
class Threat:
    """The scenarios of one setting, norm and ε, unattacked first."""

    setting: dict[str, Any]
    heading: str
    scenes: list[Scene]
    learners: list[str]
    panels: list[Panel]
    spread: str
    """What the numbers rest on, and what the bars of the panels are."""

    def cell(self, scene: Scene, learner: str, column: str) -> Score | None:
        """A number of the heat map; None where there is none."""
        score = scene.scores.get(learner, {}).get(column)
        return None if score is None or math.isnan(score.mean) else score


def threats(boards: Iterable[Board], palette: Palette) -> list[Threat]:
    """The boards that something was attacked in, those together that differ in the scenario alone.

    Args:
        boards: in the order in which they are read.
        palette: of the learners.
    """
    groups: dict[tuple[Any, ...], list[Board]] = {}
    for board in boards:
        if board.setting["threat_norm"] != "none" and eps_of(board.setting) > 0:
            groups.setdefault(tuple(board.setting[name] for name in [*PLACE, "threat_norm", "eps"]), []).append(board)
    return [_threat(group, palette) for group in groups.values()]


def scenario(setting: Mapping[str, Any]) -> str:
    """`clean/adv`."""
    return f"{setting['support']}/{setting['query']}"


class Order:
    """Sorts what the page shows: places as the leaderboard has them, in each by scenario, norm, and size of ε.

    The leaderboard sorts scenarios by their names, and ε as text.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        places = frame[PLACE].drop_duplicates().itertuples(index=False, name=None)
        self._places = {place: at for at, place in enumerate(places)}

    def __call__(self, setting: Mapping[str, Any]) -> tuple[Any, ...]:
        """The key of a table's setting."""
        name, norm = scenario(setting), str(setting["threat_norm"])
        place = self._places[tuple(setting[column] for column in PLACE)]
        known = _ORDER.index(name) if name in _ORDER else len(_ORDER)
        return place, known, str(setting["surrogate"]), norm != "linf", norm, eps_of(setting)


def _threat(group: list[Board], palette: Palette) -> Threat:
    counts = [score.seeds for score in numbers(group)]
    group = alike(group, numbers(group))
    learners = list(dict.fromkeys(name for board in group for name in board.scores))
    clean = unattacked(group)
    scenes = [Scene("clean/clean", UNATTACKED, clean.columns, clean.scores, clean)]
    for board in group:
        columns = board.columns[1:]
        rows = {name: {column: row[column] for column in columns} for name, row in board.scores.items()}
        scenes.append(Scene(scenario(board.setting), sides(board.setting), columns, rows, board))
    setting = dict(group[0].setting)
    panels = [_panel(scene, learners, palette) for scene in scenes]
    told = spread_told("bars", counts, setting["episodes"])
    if any(board.scores[name][CLEAN].seeds < row[CLEAN].seeds
           for board in group for name, row in clean.scores.items() if name in board.scores):  # fmt: skip
        told += " Without attack: each learner where it rests on the most seeds."
    return Threat(setting, threat(setting), scenes, learners, panels, told)


def _panel(scene: Scene, learners: list[str], palette: Palette) -> Panel:
    across = Scale(0.0, 100.0, _LEFT, _RIGHT)
    step = 11.0 if len(learners) <= 4 else 8.0
    dots, ticks, y = [], [], _TOP
    for column in scene.columns:
        first = y + step
        for learner in learners:
            score = scene.scores.get(learner, {}).get(column)
            if score is not None and not math.isnan(score.mean):
                y += step
                dots.append(_dot(learner, score, across, y, scene.board, palette))
        label = column if len(column) <= _LETTERS else f"{column[: _LETTERS - 1]}…"
        ticks.append(Tick(round((first + y) / 2, 1), label))
        y += step * 0.9
    bottom = y + 4
    return Panel(
        title=scene.told, told=f"Accuracy with {scene.told}, a row an attack, a dot a learner. "
        "The numbers stand in the table below.",
        width=_WIDTH, height=bottom + 40, left=_LEFT, right=_RIGHT, top=_TOP - 6, bottom=bottom,
        x_ticks=[Tick(across(value), label) for value, label in PERCENTS], y_ticks=ticks, x_label="accuracy in %",
        dots=dots, rule=across(100 / scene.board.setting["way"]), upright=True,
    )  # fmt: skip


def _dot(learner: str, score: Score, across: Scale, y: float, board: Board, palette: Palette) -> Dot:
    spread = board.spread(score)
    half = 0.0 if math.isnan(spread) else spread
    told = f"{learner}: {score.text()}" + ("" if math.isnan(spread) else f" ±{shown(spread)}")
    low, high = across(score.mean - half), across(score.mean + half)
    return Dot(learner, palette[learner], across(score.mean), round(y, 1), low, high, told)
