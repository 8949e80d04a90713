"""All figures of a results folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustbench_meta.errors import BenchError
from robustbench_meta.reporting.figures.curves import draw_curves
from robustbench_meta.reporting.figures.figure import PaperFigure, at_zero
from robustbench_meta.reporting.figures.heatmaps import draw_heatmaps
from robustbench_meta.reporting.figures.learning_curves import draw_learning
from robustbench_meta.reporting.figures.pairwise import draw_comparisons
from robustbench_meta.reporting.figures.scenario_bars import draw_scenarios
from robustbench_meta.reporting.figures.style import FigureStyle
from robustbench_meta.reporting.figures.tradeoff import draw_tradeoffs
from robustbench_meta.results.curves import curves
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.pairwise import compare_learners
from robustbench_meta.results.tables import LeaderboardTable, boards


@dataclass(frozen=True)
class FigureData:
    """What is drawn: a row a finished cell, what each episode gave, and the records."""

    frame: pd.DataFrame
    samples: Samples
    records: Sequence[Mapping[str, Any]]
    zero: bool = True
    """Whether there are figures of ε = 0 alone, where an attack changes nothing."""


def draw_figures(kinds: Iterable[str], shown: FigureData, look: FigureStyle) -> Iterator[tuple[str, list[PaperFigure]]]:
    """The figures of each kind; none where the results hold nothing for it, see `requirement`."""
    for kind in kinds:
        yield kind, list(_DRAW[kind](shown, look))


def leaves_out(kinds: Iterable[str], shown: FigureData) -> bool:
    """Whether these kinds leave something out because its ε is 0."""
    settings = shown.frame[["threat_norm", "eps"]].drop_duplicates().to_dict("records")
    return bool(set(kinds) & _AT_ONE_EPS) and not shown.zero and any(map(at_zero, settings))


def requirement(kind: str) -> str:
    """What a folder must hold for that kind of figure."""
    return _NEEDS[kind]


def _compare(shown: FigureData, look: FigureStyle) -> Iterable[PaperFigure]:
    try:
        return draw_comparisons(compare_learners(shown.frame, shown.samples), look, zero=shown.zero)
    except BenchError:  # no two learners share a setting
        return []


def _boards(shown: FigureData) -> Iterator[LeaderboardTable]:
    return (board for board in boards(shown.frame) if shown.zero or not at_zero(board.setting))


_AT_ONE_EPS = {"heatmap", "scenarios", "tradeoff", "compare"}
_DRAW: dict[str, Callable[[FigureData, FigureStyle], Iterable[PaperFigure]]] = {
    "curves": lambda shown, look: draw_curves(curves(shown.frame, shown.samples), shown.frame, look),
    "heatmap": lambda shown, look: draw_heatmaps(_boards(shown), look),
    "scenarios": lambda shown, look: draw_scenarios(_boards(shown), look),
    "tradeoff": lambda shown, look: draw_tradeoffs(_boards(shown), look),
    "learning": lambda shown, look: draw_learning(shown.frame, shown.records, look),
    "compare": _compare,
}
_NEEDS = {
    "curves": "an attack at two eps or more, as of `bench run --eps 0:0.3:7`",
    **dict.fromkeys(("heatmap", "scenarios", "tradeoff"), "a cell with an attack at an eps above 0"),
    "learning": "a learner that was meta-trained",
    "compare": "two learners in one setting, on the same episodes",
}
