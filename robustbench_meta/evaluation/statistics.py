"""Means, intervals and tests over episodes and over seeds: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import comb, stdtr, stdtrit
from scipy.stats import ttest_1samp, ttest_ind_from_stats

LEVEL = 0.05
"""Two learners whose p-values are below it are told apart."""
SURE = 0.01
"""One-sided level at which the mean of differences in pairs counts as above 0: a flag rests on it."""
_ROUNDING = 1e-9
"""Accuracies that differ by less are equal: shares of fewer than 10⁶ queries differ by more."""


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


def above(values: np.ndarray, bound: float, level: float = SURE) -> bool:
    """Whether the mean over episodes is above a bound, surely: a one-sided t-test.

    Values that are all the same, but for rounding, have no variance to test with: then by the sign test, for which
    seven episodes are the fewest at 1 %.
    """
    if len(values) < 2 or float(values.mean()) <= bound:
        return False
    if float(np.ptp(values)) < _ROUNDING:
        return float(values.mean()) > bound + _ROUNDING and bool(0.5 ** len(values) < level)
    return bool(ttest_1samp(values, bound, alternative="greater").pvalue < level)


class Paired(NamedTuple):
    """Two learners on the same episodes: the mean difference, half of its 95 % interval, and the two-sided p-value."""

    difference: float
    ci95: float
    p: float


def paired(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Paired:
    """The paired t-test of first − second, whose values belong to the same episodes in the same order.

    Where all differences are equal there is no variance for a t-test to rest on. Then p is that of the exact
    sign-flip test: 1 if they are 0, else 2^(1−n); so a single episode has p = 1.

    Raises:
        ValueError: the two are of different lengths, or empty.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1 or one.size == 0:
        raise ValueError(f"paired values must be as many, and not none: got shapes {one.shape} and {two.shape}")
    differences = one - two
    mean, ci95 = mean_and_ci95(differences)
    if np.ptp(differences) < _ROUNDING:
        return Paired(mean, ci95, 1.0 if abs(mean) < _ROUNDING else 2.0 ** (1 - one.size))
    standard_error = differences.std(ddof=1) / np.sqrt(one.size)
    return Paired(mean, ci95, float(2 * stdtr(one.size - 1, -abs(mean) / standard_error)))


def welch(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of Welch's t-test between two learners' means of each seed; NaN with fewer than 2 of either.

    Where neither learner's seeds differ among themselves there is no variance, and p is that of the exact permutation
    test: 1 if the learners are equal, else one over the number of ways to share out the seeds (two, if as many each).
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(one.size, two.size) < 2:
        return float("nan")
    if max(np.ptp(one), np.ptp(two)) < _ROUNDING:
        ways = float(comb(one.size + two.size, one.size))
        return 1.0 if abs(one[0] - two[0]) < _ROUNDING else (2 if one.size == two.size else 1) / ways
    told = [(values.mean(), values.std(ddof=1), values.size) for values in (one, two)]
    return float(ttest_ind_from_stats(*told[0], *told[1], equal_var=False).pvalue)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values, in the order given: below α for what Holm's step-down procedure (1979) rejects at α.

    The i-th smallest of m is multiplied by m−i+1; none is less than one before it, nor more than 1. NaN stays NaN and
    does not count as a comparison.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    order = np.argsort(given)[: int(np.isfinite(given).sum())]  # NaN comes last
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def separated(episodes_p: float, seeds_p: float) -> bool:
    """Whether two learners are told apart.

    The corrected p-value over episodes must be below 5 %, and where both have several seeds the p-value over seeds,
    too: a difference that another seed may undo is luck in training.

    Args:
        episodes_p: of `paired`, corrected by `holm`; NaN never separates.
        seeds_p: of `welch`; NaN where a learner has one seed, and then it does not count.
    """
    return bool(episodes_p < LEVEL and (np.isnan(seeds_p) or seeds_p < LEVEL))
