"""Means and intervals over episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit


def mean_and_ci95(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean over episodes and half the width of its 95 % interval (Student's t, n−1 degrees of freedom).

    The half-width of a single value is NaN: there is no spread to take it from.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        return float(data.mean()), float("nan")
    standard_error = data.std(ddof=1) / np.sqrt(data.size)
    return float(data.mean()), float(stdtrit(data.size - 1, 0.975) * standard_error)


def worst_decile(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the worst tenth of the episodes (at least one)."""
    data = np.sort(np.asarray(values, dtype=np.float64))
    return float(data[: max(1, round(data.size / 10))].mean())
