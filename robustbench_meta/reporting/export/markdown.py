"""Tables of GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from robustbench_meta.reporting.export.sheets import Sheet, SheetCell
from robustbench_meta.reporting.terminal.layout import title

_PLAIN = re.compile(r"[^`|\\]+")


def code(name: str) -> str:
    """A name as a span of code, where nothing in it is read as Markdown or HTML, nor as a mention or a link."""
    text = " ".join(name.split()) or "–"
    return f"`{text}`" if _PLAIN.fullmatch(text) else escape_markdown(text)


_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~&$@\"^]|:(?=\S)|(?<=www)\.", re.IGNORECASE)


def escape_markdown(text: str) -> str:
    """Text in which GitHub finds no markup, HTML, link or emoji: the signs that make them, as numbers."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def markdown(found: Iterable[Sheet], *, turned: bool = False) -> str:
    """The tables, each below its setting and above what its numbers mean; `turned` makes attacks the rows."""
    return "\n".join(_table(sheet, turned) for sheet in found)


def _table(sheet: Sheet, turned: bool) -> str:
    first, columns, rows = sheet.turned() if turned else sheet.upright()
    lines = [
        f"**{escape_markdown(' · '.join(title(sheet.setting)))}**",
        "",
        _row([first, *map(_name, columns)]),
        _row(["---", *["---:"] * len(columns)]),
        *(_row([_name(name), *map(_number, row)]) for name, row in rows.items()),
        "",
        escape_markdown(" ".join(sheet.notes)),
        "",
    ]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(name: str) -> str:
    return name if name in {"clean", "worst case"} else code(name)


def _number(cell: SheetCell) -> str:
    if not cell.mean:
        return "–"
    mean = f"**{cell.mean}**" if cell.bold else cell.mean
    spread = f" ±{cell.spread}" if cell.spread else ""
    return mean + spread + (" !" if cell.has_flags else "") + (r" \*" if cell.fewer else "")
