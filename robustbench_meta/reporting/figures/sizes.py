"""Sizes of figures, read from the command line: the widths that papers have."""

from __future__ import annotations

import math
import re

from robustbench_meta.errors import BenchError

COLUMNS = {"single": 3.25, "text": 5.5, "double": 6.75}
"""Inches: a column of ICML's two, which fits those of IEEE and Elsevier; NeurIPS' and ICLR's text; both columns."""
TALLEST = 8.5
"""Inches: what a page leaves besides a caption."""
_UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}


def parse_width(text: str | None) -> float | None:
    """`single`, `text`, `double`, or a length such as `8.6cm`, in inches; None for None: what a figure needs.

    Raises:
        BenchError: it is neither, or not between 1 and 40 inches.
    """
    if text is None or text in COLUMNS:
        return None if text is None else COLUMNS[text]
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?(in|cm|mm|pt)", text.strip())
    inches = float(found[1]) * _UNITS[found[2]] if found else math.nan
    if not 1 <= inches <= 40:
        raise BenchError(
            f"invalid --width '{text}': expected {', '.join(COLUMNS)}, or a length from 1in to 40in, as in 8.6cm, "
            "86mm, 3.4in or 246pt"
        )
    return inches
