"""The leaderboard as data: CSV as in the results folder, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta import __version__
from robustbench_meta.results.csv_safety import harmless_frame
from robustbench_meta.results.curves import Curve, to_frame

FORMAT = 1
"""Version of the JSON: raised when a field goes or changes its meaning; new fields may come without."""


def csv(frame: pd.DataFrame) -> str:
    """As `leaderboard.csv`."""
    return str(harmless_frame(frame).to_csv(index=False, lineterminator="\n"))


def json_text(frame: pd.DataFrame, curves: Sequence[Curve]) -> str:
    """`leaderboard` and `curves`: a list of objects with the columns of the two CSVs, null where those are empty."""
    told = {
        "format": FORMAT, "robustbench_meta": __version__, "leaderboard": records(frame),
        "curves": records(to_frame(curves)),
    }  # fmt: skip
    return json.dumps(told, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain data: null for what is missing or no finite number."""
    columns = [str(column) for column in frame.columns]
    return [dict(zip(columns, map(_plain, row), strict=True)) for row in frame.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | int):
        return value
    if pd.isna(value) or not np.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
