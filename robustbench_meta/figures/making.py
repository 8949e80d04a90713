"""All figures of a results folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustbench_meta.boards import boards
from robustbench_meta.comparison import duels
from robustbench_meta.curves import curves
from robustbench_meta.errors import BenchError
from robustbench_meta.figures.bars import draw_scenarios
from robustbench_meta.figures.contests import draw_duels
from robustbench_meta.figures.drawn import Drawn
from robustbench_meta.figures.heatmaps import draw_heatmaps
from robustbench_meta.figures.look import Look
from robustbench_meta.figures.over_eps import draw_curves
from robustbench_meta.figures.tradeoff import draw_tradeoffs
from robustbench_meta.figures.training import draw_learning
from robustbench_meta.samples import Samples


@dataclass(frozen=True)
class Shown:
    """What is drawn: a row a finished cell, what each episode gave, and the records."""

    frame: pd.DataFrame
    samples: Samples
    records: Sequence[Mapping[str, Any]]


def draw(kinds: Iterable[str], shown: Shown, look: Look) -> Iterator[tuple[str, list[Drawn]]]:
    """The figures of each kind; none where the results hold nothing for it, for which `needs` words the reason."""
    for kind in kinds:
        yield kind, list(_DRAW[kind](shown, look))


def needs(kind: str) -> str:
    """What a folder must hold for that kind of figure."""
    return _NEEDS[kind]


def _compare(shown: Shown, look: Look) -> Iterable[Drawn]:
    try:
        return draw_duels(duels(shown.frame, shown.samples), look)
    except BenchError:  # no two learners share a setting
        return []


_DRAW: dict[str, Callable[[Shown, Look], Iterable[Drawn]]] = {
    "curves": lambda shown, look: draw_curves(curves(shown.frame, shown.samples), look),
    "heatmap": lambda shown, look: draw_heatmaps(boards(shown.frame), look),
    "scenarios": lambda shown, look: draw_scenarios(boards(shown.frame), look),
    "tradeoff": lambda shown, look: draw_tradeoffs(boards(shown.frame), look),
    "learning": lambda shown, look: draw_learning(shown.frame, shown.records, look),
    "compare": _compare,
}
_NEEDS = {
    "curves": "an attack at two eps or more, as of `bench run --eps 0:0.3:7`",
    **dict.fromkeys(("heatmap", "scenarios", "tradeoff"), "a cell with an attack"),
    "learning": "a learner that was meta-trained",
    "compare": "two learners in one setting, on the same episodes",
}
