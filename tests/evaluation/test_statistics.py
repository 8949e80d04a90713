"""Intervals and tests against scipy, textbooks and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustbench_meta.evaluation.statistics import above, holm, mean_and_ci95, paired, separated, welch

RNG = np.random.default_rng(20260101)


def episodes(mean, count, queries, rng, spread=12.0):
    """Accuracies of episodes: queries are right with a chance that differs from task to task (beta-binomial)."""
    chance = rng.beta(mean * spread, (1 - mean) * spread, size=count)
    return rng.binomial(queries, chance, size=count) / queries


@pytest.mark.parametrize("count", [2, 3, 30, 600])
def test_the_paired_test_is_scipys(count):
    one, two = episodes(0.6, count, 25, RNG), episodes(0.5, count, 25, RNG)
    expected = stats.ttest_rel(one, two)
    found = paired(one, two)
    low, high = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(one - two))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.difference - found.ci95, found.difference + found.ci95) == pytest.approx((low, high))


def test_pairing_counts_only_what_differs():
    # Hard and easy episodes move both learners alike: apart, the intervals overlap widely; in pairs, 2 points are sure.
    hardness = RNG.uniform(0.2, 0.9, size=200)
    ahead = hardness + 0.02 + RNG.normal(0, 0.01, size=200)
    assert paired(ahead, hardness).p < 1e-12
    assert stats.ttest_ind(ahead, hardness).pvalue > 0.1


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=2, max_size=40))
def test_swapping_the_learners_turns_the_sign_and_nothing_else(pairs):
    one, two = (np.array(side) / 25 for side in zip(*pairs, strict=True))
    there, back = paired(one, two), paired(two, one)
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)
    assert (there.ci95, there.p) == pytest.approx((back.ci95, back.p), abs=1e-12)
    assert 0 <= there.p <= 1


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_without_variance_p_is_that_of_flipping_signs(count):
    # Under the hypothesis each sign is a fair coin: all n agree, one way or the other, with chance 2 · 2^−n.
    one = np.full(count, 0.6)
    assert paired(one, one).p == 1
    assert paired(one, one - 0.1).p == pytest.approx(2 * 0.5**count)
    assert np.isnan(paired(one, one).ci95) == (count == 1)


def test_rounding_is_no_variance():
    # Differences of 0.2 each on paper, and not quite in floating point: a t-test would see 10¹⁵ standard errors.
    one, two = np.array([0.3, 0.8, 0.9]), np.array([0.1, 0.6, 0.7])
    assert 0 < np.ptp(one - two) < 1e-15
    assert paired(one, two).p == pytest.approx(1 / 4)


def test_pairs_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        paired([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="not none"):
        paired([], [])


def test_holm_on_a_worked_example():
    # The example of Wikipedia's article: p = .01, .04, .03, .005 of m = 4. Sorted: .005·4 = .02, .01·3 = .03,
    # .03·2 = .06, and .04·1 = .04, which is raised to the .06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_leaves_out_what_is_unknown():
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    found = holm([0.01, np.nan, 0.03])
    assert found[[0, 2]] == pytest.approx([0.02, 0.03])
    assert np.isnan(found[1])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_definition_rejects(p_values, level):
    # Holm 1979: go up the sorted p-values and stop at the first that is above α/(m−i+1).
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = set()
    for step, index in enumerate(order):
        if p_values[index] * (len(order) - step) > level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_welch_is_scipys():
    one, two = [0.41, 0.44, 0.40], [0.52, 0.47]
    assert welch(one, two) == pytest.approx(stats.ttest_ind(one, two, equal_var=False).pvalue)


@pytest.mark.filterwarnings("error")
def test_one_learner_whose_seeds_agree_is_no_obstacle():
    # Then t = 0.2 over the standard error of the other, with its 3 degrees of freedom.
    two = [0.7, 0.7, 0.5, 0.5]
    deviation = np.std(two, ddof=1) / 2
    assert welch([0.4, 0.4 + 1e-17], two) == pytest.approx(2 * stats.t.sf(0.2 / deviation, 3))


def test_welch_needs_two_seeds_of_each_and_some_variance():
    assert np.isnan(welch([0.4], [0.5, 0.6]))
    assert welch([0.4, 0.4], [0.4, 0.4]) == 1
    # 2 and 2 of 4 seeds can be shared out in 6 ways, of which 2 are as extreme; 2 and 3 of 5 in 10, of which 1 is.
    assert welch([0.4, 0.4], [0.5, 0.5]) == pytest.approx(2 / 6)
    assert welch([0.4, 0.4], [0.5, 0.5, 0.5]) == pytest.approx(1 / 10)
    two_sided = stats.permutation_test(
        ([0.4, 0.4], [0.5, 0.5, 0.5]), lambda one, two: abs(np.mean(one) - np.mean(two)), alternative="greater"
    )
    assert welch([0.4, 0.4], [0.5, 0.5, 0.5]) == pytest.approx(two_sided.pvalue)


@pytest.mark.parametrize(
    ("episodes_p", "seeds_p", "expected"),
    [(0.01, np.nan, True), (0.01, 0.01, True), (0.01, 0.2, False), (0.2, 0.01, False), (0.05, np.nan, False),
     (np.nan, 0.01, False)],
)  # fmt: skip
def test_learners_are_separated_by_episodes_and_by_seeds(episodes_p, seeds_p, expected):
    assert separated(episodes_p, seeds_p) is expected


# -- what 95 % and 5 % mean, by simulation; at length: python -m benchmarks.intervals -------------------

REPEATS = 2000


def assert_share(count, expected):
    """That a share of REPEATS is what was expected: a binomial test that fails a right program once in 10⁴ runs."""
    assert stats.binomtest(count, REPEATS, expected).pvalue > 1e-4, f"{count / REPEATS:.3f} instead of {expected}"


@pytest.mark.parametrize(("mean", "queries", "count"), [(0.35, 25, 200), (0.85, 25, 200), (0.85, 75, 600)])
def test_95_of_100_intervals_hold_the_truth(mean, queries, count):
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(REPEATS):
        found, ci95 = mean_and_ci95(episodes(mean, count, queries, rng))
        held += abs(found - mean) <= ci95
    assert_share(held, 0.95)


def test_5_of_100_pairs_of_equals_are_told_apart():
    rng = np.random.default_rng(2)
    chance = rng.beta(6, 6, size=(REPEATS, 200))
    one, two = (rng.binomial(25, chance) / 25 for _ in range(2))
    assert_share(sum(paired(a, b).p < 0.05 for a, b in zip(one, two, strict=True)), 0.05)


def test_holm_keeps_the_chance_of_any_false_finding_below_5_of_100():
    rng = np.random.default_rng(3)
    found = uncorrected = 0
    for _ in range(REPEATS):
        chance = rng.beta(6, 6, size=200)
        learners = rng.binomial(25, chance, size=(5, 200)) / 25
        p_values = [paired(learners[i], learners[j]).p for i in range(5) for j in range(i)]
        found += min(holm(p_values)) < 0.05
        uncorrected += min(p_values) < 0.05
    assert stats.binomtest(found, REPEATS, 0.05, alternative="greater").pvalue > 1e-4
    assert found > 0, "a test that never finds anything would pass, too"
    assert uncorrected > 0.2 * REPEATS, "ten comparisons without a correction find something in vain"


def test_a_difference_of_chance_is_above_zero_as_seldom_as_the_level_says():
    """One-sided at 1 %: of 2,000 pairs without a difference about 20, within four standard deviations."""
    draw = np.random.default_rng(0)
    called = sum(above(draw.normal(0, 0.1, 32), 0.0) for _ in range(2000))
    assert abs(called - 20) < 4 * np.sqrt(2000 * 0.01 * 0.99)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.floats(0.01, 1))
def test_above_knows_direction(values, shift):
    data = np.array(values)
    if above(data, 0.0):
        assert data.mean() > 0
        assert above(data + shift, 0.0)
        assert not above(-data, 0.0)
