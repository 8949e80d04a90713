"""Robustness curves against areas worked out by hand, from planted records."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from robustbench_meta.reporting.terminal.tables import curve_tables
from robustbench_meta.results.curves import COLUMNS, Curve, curves
from robustbench_meta.results.leaderboard import read, write
from tests.helpers.command_line import bench
from tests.helpers.records import answers, clean_record, record, stored


def right(*counts):
    """Answers in which that many of ten queries are right, an episode each."""
    return np.arange(10) < np.array(counts)[:, None]


def of(store):
    return curves(*read(store))


def drawn(found, width=80):
    out = io.StringIO()
    for table in curve_tables(found, width):
        Console(file=out, width=width).print(table)
    return out.getvalue()


def test_the_area_is_that_of_the_trapezoids(tmp_path):
    # Episode 1: 1.0, 0.6, 0.2 at ε = 0, 0.1, 0.4: (0.1·0.8 + 0.3·0.4) / 0.4 = 0.5. Episode 2: 0.8, 0.8, 0.4: 0.65.
    clean = right(10, 8)
    records = [record(right(6, 8), clean=clean, eps=0.1), record(right(2, 4), clean=clean, eps=0.4)]
    (curve,) = of(stored(tmp_path, *records))
    assert curve.eps == ("0", "0.1", "0.4")
    assert [curve.accuracy(point)[0] for point in range(3)] == pytest.approx([0.9, 0.7, 0.3])
    low, high = stats.t.interval(0.95, 1, loc=0.575, scale=stats.sem([0.5, 0.65]))
    assert curve.area == pytest.approx((0.575, (high - low) / 2))


def test_an_eps_of_zero_that_was_run_takes_the_place_of_the_clean_accuracy(tmp_path):
    (curve,) = of(stored(tmp_path, record(right(7, 7), eps=0.0), record(right(5, 5), eps=0.1)))
    assert curve.eps == ("0", "0.1")
    assert curve.area[0] == pytest.approx(0.6)


@given(st.lists(st.integers(0, 10), min_size=3, max_size=6), st.floats(0.01, 10))
def test_the_area_is_between_the_extremes_and_knows_no_unit_of_eps(counts, unit):
    episodes = np.array(counts)[:, None] / 10 * np.ones(4)
    areas = [
        Curve({}, "", "", (), np.arange(len(counts)) * scale, episodes, ()).area[0] for scale in (1.0, unit)
    ]  # fmt: skip
    assert areas[0] == pytest.approx(areas[1])
    assert min(counts) / 10 - 1e-12 <= areas[0] <= max(counts) / 10 + 1e-12


def test_one_eps_makes_no_curve_and_no_file(tmp_path):
    store = stored(
        tmp_path, record(right(5, 5)), clean_record(right(9, 9)), record(right(5, 5), attack="fgsm", eps=0.2)
    )
    (tmp_path / "curves.csv").write_text("of records that are gone")
    write(store)
    assert of(store) == []
    assert not (tmp_path / "curves.csv").exists()


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"support": "adv"}, {"attack": "fgsm"}, {"learner": "aq"}, {"norm": "l2"}, {"dataset": "x"},
              {"attack_code": "v2"}, {"code": "v2"}, {"query": "transfer", "surrogate": "aq"}],
    ids=str,
)  # fmt: skip
def test_what_is_not_the_same_is_never_in_one_curve(tmp_path, other):
    assert of(stored(tmp_path, record(right(5, 5), eps=0.1), record(right(4, 4), eps=0.2, **other))) == []


def test_a_sweep_and_independent_runs_are_two_curves(tmp_path):
    found = of(
        stored(
            tmp_path, record(right(6, 6), eps=0.1), record(right(5, 5), eps=0.2), record(right(4, 4), eps=0.3),
            record(right(3, 3), eps=0.2, sweep=[0.1]), record(right(2, 2), eps=0.3, sweep=[0.1, 0.2]),
        )
    )  # fmt: skip
    told = {curve.attack: [round(curve.accuracy(point)[0], 6) for point in range(4)] for curve in found}
    assert told == {"pgd": [1, 0.6, 0.5, 0.4], "pgd (warm)": [1, 0.6, 0.3, 0.2]}


def test_a_sweep_alone_begins_with_its_first_eps(tmp_path):
    (curve,) = of(stored(tmp_path, record(right(6, 6), eps=0.1), record(right(3, 3), eps=0.2, sweep=[0.1])))
    assert (curve.attack, curve.eps) == ("pgd (warm)", ("0", "0.1", "0.2"))


def test_a_sweep_from_zero_is_one_curve(tmp_path):
    # As of --eps 0:0.2:3: no ε is warm-started from 0, so that the first one above it has no sweep.
    cold = record(right(9, 9), eps=0.0), record(right(6, 6), eps=0.1)
    (curve,) = of(stored(tmp_path, *cold, record(right(3, 3), eps=0.2, sweep=[0.1])))
    assert (curve.attack, curve.eps) == ("pgd (warm)", ("0", "0.1", "0.2"))
    assert [curve.accuracy(point)[0] for point in range(3)] == pytest.approx([0.9, 0.6, 0.3])


@pytest.mark.parametrize("zero", [(), (0.0,)], ids=["clean", "eps 0"])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_sweep_that_grew_is_one_curve(tmp_path, zero, steps):
    eps = [0.1, 0.2, 0.3, 0.4, 0.5][:steps]
    cold = [record(right(9, 9), eps=value) for value in (*zero, eps[0])]
    warm = [record(right(9 - n, 9), eps=eps[n], sweep=eps[:n]) for n in range(1, steps)]
    (curve,) = of(stored(tmp_path, *cold, *warm))
    assert curve.eps == ("0", *(f"{value:g}" for value in eps))


def test_beside_a_sweep_a_single_independent_eps_makes_no_curve_and_two_make_one(tmp_path):
    sweep = [
        record(right(9, 9), eps=0.0), record(right(6, 6), eps=0.1), record(right(3, 3), eps=0.2, sweep=[0.1]),
    ]  # fmt: skip
    independent = record(right(5, 5), eps=0.2)
    (curve,) = of(stored(tmp_path / "one", *sweep, independent))
    assert (curve.attack, curve.accuracy(2)[0]) == ("pgd (warm)", pytest.approx(0.3))
    found = of(stored(tmp_path / "two", *sweep, independent, record(right(4, 4), eps=0.3)))
    told = {curve.attack: [round(curve.accuracy(point)[0], 6) for point in range(len(curve.eps))] for curve in found}
    assert told == {"pgd": [0.9, 0.6, 0.5, 0.4], "pgd (warm)": [0.9, 0.6, 0.3]}


def test_curves_on_two_files_of_one_name_are_never_one(tmp_path):
    transfer = {"query": "transfer", "surrogate": "maml"}
    store = stored(
        tmp_path, *(record(right(count, count), eps=eps, trained=f"file {name}", **transfer)
                    for name, counts in (("a", (6, 4)), ("b", (3, 1)))
                    for count, eps in zip(counts, (0.1, 0.2), strict=True)),
    )  # fmt: skip
    values = [[round(curve.accuracy(point)[0], 6) for point in range(3)] for curve in of(store)]
    assert sorted(values) == [[1, 0.3, 0.1], [1, 0.6, 0.4]]


def test_of_two_versions_of_the_same_point_the_newest_counts(tmp_path):
    old = record(right(1, 1), eps=0.1)
    new = record(right(7, 7), eps=0.1, core="edited", written="2026-01-02T00:00:00Z")
    other = record(right(5, 5), eps=0.2)
    for number, records in enumerate([(old, new, other), (new, old | {"written": "2026-01-03T00:00:00Z"}, other)]):
        (curve,) = of(stored(tmp_path / str(number), *records))
        assert curve.accuracy(1)[0] == pytest.approx((0.7, 0.1)[number])


def test_the_csv_has_a_row_for_each_point(tmp_path):
    write(stored(tmp_path, *(record(right(count, count), eps=eps) for count, eps in ((6, 0.1), (4, 0.3)))))
    frame = pd.read_csv(tmp_path / "curves.csv", dtype={"eps": str})
    assert list(frame.columns) == COLUMNS
    assert frame["eps"].tolist() == ["0", "0.1", "0.3"]
    assert frame["accuracy"].tolist() == [1, 0.6, 0.4]
    assert set(frame["area"]) == {0.6}  # (0.1·0.8 + 0.2·0.5) / 0.3
    assert set(frame["area_ci95"]) == {0}
    assert frame["spec_hash"].nunique() == 2


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_and_shows_every_point(tmp_path, width):
    values = [round(0.01 * step, 2) for step in range(1, 16)]
    long = "adml:first_order=true,outer=sequential"
    store = stored(
        tmp_path, *(record(answers(mean - eps, seed=seed), learner=name, eps=eps, seed=seed)
                    for name, mean in (("maml", 0.5), (long, 0.7)) for eps in values for seed in (0, 1)),
    )  # fmt: skip
    found = of(store)
    text = drawn(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(f"ε = {eps:g}" in text for eps in [0, *values])
    areas = [curve.area[0] for curve in found if curve.learner == "maml"]
    assert f"{100 * np.mean(areas):.1f} ±{100 * np.std(areas, ddof=1):.1f}" in text
    assert "L∞ over ε · clean support, attacked query" in text
    assert "± standard deviation of 2 seeds" in " ".join(text.split())


def test_the_leaderboard_shows_and_writes_the_curves(tmp_path):
    stored(tmp_path, record(right(6, 8), eps=0.1), record(right(2, 4), eps=0.4))
    shown = bench("leaderboard", tmp_path)
    assert shown.code == 0, shown.err
    assert "Area: under the curve, over 0.4: the mean over ε" in " ".join(shown.out.split())
    assert (tmp_path / "curves.csv").is_file()


def test_a_curve_of_certificates_begins_at_its_own_smallest_radius_and_says_so(tmp_path):
    clean, proved = answers(0.9), {eps: answers(mean, seed=1) for eps, mean in ((0.0, 0.8), (0.2, 0.6), (0.4, 0.1))}

    def curve_of(folder, radii):
        records = [record(proved[eps], clean=clean, attack="certificate", norm="l2", query="certified", eps=eps,
                          method="black-box") for eps in radii]  # fmt: skip
        (curve,) = of(stored(folder, *records))
        return curve, " ".join(drawn([curve]).split())

    means = {eps: each.mean() for eps, each in proved.items()}
    curve, shown = curve_of(tmp_path / "from zero", (0.0, 0.2, 0.4))
    assert curve.area[0] == pytest.approx((means[0.0] + 2 * means[0.2] + means[0.4]) / 4)
    assert "(0: proved right at any radius)" in shown
    curve, shown = curve_of(tmp_path / "later", (0.2, 0.4))
    assert curve.eps == ("0.2", "0.4")
    assert curve.area[0] == pytest.approx((means[0.2] + means[0.4]) / 2)
    assert "(0:" not in shown
