"""The tables of results as HTML for notebooks: plain tables in the notebook's own colours, everything escaped."""

from __future__ import annotations

from html import escape

import pandas as pd

from robustbench_meta.reporting.export.sheets import Sheet, SheetCell, sheets
from robustbench_meta.reporting.terminal.layout import title
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.frames import failure_text

_DIM = "opacity:.65"
_CELL = "padding:.15em .7em"
_MOST_TABLES = 20
_MOST_FAILED = 20


def page_of(frame: pd.DataFrame, samples: Samples, failed: pd.DataFrame) -> str:
    """The tables of a leaderboard below each other, what their numbers mean, and what failed.

    Args:
        frame: the leaderboard's rows.
        samples: what each episode gave.
        failed: a row for each cell that failed.
    """
    found = list(sheets(frame, samples))
    everywhere = [note for note in found[0].notes if all(note in sheet.notes for sheet in found)] if found else []
    parts = [_table(sheet, [note for note in sheet.notes if note not in everywhere]) for sheet in found[:_MOST_TABLES]]
    if len(found) > _MOST_TABLES:
        parts.append(f"<p>and {len(found) - _MOST_TABLES} more tables: <code>print(results)</code> shows all.</p>")
    parts.append(_notes(everywhere))
    if not failed.empty:
        lines = "".join(f"<li>{escape(failure_text(row))}</li>" for row in failed.head(_MOST_FAILED).to_dict("records"))
        more = f"<p>and {len(failed) - _MOST_FAILED} more</p>" if len(failed) > _MOST_FAILED else ""
        parts.append(f"<p><b>Failed</b></p><ul>{lines}</ul>{more}")
    return f"<div>{''.join(parts) or '<p>No finished cells.</p>'}</div>"


def _table(sheet: Sheet, notes: list[str]) -> str:
    head, columns, rows = sheet.upright()
    told = "<br>".join(escape(line) for line in title(sheet.setting))
    top = "".join(f'<th scope="col" style="text-align:right;{_CELL}">{escape(name)}</th>' for name in columns)
    body = "".join(_row(name, row) for name, row in rows.items())
    caption = f'<caption style="text-align:left;color:inherit;white-space:nowrap"><b>{told}</b></caption>'
    first = f'<th scope="col" style="text-align:left;{_CELL}">{head}</th>'
    opened = f'<table style="margin-top:1em">{caption}'
    return f"{opened}<thead><tr>{first}{top}</tr></thead><tbody>{body}</tbody></table>{_notes(notes)}"


def _notes(notes: list[str]) -> str:
    lines = "<br>".join(escape(note) for note in notes)
    return f'<p style="{_DIM};max-width:60em">{lines}</p>' if notes else ""


def _row(name: str, cells: list[SheetCell]) -> str:
    drawn = "".join(f'<td style="text-align:right;{_CELL}">{_number(cell)}</td>' for cell in cells)
    return f'<tr><th scope="row" style="text-align:left;{_CELL}">{escape(name)}</th>{drawn}</tr>'


def _number(cell: SheetCell) -> str:
    if not cell.mean:
        return "–"
    mean = f"<b>{escape(cell.mean)}</b>" if cell.bold else escape(cell.mean)
    spread = f' <span style="{_DIM}">±{escape(cell.spread)}</span>' if cell.spread else ""
    return mean + spread + (" !" if cell.has_flags else "") + (" *" if cell.fewer else "")
