"""Tables of GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from robustbench_meta.reporting.table import TableCell, export_table
from robustbench_meta.reporting.wording import export_notes, title
from robustbench_meta.results.tables import CLEAN, WORST, LeaderboardTable

_PLAIN = re.compile(r"[^`|\\]+")
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~&$@\"^]|:(?=\S)|(?<=www)\.", re.IGNORECASE)


def code(name: str) -> str:
    """A name as a span of code, where nothing in it is read as Markdown or HTML, nor as a mention or a link."""
    text = " ".join(name.split()) or "–"
    return f"`{text}`" if _PLAIN.fullmatch(text) else escape_markdown(text)


def escape_markdown(text: str) -> str:
    """Text in which GitHub finds no markup, HTML, link or emoji: the signs that make them, as numbers."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def markdown(boards: Iterable[LeaderboardTable], *, turned: bool = False) -> str:
    """The tables, each below its setting and above what its numbers mean; `turned` makes attacks the rows."""
    return "\n".join(_table(board, turned) for board in boards)


def _table(board: LeaderboardTable, turned: bool) -> str:
    table = export_table(board, turned=turned)
    lines = [
        f"**{escape_markdown(' · '.join(title(board.setting)))}**",
        "",
        _row([*table.heads, *map(_name, table.columns)]),
        _row(["---", *["---:"] * len(table.columns)]),
        *(_row([*map(_name, names), *map(_number, cells)]) for names, cells in table.rows),
        "",
        escape_markdown(" ".join(export_notes(board))),
        "",
    ]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(name: str) -> str:
    return name if name in {CLEAN, WORST} else code(name)


def _number(cell: TableCell) -> str:
    mean = f"**{cell.text}**" if cell.bold else cell.text
    spread = f" ±{cell.spread}" if cell.spread else ""
    return mean + spread + (" !" if cell.flags else "") + (r" \*" if cell.fewer else "")
