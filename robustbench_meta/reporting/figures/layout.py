"""Panels of a figure, side by side and in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustbench_meta.reporting.figures.style import FigureStyle


def beside(count: int, width: float, least: float) -> int:
    """How many of so many equal panels stand side by side; `least` is the width in inches that one needs."""
    rows = math.ceil(count / min(count, max(1, int(width / least))))
    return math.ceil(count / rows)


def room(count: int, width: float, least: float) -> float:
    """How wide the title of such a panel may be, in inches."""
    return (width - 0.5) / beside(count, width, least) - 0.1


def grid(
    look: FigureStyle, count: int, width: float, least: float, title: list[str], *, aspect: float = 0.72, lines: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of so many equal panels, which share their y axis, with titles of so many lines."""
    columns = beside(count, width, least)
    rows = math.ceil(count / columns)
    high = aspect * min(width / columns, 3.4) + 0.2 + look.high(lines - 1)
    figure = look.figure(width, rows * high + 0.45, title)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for spare in list(axes)[count:]:
        spare.remove()
    return figure, list(figure.axes)


def packed(
    look: FigureStyle, rows: Sequence[Sequence[int]], across: int, width: float, height: float, title: list[str]
) -> tuple[Figure, list[Axes]]:
    """A figure of panels as wide as their sizes say, in these rows of at most `across`; each is `height` inches."""
    figure = look.figure(width, len(rows) * height + 0.4, title)
    places = figure.add_gridspec(len(rows), across)
    panels: list[Axes] = []
    for down, row in enumerate(rows):
        for column, size in enumerate(row):
            start = sum(row[:column])
            axes = figure.add_subplot(places[down, start : start + size], sharey=panels[0] if panels else None)
            if column:
                axes.tick_params(labelleft=False)
            panels.append(axes)
    return figure, panels


def even_rows(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Sizes in rows of at most `most`, or of one, as few as can be, and as even."""
    rows = _rows(sizes, most)
    while max(map(sum, rows)) > max(sizes) and len(tighter := _rows(sizes, max(map(sum, rows)) - 1)) == len(rows):
        rows = tighter
    return rows


def _rows(sizes: Sequence[int], most: int) -> list[list[int]]:
    rows: list[list[int]] = [[]]
    for size in sizes:
        if rows[-1] and sum(rows[-1]) + size > most:
            rows.append([])
        rows[-1].append(size)
    return rows
