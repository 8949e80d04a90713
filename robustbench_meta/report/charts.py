"""Where things stand in a chart, in the units of its SVG: scales, ticks, lines with bands, dots with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

COLORS, MARKERS, DASHES = 7, 8, 4
"""How many of each the style sheet and the page's symbols have."""
PERCENTS = [(float(value), f"{value}") for value in range(0, 101, 20)]


class Style(NamedTuple):
    """What a learner is drawn with in the whole page: by colour, and by marker and dashes for those who see none."""

    color: int
    marker: int
    dash: int


class Palette:
    """The same style for one learner everywhere, in the order in which they are named."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._places = {name: place for place, name in enumerate(dict.fromkeys(names))}

    def __getitem__(self, name: str) -> Style:
        """The style of a learner; one that was not named before gets the next."""
        place = self._places.setdefault(name, len(self._places))
        return Style(place % COLORS, place % MARKERS, (place + place // COLORS) % DASHES)


class Scale(NamedTuple):
    """From values to places along an axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value, to a tenth of a unit; values beyond the ends stand at the ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


class Tick(NamedTuple):
    """A label on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A learner's line."""

    name: str
    style: Style
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    """The outline of the interval around it."""
    marked: Sequence[tuple[float, float]] = ()
    """Where markers stand."""
    faint: bool = False


@dataclass(frozen=True)
class Dot:
    """A learner's number, with its interval."""

    name: str
    style: Style
    x: float
    y: float
    low: float
    high: float
    told: str


@dataclass(frozen=True)
class Panel:
    """One chart. Lengths are in units of its view box, which are pixels where there is room."""

    title: str
    told: str
    """What somebody who cannot see it should know."""
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    """The frame that the data lie in."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    rule: float | None = None
    """A dotted line across all else: at chance, or at no difference."""
    upright: bool = False
    """Whether the rule is vertical, and the y axis has labels of rows in place of numbers."""


def thinned(ticks: Sequence[Tick], room: float, letter: float = 6.2) -> list[Tick]:
    """The ticks whose labels do not run into each other; the first and the last stay."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= room + letter * (len(tick.label) + len(kept[-1].label)) / 2:
            kept.append(tick)
    if kept and kept[-1] != ticks[-1]:
        kept[-1 if len(kept) > 1 else 0 :] = [ticks[-1]]
    return kept


def rounded(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two values."""
    ticks = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]


Points = list[tuple[float, float]]


def outline(x: Sequence[float], y: Sequence[float], half: Sequence[float], across: Scale, up: Scale) -> Points:
    """The outline of a band of ±half around a line; empty where no half is known."""
    if not any(math.isfinite(each) for each in half):
        return []
    halves = [each if math.isfinite(each) else 0.0 for each in half]
    upper = [(across(a), up(b + h)) for a, b, h in zip(x, y, halves, strict=True)]
    lower = [(across(a), up(b - h)) for a, b, h in zip(x, y, halves, strict=True)]
    return upper + lower[::-1]
