"""The figures of `bench plot` within the page: as inline SVG, in the page's colours and type."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

from robustbench_meta.reporting.figures import style as paper
from robustbench_meta.reporting.figures.figure import PaperFigure

_SIZE = 9.0
"""Of the type, in points: 12 pixels."""
_THEME = {
    **{color.lower(): f"var(--c{place})" for place, color in enumerate(paper.COLORS)},
    "#ffffff": "var(--bg)", "#000000": "var(--ink)", "#222222": "var(--ink)", "#dddddd": "var(--grid)",
    paper.GREY: "var(--soft)",
}  # fmt: skip
_NAME = re.compile(r"\{[^}]*\}")


class LegendEntry(NamedTuple):
    """What stands for a learner outside of figures: one of the colours and markers of the page."""

    color: int
    marker: int


class Drawings:
    """Puts figures into one page, in which each learner looks the same everywhere.

    Args:
        names: of the learners, in the order in which they get colours.
    """

    def __init__(self, names: Iterable[str]) -> None:
        known = list(dict.fromkeys(names))
        self.look = paper.FigureStyle(font_size=_SIZE, palette=paper.Palette(known))
        self.palette = {
            name: LegendEntry(place % len(paper.COLORS), place % len(paper.MARKERS)) for place, name in enumerate(known)
        }
        self._count = 0

    def embed(self, drawn: PaperFigure) -> Markup:
        """A figure as a part of the page: with ids of its own, and no inline styles, which its policy forbids."""
        self._count += 1
        file = io.StringIO()
        with self.look.styled():
            drawn.figure.savefig(file, format="svg", metadata={"Date": None})
        root = ElementTree.fromstring(file.getvalue())  # matplotlib wrote it
        used, own = set(re.findall(r"#([^\s\"')]+)", file.getvalue())), f"f{self._count}-"
        for element in root.iter():
            told = {_NAME.sub("", key): value for key, value in element.attrib.items() if key != "id" or value in used}
            styles = [part.partition(":") for part in told.pop("style", "").split(";") if part]
            told |= {name.strip(): value.strip() for name, _, value in styles if name.strip() != "font-family"}
            element.tag, element.attrib = (
                _NAME.sub("", element.tag),
                {
                    key: f"{own}{value}"
                    if key == "id"
                    else _THEME.get(value, re.sub(r"^(url\()?#", rf"\1#{own}", value))
                    for key, value in told.items()
                },
            )
            element.text, element.tail = (element.text or "").strip() or None, None
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag in {"metadata", "style"}:
                    parent.remove(child)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        root.attrib |= {
            "width": f"{width * 4 / 3:.0f}", "height": f"{height * 4 / 3:.0f}", "role": "img", "class": "drawn",
            "aria-label": drawn.title, "stroke-linejoin": "round",
        }  # fmt: skip
        caption = ElementTree.Element("desc")
        caption.text = drawn.caption
        root.insert(0, caption)
        return Markup(ElementTree.tostring(root, encoding="unicode"))  # escaped by ElementTree
