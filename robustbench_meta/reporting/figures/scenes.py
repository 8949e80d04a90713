"""How the panels of scenarios share a figure: its width, the rows, and titles that keep clear of one another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from robustbench_meta.reporting.figures.figure import scene_text
from robustbench_meta.reporting.figures.layout import even_rows
from robustbench_meta.reporting.figures.style import FigureStyle
from robustbench_meta.results.tables import CLEAN, LeaderboardTable, clean_table

_GAP = 0.14
"""Inches between the titles of two panels that fill these."""
_WORD = 10
"""Letters: longer words of a title, such as a surrogate's options, are broken."""


@dataclass(frozen=True)
class Piece:
    """A panel: some columns of a board, the scenario, and whether it goes on from the panel before."""

    board: LeaderboardTable
    columns: list[str]
    scene: str


@dataclass(frozen=True)
class ScenarioLayout:
    """How wide the figure is, its panels with their titles, and in rows how many columns of bars each is wide."""

    width: float
    pieces: list[Piece]
    rows: list[list[int]]
    titles: list[str]
    natural: bool
    """No title had to be folded."""
    across: int
    """Columns of bars in the widest row."""

    @property
    def room(self) -> float:
        """Inches for the name below a column of bars."""
        return _inside(self.width) / self.across - 0.03

    def part(self, start: int, end: int) -> ScenarioLayout:
        """Some of the rows, in the same widths."""
        first, last = (sum(map(len, self.rows[:row])) for row in (start, end))
        return replace(self, pieces=self.pieces[first:last], rows=self.rows[start:end], titles=self.titles[first:last])


def planned(group: list[LeaderboardTable], learners: int, look: FigureStyle) -> ScenarioLayout:
    """In a single column if neither bars nor titles get too narrow there."""
    single, double = (_laid_out(group, learners, look.wide(needed), look) for needed in ("single", "double"))
    columns = 1 + sum(len(board.columns) - 1 for board in group)
    return single if single.natural and columns * learners <= 14 else double


def _laid_out(group: list[LeaderboardTable], learners: int, width: float, look: FigureStyle) -> ScenarioLayout:
    most = max(2, int((width - 0.4) / (0.08 * max(learners, 4))))  # narrower bars are not seen
    pieces = [Piece(clean_table(group), [CLEAN], "no attack")]
    for board in group:
        for start in range(1, len(board.columns), most):
            scene = scene_text(board.setting) + (" …" if start > 1 else "")
            pieces.append(Piece(board, board.columns[start : start + most], scene))
    counts = [len(piece.columns) for piece in pieces]
    words = (word for piece in pieces for word in piece.scene.split() if len(word) <= _WORD)
    need = max(map(look.breadth, words)) + _GAP
    most = min(most, sum(counts))
    fit = int(min(counts[1:]) * _inside(width) / need)
    if fit >= max(counts):  # panels of which none needs to be wider than its bars
        most = min(most, fit)
    wide = [max(count, math.ceil(need * most / _inside(width))) for count in counts]
    titles = [piece.scene for piece in pieces]
    for sizes in ([counts[0], *wide[1:]], wide):  # the first title may reach over the axis's labels
        rows = even_rows(sizes, most + sizes[0] - 1)
        across = max(map(sum, rows))
        unit = _inside(width) / across
        if _clear(rows, unit, [look.breadth(title) for title in titles]):
            return ScenarioLayout(width, pieces, rows, titles, True, across)
    titles = [look.fitted(title, size * unit - _GAP) for title, size in zip(titles, sizes, strict=True)]
    return ScenarioLayout(width, pieces, rows, titles, False, across)


def _inside(width: float) -> float:
    return width - 0.5


def _clear(rows: list[list[int]], unit: float, breadths: list[float]) -> bool:
    """Whether titles of such widths keep clear of one another and of the figure's edge."""
    left, found = iter(breadths), True
    for row in rows:
        end, start = -0.3, 0.0  # the axis's labels are left of the first panel
        for size in row:
            centre, half = start + size * unit / 2, next(left) / 2
            found = found and centre - half >= end
            end, start = centre + half + 0.08, start + size * unit
        found = found and end <= max(map(sum, rows)) * unit + 0.08 - _GAP / 2
    return found
