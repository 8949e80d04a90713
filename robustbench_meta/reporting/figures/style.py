"""How all figures look: size, fonts, colours that colour-blind readers tell apart; matplotlib's own state is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from robustbench_meta.reporting.figures.sizes import COLUMNS, TALLEST
from robustbench_meta.reporting.wording import folded

Line = Literal["-", "--", "-.", ":"]
_FAMILIES = {"sans": "DejaVu Sans", "serif": "STIXGeneral"}
"""Both come with matplotlib, so that a figure is the same everywhere; STIX is cut to go with Times."""
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00"]
"""Okabe and Ito (2008), without the yellow, which is faint on paper."""
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
_LINES: list[Line] = ["-", "--", "-.", ":"]
_HATCHES = ["", "//////", "......", "xxxxxx"]
"""Of bars, once the colours are used up."""
GREY = "#777777"


class LearnerStyle(NamedTuple):
    """What a learner is drawn with: by colour, and by a marker that tells it apart without."""

    color: str
    marker: str
    line: Line
    hatch: str


class Palette:
    """The same style for one learner in all figures, in the order in which they are named."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._places = {name: place for place, name in enumerate(dict.fromkeys(names))}

    def __getitem__(self, name: str) -> LearnerStyle:
        """The style of a learner; one that was not named before gets the next."""
        place = self._places.setdefault(name, len(self._places))
        line = _LINES[place % 4] if place < len(COLORS) else _LINES[(place + place // len(COLORS)) % 4]
        return LearnerStyle(
            COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], line, _HATCHES[place // len(COLORS) % 4]
        )


@dataclass(frozen=True)
class FigureStyle:
    """What the user chose: width in inches (None: what a figure needs), size of the type in points, its kind."""

    width: float | None = None
    font_size: float = 8.0
    font: str = "sans"
    title: bool = False
    palette: Palette = field(default_factory=Palette)

    @property
    def small(self) -> float:
        """The size of the type inside figures."""
        return max(5.0, self.font_size - 1)

    def inches(self, letters: int, size: float | None = None) -> float:
        """About how wide so many letters are."""
        return letters * 0.6 * (size or self.font_size) / 72

    def wide(self, needed: str) -> float:
        """The width as chosen, or else that of the column that a figure needs."""
        return COLUMNS[needed] if self.width is None else self.width

    def figure(self, width: float, height: float, title: list[str]) -> Figure:
        """An empty figure of exactly this width; its title is drawn if titles are wanted."""
        lines = [part for line in title if self.title for part in self.fitted(line, width - 0.1).split("\n")]
        extra = len(lines) * 1.4 * self.font_size / 72
        room = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.04)
        drawn = Figure(figsize=(width, min(height + extra, TALLEST)), layout=room)
        if lines:
            drawn.suptitle("\n".join(lines), fontsize=self.font_size)
        return drawn

    def shown(self, label: str, width: int = 24) -> str:
        """A label, folded, cut after some four lines; a sign stands for each letter that the font has not."""
        label = label if len(label) <= 4 * width else f"{label[: 4 * width - 1]}…"
        lines = [
            line[start : start + 2 * width]
            for line in folded(label, width).split("\n")
            for start in range(0, max(1, len(line)), 2 * width)
        ]
        return self._known("\n".join(lines))

    def fitted(self, text: str, room: float) -> str:
        """A title in lines that are no wider than `room` inches."""
        return fitted(self._known(text), room, _FAMILIES[self.font], self.font_size)

    def breadth(self, text: str) -> float:
        """How wide a title is, in inches."""
        return max(breadth(line, _FAMILIES[self.font], self.font_size) for line in self._known(text).split("\n"))

    def high(self, lines: int) -> float:
        """How high so many lines are, in inches."""
        return 1.2 * lines * self.font_size / 72

    def across(
        self, axes: Axes, places: Iterable[float], names: Sequence[str], room: float, reach: float = math.inf
    ) -> None:  # fmt: skip
        """Names below an axis, `room` inches apart: folded where that makes them fit, else aslant.

        They stand on end where one would then reach more than `reach` inches left of where the first's place begins.
        """
        labels = self._upright(names, room)
        if labels:
            axes.set_xticks(list(places), labels)
            return
        labels = [self.shown(name, 18) for name in names]
        if self._on_end(labels, room, reach):
            axes.set_xticks(list(places), labels, rotation=90)
        else:
            axes.set_xticks(list(places), labels, rotation=40, ha="right", rotation_mode="anchor")

    def below(self, names: Sequence[str], room: float, reach: float = math.inf) -> float:
        """About how high the names are that `across` writes, in inches."""
        upright = self._upright(names, room)
        labels = upright or [self.shown(name, 18) for name in names]
        most, line = max(label.count("\n") + 1 for label in labels), 1.2 * self.small / 72
        if upright:
            return 0.1 + most * line
        if self._on_end(labels, room, reach):
            return 0.1 + self._longest(labels)
        return 0.1 + 0.65 * self._longest(labels) + 0.8 * most * line

    def _on_end(self, labels: Sequence[str], room: float, reach: float) -> bool:
        return any(0.77 * self._longest([label]) - (place + 0.5) * room > reach for place, label in enumerate(labels))

    def _longest(self, labels: Sequence[str]) -> float:
        return self.inches(max(len(line) for label in labels for line in label.split("\n")), self.small)

    def _known(self, text: str) -> str:
        """Text with a sign for each letter that the font has not."""
        known = letters(_FAMILIES[self.font])
        return "".join(letter if letter == "\n" or ord(letter) in known else "\ufffd" for letter in text)

    def _upright(self, names: Sequence[str], room: float) -> list[str]:
        """The names in lines that fit `room` inches; none if they do not."""
        most = int(room / self.inches(1, self.small))
        labels = [self.shown(name, max(4, most)) for name in names]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        return labels if longest <= most else []

    def axis_labels(self, figure: Figure, x: str, y: str) -> None:
        """What all panels show along their axes; empty: nothing is written."""
        for write, text in ((figure.supxlabel, x), (figure.supylabel, y)):
            if text:
                write(text, fontsize=self.font_size)

    def legend(self, figure: Figure, handles: dict[str, Line2D]) -> None:
        """The learners above the panels, in as many columns as fit; the figure grows by what is more than a line."""
        labels = [self.shown(name, 40) for name in handles]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        fit = max(1, int(figure.get_figwidth() / (self.inches(longest) + 0.45)))
        rows = math.ceil(len(labels) / fit)
        high = rows * max(label.count("\n") + 1 for label in labels)
        figure.set_figheight(min(TALLEST, figure.get_figheight() + (high - 1) * 1.35 * self.font_size / 72))
        title = figure.get_suptitle()
        if title:  # the legend would be drawn over it
            figure.suptitle("").set_in_layout(False)
        figure.legend(
            list(handles.values()), labels, loc="outside upper center", ncols=math.ceil(len(labels) / rows),
            title=title or None, frameon=False, borderpad=0, columnspacing=1.2, handletextpad=0.5, handlelength=2.2,
        )  # fmt: skip

    def handle(self, name: str) -> Line2D:
        """What stands for a learner in a legend."""
        style = self.palette[name]
        return Line2D([], [], color=style.color, marker=style.marker, linestyle=style.line, markersize=3.5)

    @contextmanager
    def styled(self) -> Iterator[None]:
        """Inside it matplotlib draws and saves as we want it, whatever the user's settings; then they are back."""
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update({
                "font.family": [_FAMILIES[self.font]], "font.size": self.font_size,
                "axes.titlesize": self.font_size, "axes.labelsize": self.font_size, "legend.fontsize": self.font_size,
                "legend.title_fontsize": self.font_size,
                "xtick.labelsize": self.small, "ytick.labelsize": self.small, "figure.titlesize": self.font_size,
                "text.parse_math": False,  # names may hold $, _ and ^
                "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "robustbench_meta",
                "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5,
                "ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2,
                "lines.markersize": 3.5, "hatch.linewidth": 0.5, "axes.titlepad": 4, "axes.labelpad": 2,
            })  # fmt: skip
            yield


def percents(axes: Axes) -> None:
    """A y axis of accuracies, 0 to 100, with a faint grid."""
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    faint_grid(axes, "y")


def chance(axes: Axes, way: int) -> None:
    """A dotted line at the accuracy of guessing."""
    axes.axhline(100 / way, color=GREY, linewidth=0.8, linestyle=":")


def faint_grid(axes: Axes, axis: Literal["x", "y", "both"] = "both") -> None:
    """Grid lines behind what is drawn."""
    axes.grid(axis=axis, color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)


# -- widths of text ---------------------------------------------------------------------------------

_HINTING = 1.03
"""Letters on a grid of pixels may stand a little further apart."""


@cache
def letters(family: str) -> frozenset[int]:
    """The code points that a font has."""
    return frozenset(get_font(findfont(FontProperties(family=family))).get_charmap())


def breadth(text: str, family: str, size: float) -> float:
    """How wide a line of text is, in inches; the font must have its letters."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(family=family, size=size), False)
    return _HINTING * float(width) / 72


def fitted(text: str, room: float, family: str, size: float, most: int = 6) -> str:
    """Text in lines no wider than `room` inches: broken at blanks, after ':' and ',', and inside words if it must be.

    Args:
        text: lines that are broken where they are too wide.
        room: a letter stands in any.
        family: of the font, which must have the letters.
        size: of the type in points.
        most: lines; what is more is cut.
    """
    lines = [part for line in text.split("\n") for part in _broken(line, room, family, size)]
    if len(lines) <= most:
        return "\n".join(lines)
    last = lines[most - 1]
    while len(last) > 1 and breadth(f"{last}…", family, size) > room:
        last = last[:-1]
    return "\n".join([*lines[: most - 1], f"{last}…"])


def _broken(line: str, room: float, family: str, size: float) -> list[str]:
    lines = [""]
    for piece in re.findall(r"[^:, ]+[:, ]*|[:, ]+", line):
        if lines[-1] and breadth((lines[-1] + piece).rstrip(), family, size) > room:
            lines.append("")
        lines[-1] += piece
        while len(word := lines[-1].rstrip()) > 1 and breadth(word, family, size) > room:
            cut = next((n for n in range(len(word) - 1, 1, -1) if breadth(word[:n], family, size) <= room), 1)
            lines[-1:] = [word[:cut], lines[-1][cut:]]
    return [each.rstrip() for each in lines]
