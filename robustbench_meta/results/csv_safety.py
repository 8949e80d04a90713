"""Text for CSV files that spreadsheets open: a cell that begins like a formula would be run as one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pandas as pd

Cell = TypeVar("Cell")
_START = re.compile(r"(^|[;,|\t\r\n])([\x00-\x08\x0b\x0c\x0e-\x20\"\u00a0\u200b\ufeff]*)([=+\-@＝＋－＠])")
"""Of what may become a cell of its own: the text, or what follows what some spreadsheet takes for a separator."""
_NUMBER = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_NUMBERS = re.compile(rf"[\[(]?{_NUMBER}([,;/ ]+{_NUMBER})*[\])]?")


def harmless(cell: Cell) -> Cell | str:
    """A cell of a CSV, with an apostrophe before all that a spreadsheet would run.

    That is what begins with = + - @ (or their full-width forms), at the start of a text or after a separator, quote or
    space inside it, and any text that begins with a tab or a line's end (OWASP, "CSV Injection"). Numbers, also where
    they are written as text, and what is no text stay as they are; twice does no more than once.
    """
    if not isinstance(cell, str) or _NUMBERS.fullmatch(cell):
        return cell
    text = _START.sub(r"\1\2'\3", cell)
    return f"'{text}" if text[:1] in ("\t", "\r", "\n") else text


def harmless_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy whose texts, and the names of whose columns, are harmless; numbers are as they were."""
    copy = frame.copy()
    for column in copy.select_dtypes(exclude=["number", "bool"]):
        copy[column] = copy[column].map(harmless)
    copy.columns = copy.columns.map(harmless)
    return copy
