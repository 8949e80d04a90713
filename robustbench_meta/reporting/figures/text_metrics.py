"""How wide text is, measured in its font, and text in lines that fit."""

from __future__ import annotations

import re
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

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
