"""Who is ahead: ranks and `bench compare`, on planted results."""

import csv
import re

import numpy as np
import pytest
from scipy import stats

from robustbench_meta.errors import BenchError
from robustbench_meta.results.episode_accuracies import Sample
from robustbench_meta.results.leaderboard import build, read, write
from robustbench_meta.results.pairwise import compare_learners, contrasts, judged, ranked
from robustbench_meta.results.store import Store
from robustbench_meta.results.tables import boards
from tests.helpers.command_line import bench
from tests.helpers.records import answers, clean_record, record, stored


def sample(*by_seed, digest="e"):
    return Sample({seed: np.asarray(values, float) for seed, values in enumerate(by_seed)}, digest)


def near(mean, seed=0):
    """The accuracies of episodes around a mean."""
    return answers(mean, seed=seed).mean(1)


def two_of_a_kind(tmp_path, **third):
    """A and B are equal but for chance, C is 20 points ahead."""
    return stored(
        tmp_path,
        record(answers(0.5, seed=1), learner="a"),
        record(answers(0.5, seed=2), learner="b"),
        record(answers(0.7, seed=3), learner="c", **third),
    )


# -- contrasts and ranks -----------------------------------------------------------------------------


def test_a_contrast_is_scipys_paired_test_of_the_means_over_seeds():
    one, two = sample(near(0.5, 1), near(0.5, 2)), sample(near(0.55, 3))
    (contrast,) = contrasts([(one, two)])
    mean = (one.by_seed[0] + one.by_seed[1]) / 2
    assert contrast.paired.p == pytest.approx(stats.ttest_rel(mean, two.by_seed[0]).pvalue)
    assert contrast.corrected == contrast.paired.p, "one comparison needs no correction"
    assert np.isnan(contrast.seeds_p), "a single seed has no spread"


def test_contrasts_are_corrected_for_how_many_there_are():
    pairs = [(sample(near(0.5, seed)), sample(near(0.52, seed + 10))) for seed in range(4)]
    together = [contrast.corrected for contrast in contrasts(pairs)]
    alone = [contrasts([pair])[0].corrected for pair in pairs]
    assert min(together) == pytest.approx(min(1, 4 * min(alone)))
    assert all(t >= a for t, a in zip(together, alone, strict=True))


def test_numbers_that_occur_again_are_one_test():
    one, two = [(sample(near(0.5, seed)), sample(near(0.52, seed + 10))) for seed in range(2)]
    again = tuple(sample(each.by_seed[0].copy()) for each in one)
    three, alone = contrasts([one, two, again]), contrasts([one, two])
    assert [each.corrected for each in three] == [each.corrected for each in (*alone, alone[0])]
    assert {each.tests for each in three} == {2}


def test_attacks_at_eps_0_cost_no_correction(tmp_path):
    """A sweep from ε = 0 by three attacks, which change nothing there: clean, 3 at 0.1, and their worst case count."""
    clean = {name: answers(mean, seed=seed) for seed, (name, mean) in enumerate([("a", 0.6), ("b", 0.66)])}
    stored(
        tmp_path,
        *(record(right & (answers(0.8, seed=at) | (eps == 0)), clean=right, learner=name, attack=attack, eps=eps)
          for name, right in clean.items() for at, attack in enumerate(("fgsm", "pgd", "bim")) for eps in (0.0, 0.1)),
    )  # fmt: skip
    found = [contrast for pair in of(Store(tmp_path)) for contrast in pair.contrasts.values()]
    p = sorted({contrast.paired.p for contrast in found})
    assert len(found) == 9
    assert len(p) == 5, "the planted numbers differ"
    assert min(contrast.corrected for contrast in found) == pytest.approx(5 * p[0])
    assert "Holm's correction for 5 different comparisons among 9, all" in " ".join(
        bench("compare", tmp_path).out.split()
    )


def test_seeds_that_scatter_more_than_the_learners_differ_separate_nothing():
    # Over episodes 8 points are sure; but the seeds of one learner reach from 0.40 to 0.66.
    lucky = sample(*(near(mean, seed) for seed, mean in enumerate((0.40, 0.66, 0.68))))
    steady = sample(*(near(mean, seed + 3) for seed, mean in enumerate((0.49, 0.50, 0.51))))
    (contrast,) = contrasts([(lucky, steady)])
    assert contrast.corrected < 0.001
    assert contrast.seeds_p == pytest.approx(stats.ttest_ind(lucky.means, steady.means, equal_var=False).pvalue)
    assert contrast.ahead == 0
    (alone,) = contrasts([(sample(lucky.by_seed[1]), sample(steady.by_seed[0]))])
    assert alone.ahead == 1, "with one seed each, nothing is known of luck"


def test_other_episodes_are_never_paired():
    with pytest.raises(ValueError, match="different episodes"):
        contrasts([(sample(near(0.5)), sample(near(0.6), digest="other"))])


def test_equals_share_a_rank():
    samples = {"a": sample(near(0.5, 1)), "b": sample(near(0.5, 2)), "c": sample(near(0.7, 3))}
    assert ranked(samples) == {"a": 2, "b": 2, "c": 1}
    samples["c"] = sample(near(0.3, 3))
    assert ranked(samples) == {"a": 1, "b": 1, "c": 3}
    assert ranked({}) == {}


def test_what_saw_other_episodes_is_never_ranked_together():
    with pytest.raises(ValueError, match="different episodes"):
        ranked({"a": sample(near(0.2, 1)), "b": sample(near(0.9, 2), digest="other")})


def test_the_csv_holds_the_ranks_of_the_tables(tmp_path):
    store = two_of_a_kind(tmp_path)
    store.write_record(clean_record(answers(0.9, seed=4), learner="a"))
    frame = build(store)
    attacked = frame[frame["attack"] != "none"].set_index("learner")["rank"]
    assert attacked.to_dict() == {"a": 2, "b": 2, "c": 1}
    assert frame.loc[frame["attack"] == "none", "rank"].isna().all(), "it stands in the table of the attack"
    (board,) = boards(frame)
    assert board.ranks == {"a": 2, "b": 2, "c": 1}
    assert next(iter(board.scores)) == "c"
    with write(store).open(newline="") as file:
        assert [row["rank"] for row in csv.DictReader(file)] == ["", "2", "2", "1"]


def test_clean_accuracies_of_learners_that_nothing_attacked_are_ranked(tmp_path):
    store = stored(tmp_path, *(clean_record(answers(mean), learner=name) for name, mean in (("a", 0.5), ("b", 0.8))))
    assert build(store).set_index("learner")["rank"].to_dict() == {"a": 2, "b": 1}


def test_several_attacks_rank_by_the_worst_case(tmp_path):
    # Each of a's attacks fails on half of the queries, b's on the same 40 %: per attack a is ahead, in the worst not.
    half = np.arange(25) < 12
    a = [np.tile(half, (40, 1)), np.tile(~half, (40, 1))]
    rng = np.random.default_rng(0)
    b = [rng.random((40, 25)) < 0.4] * 2
    records = [
        record(robust, learner=name, attack=attack)
        for name, both in (("a", a), ("b", b))
        for attack, robust in zip(("fgsm", "pgd"), both, strict=True)
    ]
    frame = build(stored(tmp_path, *records)).set_index(["learner", "attack"])
    assert frame["rank"].to_dict() == {("a", "fgsm"): 2, ("a", "pgd"): 2, ("b", "fgsm"): 1, ("b", "pgd"): 1}
    assert frame.loc[("a", "pgd"), ["worst_case_accuracy", "worst_case_ci95"]].tolist() == [0, 0]
    mean, low = b[0].mean(), stats.ttest_1samp(b[0].mean(1), 0).confidence_interval(0.95).low
    found = frame.loc[("b", "fgsm"), ["worst_case_accuracy", "worst_case_ci95"]].tolist()
    assert found == pytest.approx([mean, mean - low], abs=1e-6)


def test_a_learner_that_was_not_under_all_attacks_has_no_rank(tmp_path):
    store = stored(
        tmp_path, record(answers(0.5), learner="a"), record(answers(0.5), learner="a", attack="fgsm"),
        record(answers(0.9), learner="b"),
    )  # fmt: skip
    frame = build(store)
    assert frame.loc[frame["learner"] == "b", "rank"].isna().all()
    assert (frame.loc[frame["learner"] == "a", "rank"] == 1).all()


@pytest.mark.parametrize("flag", ["masked-gradients", "weaker-than-fgsm", "above-clean", "remembers"])
def test_a_number_that_its_flags_deny_has_no_rank_and_stands_last(tmp_path, flag):
    store = stored(
        tmp_path, record(answers(0.9), learner="liar", flags=[flag]), record(answers(0.5), learner="a"),
        record(answers(0.3), learner="b", flags=["not-converged"]),
    )  # fmt: skip
    frame = build(store)
    assert frame.set_index("learner")["rank"].fillna(0).to_dict() == {"a": 1, "b": 2, "liar": 0}
    (board,) = boards(frame)
    assert list(board.scores) == ["a", "b", "liar"]
    (told,) = judged(frame, read(store)[1])
    assert told.leaders["pgd"] == {"a"}


# -- what can be compared ----------------------------------------------------------------------------


def of(store, first=None, second=None):
    return compare_learners(*read(store), first, second)


def test_all_that_both_have_is_compared(tmp_path):
    store = stored(
        tmp_path,
        *(record(answers(0.5, seed=1), learner=name, attack=attack, eps=eps)
          for name in ("a", "b") for attack in ("fgsm", "pgd") for eps in (0.1, 0.2)),
        record(answers(0.5, seed=2), learner="a", attack="bim", eps=0.1),
        record(answers(0.5, seed=2), learner="b", support="adv"),
    )  # fmt: skip
    found = {(pair.setting["threat_norm"], pair.setting["eps"]): list(pair.contrasts) for pair in of(store, "a", "b")}
    assert found == {
        ("none", "0"): ["clean"],
        ("linf", "0.1"): ["fgsm", "pgd"],
        ("linf", "0.2"): ["fgsm", "pgd", "worst case"],
    }, "at 0.1 there is no worst case: b was not under all attacks that a was under"


def test_all_pairs_are_corrected_together(tmp_path):
    store = two_of_a_kind(tmp_path)
    found = of(store)
    assert [(pair.first, pair.second) for pair in found[::2]] == [("a", "b"), ("a", "c"), ("b", "c")]
    p = {(pair.first, pair.second): pair.contrasts["pgd"] for pair in found[1::2]}
    assert [contrast.ahead for contrast in p.values()] == [0, -1, -1]
    (alone,) = (pair.contrasts["pgd"] for pair in of(store, "a", "c") if "pgd" in pair.contrasts)
    assert p["a", "c"].corrected > alone.corrected, "six comparisons, not two"


def test_the_order_of_the_names_is_the_sign(tmp_path):
    store = two_of_a_kind(tmp_path)
    there, back = of(store, "a", "c")[1].contrasts["pgd"], of(store, "c", "a")[1].contrasts["pgd"]
    assert there.paired.difference == pytest.approx(-back.paired.difference)
    assert (there.ahead, back.ahead) == (-1, 1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("mamll", "adml", "unknown learner 'mamll' in these results: did you mean 'maml'"),
        ("adml", "adml", "'adml' and 'adml' are the same learner"),
        ("maml", "adml", r"'maml' stands for several versions.*maml#[0-9a-f]{4} or maml#[0-9a-f]{4}$"),
        ("maml#zz", "adml", "unknown learner 'maml#zz' in these results"),
        ("maml#00000000", "adml", "no recipe of 'maml' begins with 00000000; there is: maml#"),
        ("adml", "protonet", r"share no setting: adml is in d 2-way.*, and protonet is in other 2-way"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path, first, second, message):
    store = stored(
        tmp_path, record(answers(0.5), code="v1"), record(answers(0.6), code="v2"),
        record(answers(0.6), learner="adml"),
        record(answers(0.6), learner="protonet", dataset="other"),
    )  # fmt: skip
    with pytest.raises(BenchError, match=message):
        of(store, first, second)


def test_two_versions_are_named_by_digits_as_the_tables_show_them(tmp_path):
    store = stored(tmp_path, record(answers(0.5), code="v1"), record(answers(0.8), code="v2"))
    (board,) = boards(build(store))
    first, second = board.scores
    for name in (str.strip, lambda text: text.replace(" ", "")):
        found = of(store, name(first), name(second))
        assert (found[1].first, found[1].second) == (first, second)
        assert found[1].contrasts["pgd"].ahead == 1


@pytest.mark.parametrize(
    ("kind", "before", "now", "mark"), [("digest", "0" * 16, "f" * 16, "@"), ("fingerprint", "old", "new", "#")]
)
def test_results_on_changed_data_stand_apart_everywhere(tmp_path, kind, before, now, mark):
    """A and B on the data as they were, B and C as they are now."""
    cells = [("a", 0.5, before), ("b", 0.9, before), ("b", 0.6, now), ("c", 0.9, now)]
    store = stored(tmp_path, *(record(answers(mean, seed=seed), learner=learner, **{kind: data})
                               for seed, (learner, mean, data) in enumerate(cells)))  # fmt: skip
    frame = build(store)
    assert set(frame.dataset.str[:3]) == {f"d {mark}"}
    found = [dict(rows[["learner", "rank"]].itertuples(index=False)) for _, rows in frame.groupby("dataset")]
    assert sorted(found, key=min) == [{"a": 2, "b": 1}, {"b": 2, "c": 1}]
    assert sorted(sorted(board.scores) for board in boards(frame)) == [["a", "b"], ["b", "c"]]
    assert {(pair.first, pair.second) for pair in of(store)} == {("a", "b"), ("b", "c")}
    with pytest.raises(BenchError, match=r"share no setting \(.* were changed in between; run both learners again\)"):
        of(store, "a", "c")


# -- the command -------------------------------------------------------------------------------------

LONG = "adml:first_order=true,outer=sequential,alpha_adv=0.2"


@pytest.fixture
def folder(tmp_path):
    stored(
        tmp_path / "results",
        *(record(answers(mean, seed=seed + 5 * (attack == "pgd")), learner=name, attack=attack, seed=seed)
          for name, mean in (("maml", 0.3), (LONG, 0.6)) for attack in ("fgsm", "pgd", "square:n_queries=5000")
          for seed in (0, 1, 2)),
    )  # fmt: skip
    return tmp_path / "results"


@pytest.mark.parametrize("width", [80, 160])
def test_the_command_tells_differences_and_who_is_ahead(folder, width):
    shown = bench("compare", LONG, "maml", folder, width=width)
    assert shown.code == 0, shown.err
    assert max(map(len, shown.out.splitlines())) <= width
    frame = build(Store(folder))
    means = frame.groupby(["learner", "attack"])["robust_accuracy"].mean()
    difference = 100 * (means[LONG, "pgd"] - means["maml", "pgd"])
    rows = [line for line in shown.out.splitlines() if line.startswith("pgd ")]
    assert re.search(rf"\+{difference:.1f} ±\d\.\d +<0.001", " ".join(rows))
    text = " ".join(shown.out.split())
    (clean,) = [line for line in shown.out.splitlines() if line.startswith("clean ")]
    assert "cannot be" in clean, "all clean answers are right"
    assert "Holm's correction for 4 different comparisons among 5, all that are printed" in text, (
        "fgsm's and square's are equal"
    )
    assert "± standard deviation between seeds" in text
    assert f"A {LONG} B maml" in text
    assert [line.split()[-1] for line in rows] == ["A"], "its name is too long for the column"


def test_who_is_ahead_is_told_by_name(tmp_path):
    two_of_a_kind(tmp_path)
    shown = bench("compare", tmp_path).out
    lines = [line for line in shown.splitlines() if line.startswith("pgd ")]
    assert [line.endswith("  cannot be told apart") for line in lines] == [True, False, False], "80 columns have room"
    rows = [line.split() for line in lines]
    assert [row[-1] for row in rows[1:]] == ["c", "c"]
    assert "p seeds" not in shown, "there is one seed only"
    assert "±" not in rows[0][1:3], "and no spread between seeds"


def test_flags_and_single_trainings_are_told(tmp_path):
    stored(
        tmp_path,
        *(record(answers(0.5), learner=name, attack=attack, flags=["few-episodes", *flags])
          for name, flags in (("a", ["zero-gradients"]), ("b", [])) for attack in ("fgsm", "pgd")),
    )  # fmt: skip
    shown = bench("compare", tmp_path).out
    for column in ("fgsm", "pgd"):
        assert re.search(rf"^{column} +\d+\.\d! +\d+\.\d ", shown, re.MULTILINE)
    assert re.search(r"^worst case +\d+\.\d! ", shown, re.MULTILINE)
    text = " ".join(shown.split())
    assert "All: few-episodes. ! zero-gradients: a. " in text
    assert text.count("What the flags mean: docs/flags.md.") == 1
    assert "Comparisons rest on one training each: its luck is not in p." in text


def test_comparisons_round_as_the_leaderboard_does(tmp_path):
    # 149 of 400 queries: 37.25 %, on the edge between two; the mean over these episodes is a bit above it in float64.
    right = np.zeros(400, bool)
    right[:149] = True
    right = np.random.default_rng(3).permutation(right).reshape(80, 5)
    assert right.mean(1).mean() > 149 / 400
    store = stored(tmp_path, record(right, learner="a"), record(~right, learner="b"))
    (board,) = boards(build(store))
    (row,) = [line.split() for line in bench("compare", tmp_path).out.splitlines() if line.startswith("pgd ")]
    assert row[1:3] == [board.scores[name]["pgd"].text() for name in ("a", "b")]


@pytest.mark.parametrize("name", ["results", "./other"])
def test_a_learner_and_a_folder_are_told_apart(folder, monkeypatch, name):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "other").mkdir()
    shown = bench("compare", "maml", name)
    assert shown.code == 2
    assert f"'{name}' is a folder: name two learners, then the folder" in " ".join(shown.err.split())


def test_without_names_all_pairs_are_compared(folder):
    assert f"A {LONG} B maml" in " ".join(bench("compare", folder).out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["maml"], "'maml' is no folder; expected two learners"),
        (["maml", "adml", "nowhere"], "the folder nowhere does not exist"),
        (["a", "b", "c", "d"], "got 4 words; expected two learners and a results folder"),
    ],
)
def test_wrong_words_are_told(words, message):
    shown = bench("compare", *words)
    assert shown.code == 2
    assert message in " ".join(shown.err.split())


def test_nothing_to_compare_is_an_error(tmp_path):
    stored(tmp_path / "results", record(answers(0.5)))
    shown = bench("compare", tmp_path / "results")
    assert shown.code == 2
    assert "nothing can be compared: no two learners share a setting; there is: maml" in " ".join(shown.err.split())
    stored(tmp_path / "empty")
    assert "holds no finished cells" in " ".join(bench("compare", tmp_path / "empty").err.split())
