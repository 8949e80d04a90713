"""Panels of a figure, side by side and in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustbench_meta.figures.look import Look


def grid(
    look: Look, count: int, width: float, least: float, title: list[str], *, aspect: float = 0.72
) -> tuple[Figure, list[Axes]]:
    """A figure of so many equal panels, which share their y axis; `least` is the width in inches that one needs."""
    columns = min(count, max(1, int(width / least)))
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)
    figure = look.figure(width, rows * (aspect * min(width / columns, 3.4) + 0.2) + 0.45, title)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for spare in list(axes)[count:]:
        spare.remove()
    return figure, list(figure.axes)


def packed(
    look: Look, sizes: Sequence[int], most: float, width: float, height: float, title: list[str]
) -> tuple[Figure, list[Axes]]:
    """A figure of panels as wide as their sizes say, in rows of at most `most`, as even as can be.

    Each row is `height` inches.
    """
    rows = _rows(sizes, most)
    while max(map(sum, rows)) > max(sizes) and len(tighter := _rows(sizes, max(map(sum, rows)) - 1)) == len(rows):
        rows = tighter
    figure = look.figure(width, len(rows) * height + 0.4, title)
    places = figure.add_gridspec(len(rows), max(map(sum, rows)))
    panels: list[Axes] = []
    for down, row in enumerate(rows):
        for column, size in enumerate(row):
            start = sum(row[:column])
            axes = figure.add_subplot(places[down, start : start + size], sharey=panels[0] if panels else None)
            if column:
                axes.tick_params(labelleft=False)
            panels.append(axes)
    return figure, panels


def _rows(sizes: Sequence[int], most: float) -> list[list[int]]:
    """The sizes in rows that are filled one after the other."""
    rows: list[list[int]] = [[]]
    for size in sizes:
        if rows[-1] and sum(rows[-1]) + size > most:
            rows.append([])
        rows[-1].append(size)
    return rows
