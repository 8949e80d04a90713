"""What all tables are drawn with: a table that is cut where the terminal ends, its title, and folded labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_SIDES = {"clean": "clean", "adv": "attacked", "poisoned": "poisoned"}
WIDE = 120
"""From so many columns on a terminal is wide."""
_GAP = 3
"""Blanks between two columns."""


def draw_table(first: Mapping[str, Mapping[str, str]], cells: Mapping[str, Mapping[str, Text]]) -> Table:
    """A table whose first columns say what each row is."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    for column in first:
        drawn.add_column(column, no_wrap=True)
    for column in cells:
        drawn.add_column(folded(column, 12), justify="right", no_wrap=True)
    for row in next(iter(first.values())):
        named = (Text(shown[row]) for shown in first.values())
        drawn.add_row(*named, *(column[row] for column in cells.values()))
    return drawn


def portions(
    first: Mapping[str, Mapping[str, str]], cells: Mapping[str, Mapping[str, Text]], width: int
) -> Iterator[list[str]]:
    """The columns in portions that fit beside the first ones."""
    beside = sum(max(_widest(text) for text in [column, *shown.values()]) + _GAP for column, shown in first.items())
    chunk: list[str] = []
    used = beside - _GAP
    for column, texts in cells.items():
        need = _GAP + max(_widest(folded(column, 12)), *(_widest(text.plain) for text in texts.values()))
        if chunk and used + need > width:
            yield chunk
            chunk, used = [], beside - _GAP
        chunk.append(column)
        used += need
    yield chunk


def title(told: Mapping[str, Any]) -> list[str]:
    """Two lines: the data, tasks and recipe; the threat model, what is attacked, and the inference."""
    first = f"{told['dataset']} · {told['way']}-way {told['shot']}-shot · {told['backbone']}"
    first += f" · {told['meta_steps']:,} meta-steps"
    if told["precision"] != "float32":
        first += f" · {told['precision']}"
    inference = f"{told['inference']} ({'no' if told['norm'] == 'none' else told['norm']} norm)"
    if told["threat_norm"] == "none":
        return [first, f"no attack · {inference}"]
    return [first, f"{threat(told)} · {sides(told)} · {inference}"]


def threat(told: Mapping[str, Any]) -> str:
    """`L∞ ε = 0.1`; `L∞ over ε` where no single one is meant."""
    norm = norm_name(told["threat_norm"])
    return f"{norm} ε = {told['eps']}" if "eps" in told else f"{norm} over ε"


def norm_name(norm: str) -> str:
    """`L∞` for `linf`."""
    return _NORMS.get(norm, norm)


def sides(told: Mapping[str, Any]) -> str:
    """What is done to support and query: `clean support, attacked query`."""
    query = f"{_SIDES[told['query']]} query" if told["query"] != "transfer" else f"query from {told['surrogate']}"
    return f"{_SIDES[told['support']]} support, {query}"


def folded(label: str, width: int) -> str:
    """A label broken after ':' and ',' and at blanks, where it is longer than `width`."""
    lines = [""]
    for piece in re.findall(r"[^:, ]+[:, ]*|[:, ]+", label):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _widest(text: str) -> int:
    return max(len(line) for line in text.split("\n"))
