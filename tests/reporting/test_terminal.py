"""The terminal tables, from leaderboards written by hand: every number is looked up where a reader would."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.reporting.terminal.tables import tables
from robustbench_meta.results.leaderboard import COLUMNS, build, read
from robustbench_meta.results.pairwise import judged
from robustbench_meta.results.store import Store
from robustbench_meta.results.tables import DISQUALIFYING, MODEL_FLAGS, boards
from tests.helpers.records import answers, stored
from tests.helpers.records import record as planted

BASE = {
    "dataset": "glyphs", "way": 5, "shot": 1, "backbone": "conv4:width=32", "norm": "group", "learner": "maml",
    "attack": "fgsm", "threat_norm": "linf", "eps": "0.1", "support": "clean", "query": "adv", "seed": 0,
    "episodes": 200,
    "clean_accuracy": 0.856, "clean_ci95": 0.0123, "robust_accuracy": 0.402, "robust_ci95": 0.0214,
    "worst_case_accuracy": 0.402, "attack_success_rate": 0.53, "worst_decile_accuracy": 0.12, "inference": "inductive",
    "flags": "", "train_seconds": 71.2, "adapt_ms_per_task": 1.0, "attack_ms_per_task": 2.0, "parameters": 112_000,
    "device": "cpu", "version": "0.1.0", "spec_hash": "0" * 16,
    "queries": 5, "meta_steps": 600, "tasks_per_step": 8, "training_attack": "none", "training_eps": "0",
    "training_hash": "1" * 16, "recipe_hash": "2" * 16, "attack_hash": "3" * 16,
    "precision": "float32", "peak_memory_mb": 512.0, "surrogate": "none", "warm_start": "", "check_ms_per_task": 0.0,
    "worst_case_ci95": 0.0198, "rank": None, "black_box_accuracy": np.nan,
}  # fmt: skip
CLEAN = {"attack": "none", "threat_norm": "none", "eps": "0", "query": "clean"}


def frame(*rows):
    return pd.DataFrame([{**BASE, **row} for row in rows], columns=COLUMNS)


def drawn(leaderboard, width=80, color=False, samples=None):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=color, color_system="standard" if color else None)
    for table in tables(leaderboard, width, samples):
        console.print(table)
    return out.getvalue()


def unpadded(text):
    return re.sub(" +\n", "\n", text)


def line(text, start):
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return found.split()


two_learners = frame(
    *[
        {"learner": learner, "clean_accuracy": clean, "worst_case_accuracy": worst, **attack}
        for learner, clean, worst, fgsm, pgd in [
            ("maml", 0.856, 0.197, 0.402, 0.198),
            ("adml", 0.83, 0.401, 0.673, 0.407),
        ]
        for attack in [
            {**CLEAN, "robust_accuracy": clean, "worst_case_accuracy": clean},
            {"attack": "fgsm", "robust_accuracy": fgsm},
            {"attack": "pgd", "robust_accuracy": pgd},
        ]
    ]
)


def test_numbers_stand_in_their_row_and_column():
    text = drawn(two_learners)
    assert line(text, "learner") == ["learner", "clean", "fgsm", "pgd", "worst", "case"]
    assert line(text, "maml") == ["maml", "85.6", "±1.2", "40.2", "±2.1", "19.8", "±2.1", "19.7", "±2.0"]
    assert line(text, "adml") == ["adml", "83.0", "±1.2", "67.3", "±2.1", "40.7", "±2.1", "40.1", "±2.0"]
    assert "95 % interval over 200 episodes" in " ".join(text.split())


def test_learners_rank_by_worst_case():
    text = drawn(two_learners)
    assert text.index("adml") < text.index("maml")
    assert [list(board.scores) for board in boards(two_learners)] == [["adml", "maml"]]


def test_of_rows_alone_bold_is_rank_1_in_the_column_that_ranks_are_about():
    ranks = two_learners.learner.map({"adml": 1, "maml": 2})
    text = drawn(two_learners.assign(rank=ranks), color=True)
    assert re.findall(r"\x1b\[1m *([0-9.]+)", text) == ["40.1"]
    both = drawn(two_learners.assign(rank=1), color=True)
    assert set(re.findall(r"\x1b\[1m *([0-9.]+)", both)) == {"40.1", "19.7"}
    alone = two_learners[two_learners.learner == "adml"].assign(rank=1)
    assert not re.findall(r"\x1b\[1m *([0-9.]+)", drawn(alone, color=True))


def test_bold_on_screen_is_what_is_bold_in_the_paper(tmp_path):
    """A is 20 points better under both attacks than C; B is as good as A but for chance, and has no PGD."""
    rows = [("a", 0.6, 1, "fgsm"), ("a", 0.5, 2, "pgd"), ("c", 0.4, 3, "fgsm"), ("c", 0.3, 4, "pgd"),
            ("b", 0.605, 5, "fgsm")]  # fmt: skip
    clean = answers(0.95, seed=9)
    stored(tmp_path, *(planted(answers(mean, seed=seed), clean=clean, learner=learner, attack=attack)
                       for learner, mean, seed, attack in rows))  # fmt: skip
    found, samples = read(Store(tmp_path))
    text = drawn(found, color=True, samples=samples)
    bold = re.findall(r"\x1b\[1m *([0-9.]+)", text)
    (board,) = judged(found, samples)
    assert bold == [row[name].text() for learner, row in board.scores.items() for name in board.columns
                    if board.leads(learner, name)]  # fmt: skip
    assert (board.leaders["fgsm"], board.leaders["pgd"]) == ({"a", "b"}, {"a"})


def test_the_title_tells_the_setting():
    text = drawn(frame({"support": "adv", "query": "clean", "threat_norm": "l2", "eps": "3/2"}))
    assert "glyphs · 5-way 1-shot · conv4:width=32" in text
    assert "L2 ε = 3/2 · attacked support, clean query · inductive (group norm)" in text


@pytest.mark.parametrize(
    "other",
    [
        {"inference": "transductive", "norm": "batch"}, {"eps": "8/255"}, {"threat_norm": "l2"}, {"support": "adv"},
        {"dataset": "toy"}, {"way": 20}, {"shot": 5}, {"backbone": "mlp"}, {"episodes": 600}, {"precision": "bf16"},
    ],
    ids="-".join,
)  # fmt: skip
def test_what_cannot_be_compared_is_never_in_one_table(other):
    found = list(boards(frame({}, {"learner": "adml", **other})))
    assert [list(board.scores) for board in found] == [["maml"], ["adml"]]


def test_the_title_tells_a_precision_that_is_not_float32():
    assert "600 meta-steps · bf16\n" in re.sub(" +\n", "\n", drawn(frame({"precision": "bf16"})))
    assert "float32" not in drawn(frame({}))


def test_clean_accuracy_alone_is_a_table_of_its_own():
    text = drawn(frame({**CLEAN, "robust_accuracy": 0.856}))
    assert line(text, "learner") == ["learner", "clean"]
    assert line(text, "maml") == ["maml", "85.6", "±1.2"]
    assert "no attack" in text


def test_clean_rows_make_no_second_table_where_there_are_attacks():
    assert len(list(boards(two_learners))) == 1


def test_seeds_are_averaged_and_the_spread_is_named():
    # The mean of 40, 50 and 60 is 50, their standard deviation (n−1) is 10.
    several = [{"seed": seed, "robust_accuracy": value} for seed, value in enumerate((0.4, 0.5, 0.6))]
    text = drawn(frame(*several))
    assert line(text, "maml")[-2:] == ["50.0", "±10.0"]
    assert "mean of 3 seeds (200 episodes each); ± standard deviation of the seeds" in " ".join(text.split())


def test_a_number_from_fewer_seeds_is_marked():
    rows = [{"seed": 0}, {"seed": 1}, {"learner": "adml", "robust_accuracy": 0.7}]
    text = drawn(frame(*rows))
    assert line(text, "adml")[-2:] == ["70.0", "*"]
    assert "70.0 ±" not in text, "one seed has no spread between seeds"
    assert "* rests on fewer seeds" in " ".join(text.split())


def test_an_attack_that_a_learner_was_not_under_is_a_dash_and_its_worst_case_is_unknown():
    rows = [{"attack": "fgsm"}, {"attack": "pgd"}, {"learner": "adml", "attack": "fgsm", "robust_accuracy": 0.9}]
    text = drawn(frame(*rows))
    assert line(text, "adml")[-2:] == ["–", "–"]
    assert text.index("maml") < text.index("adml"), "an unknown worst case ranks last"


@pytest.mark.parametrize("seed", [0, 1])
def test_one_name_trained_in_two_ways_is_two_rows(seed):
    other = {"recipe_hash": "abcd" + "0" * 12, "training_hash": "4" * 16, "seed": seed}
    (board,) = boards(frame({"robust_accuracy": 0.3}, {"robust_accuracy": 0.6, **other}, {"learner": "adml"}))
    means = {learner: row["fgsm"].mean for learner, row in board.scores.items()}
    assert means == {"maml #abcd": 60, "maml #2222": 30, "adml": pytest.approx(40.2)}


@pytest.mark.parametrize("seed", [0, 1])
def test_two_versions_of_one_attack_are_two_columns(seed):
    edited = {"robust_accuracy": 0.6, "attack_hash": "3334" + "0" * 12, "seed": seed}
    (board,) = boards(frame({"robust_accuracy": 0.3}, edited, {"attack": "pgd"}))
    assert board.columns == ["clean", "fgsm #3333", "fgsm #3334", "pgd", "worst case"]
    assert [board.scores["maml"][column].mean for column in board.columns[1:3]] == [30, 60]
    assert [board.scores["maml"][column].seeds for column in board.columns[1:3]] == [1, 1]


def test_hashes_are_told_as_far_as_they_differ():
    (board,) = boards(frame({"recipe_hash": "abcdef01" + "0" * 8}, {"recipe_hash": "abcdef02" + "0" * 8}))
    assert sorted(board.scores) == ["maml #abcdef01", "maml #abcdef02"]


def test_the_clean_accuracy_of_a_version_that_nothing_attacked_is_still_shown():
    clean = {**CLEAN, "recipe_hash": "5" * 16, "clean_accuracy": 0.7}
    assert [list(board.scores) for board in boards(frame({}, {**CLEAN}, clean))] == [["maml"], ["maml"]]


# -- from records to rows ----------------------------------------------------------------------------


def built(*records):
    return build(type("Records", (), {"records": lambda self: list(records)})())


def test_of_two_versions_of_an_attack_the_newest_counts_in_the_worst_case():
    old = planted([[0, 0], [0, 0]], written="2026-01-01T00:00:00Z")
    new = planted([[1, 1], [1, 0]], attack_code="v2", written="2026-01-02T00:00:00Z")
    other = planted([[1, 1], [0, 1]], attack="fgsm")
    rows = built(new, old, other).set_index("spec_hash")
    assert rows["worst_case_accuracy"].tolist() == [0.5] * 3
    assert rows.loc[old["key"], "attack_hash"] != rows.loc[new["key"], "attack_hash"]
    assert rows["training_hash"].nunique() == 1


def test_seeds_share_a_recipe_and_edited_learners_do_not():
    first = [planted([[1, 1], [1, 1]]), planted([[0, 0], [0, 0]], seed=1)]
    edited = [planted([[1, 0], [1, 0]], code="v2"), planted([[1, 1], [1, 0]], code="v2", seed=1)]
    rows = built(*first, *edited)
    recipes = rows.set_index("spec_hash")["recipe_hash"]
    a, b, c, d = (recipes[each["key"]] for each in (*first, *edited))
    assert a == b != c == d
    assert len(set(rows["training_hash"])) == 4
    (board,) = boards(rows)
    assert sorted((row["pgd"].mean, row["pgd"].seeds) for row in board.scores.values()) == [(50, 2), (62.5, 2)]


def test_flags_are_told_with_the_numbers_that_have_them():
    text = drawn(
        frame({"flags": "masked-gradients no-effect"}, {"learner": "adml", "flags": "no-effect"}, {"attack": "pgd"})
    )
    assert line(text, "maml")[4].endswith("!")
    assert line(text, "maml")[-1].endswith("!"), "the worst case is made of it"
    assert "! masked-gradients: maml under fgsm, maml under worst case.\n" in unpadded(text)
    assert "! no-effect: all under fgsm.\n" in unpadded(text)
    assert "docs/flags.md" in text


def test_a_flag_of_all_numbers_is_told_once_and_marks_none():
    rows = [
        {"learner": name, "attack": attack, "flags": "few-episodes"}
        for name in ("maml", "adml")
        for attack in ("fgsm", "pgd")
    ]
    text = drawn(frame(*rows))
    assert "All: few-episodes.\n" in unpadded(text)
    assert text.count("few-episodes") == 1
    assert "!" not in text
    rows[3]["flags"] = "few-episodes not-converged"
    text = drawn(frame(*rows))
    assert "All: few-episodes.\n! not-converged: adml under pgd.\n" in unpadded(text)
    assert text.count("!") == 2, "at the number, and in the line that explains it"


def test_a_clean_table_tells_the_flags_of_its_rows():
    rows = [{**CLEAN, "flags": "few-episodes"}, {**CLEAN, "learner": "adml", "flags": "few-episodes random-outputs"}]
    text = drawn(frame(*rows))
    assert "All: few-episodes.\n! random-outputs: adml.\n" in unpadded(text)


def test_a_doubt_of_the_model_under_every_attack_is_told_by_its_name_alone():
    both = [{"learner": name, "attack": attack} for name in ("maml", "adml") for attack in ("fgsm", "pgd")]
    rows = [{**row, "flags": "zero-gradients" if row["learner"] == "maml" else ""} for row in both]
    text = drawn(frame(*rows))
    assert "! zero-gradients: maml.\n" in unpadded(text)
    assert text.count("!") == 4, "fgsm, pgd and the worst case, and the line"


@pytest.mark.parametrize(("flags", "worst"), [(["", "no-effect"], set()), (["no-effect"] * 2, {"no-effect"})])
def test_one_weak_attack_is_no_doubt_of_the_worst_case_but_all_of_them_are(flags, worst):
    rows = [{"attack": attack, "flags": flag} for attack, flag in zip(("fgsm", "pgd"), flags, strict=True)]
    (board,) = boards(frame(*rows))
    assert board.scores["maml"]["worst case"].flags == worst


def test_the_worst_case_has_the_flags_of_the_seeds_that_it_rests_on():
    rows = [{"attack": "fgsm"}, {"attack": "pgd"}, {"attack": "fgsm", "seed": 1, "flags": "random-outputs"}]
    (board,) = boards(frame(*rows))
    assert board.scores["maml"]["fgsm"].flags == {"random-outputs"}
    assert board.scores["maml"]["worst case"].flags == frozenset()


def test_what_casts_doubt_on_models_are_flags():
    assert set(FLAGS) > MODEL_FLAGS | DISQUALIFYING


def test_masked_gradients_tell_what_the_black_box_probe_left(tmp_path):
    probed = {"row": 0.9, "black box": 0.25}
    records = [
        planted(counted(9, 9), learner="c-sign", flags=["masked-gradients"], probed=probed),
        planted(counted(2, 2), learner="maml", probed={"row": 0.2, "black box": 0.1}),
    ]
    rows = build(stored(tmp_path, *records))
    assert rows.set_index("learner")["black_box_accuracy"].to_dict() == {"c-sign": 0.25, "maml": 0.1}
    told = "! masked-gradients: c-sign under pgd (a 200-query search leaves 25.0 %)."
    assert told in " ".join(drawn(rows).split())
    both = drawn(rows.assign(flags="masked-gradients"))
    assert "All: masked-gradients (a 200-query search leaves 10.0 % of maml, 25.0 % of c-sign)." in " ".join(
        both.split()
    )
    rows["black_box_accuracy"] = [0.95, 0.1]
    assert "search" not in drawn(rows), "it left more than the row"


def test_no_flags_no_pointer():
    assert "flags" not in drawn(two_learners)


def test_ranks_stand_before_the_learners_and_decide_their_order():
    ranks = {"maml": 3, "adml": 1, "aq": 1}
    means = {"maml": 0.2, "adml": 0.5, "aq": 0.6}
    text = drawn(frame(*[{"learner": name, "rank": ranks[name], "robust_accuracy": means[name]} for name in ranks]))
    shown = [line.split()[:2] for line in text.splitlines() if line[:1].isdigit()]
    assert shown == [["1", "aq"], ["1", "adml"], ["3", "maml"]]
    assert "equal # cannot be told apart" in " ".join(text.split())


def test_a_learner_without_a_rank_is_last_with_a_dash():
    rows = [{"attack": "fgsm", "rank": 1}, {"attack": "pgd", "rank": 1}, {"learner": "adml", "attack": "fgsm"}]
    text = drawn(frame(*rows))
    assert line(text, "–")[:2] == ["–", "adml"]


def test_one_learner_alone_has_no_rank():
    assert "#" not in drawn(frame({"rank": 1}))


def test_a_warm_start_is_told_in_the_name_where_that_is_the_difference():
    warm = {"warm_start": "0.05", "attack_hash": "4" * 16}
    (board,) = boards(frame({}, {**warm}, {"attack": "pgd", **warm}))
    assert board.columns == ["clean", "fgsm", "fgsm (warm)", "pgd", "worst case"]


def test_one_number_checked_and_unchecked_is_shown_once():
    (board,) = boards(
        frame({"flags": "unchecked", "spec_hash": "0" * 16}, {"spec_hash": "1" * 16, "flags": "few-episodes"})
    )
    assert board.scores["maml"]["fgsm"].seeds == 1
    assert board.shared == {"few-episodes"}


@pytest.mark.parametrize(
    ("support", "query", "surrogate", "told"),
    [
        ("poisoned", "clean", "none", "poisoned support, clean query"),
        ("poisoned", "adv", "none", "poisoned support, attacked query"),
        ("clean", "transfer", "protonet", "clean support, query from protonet"),
    ],
)
def test_titles_word_the_scenario(support, query, surrogate, told):
    assert f" · {told} · " in drawn(frame({"support": support, "query": query, "surrogate": surrogate}))


def test_attacks_of_two_surrogates_are_in_two_tables():
    rows = [{"query": "transfer", "surrogate": name} for name in ("maml", "protonet")]
    assert [board.setting["surrogate"] for board in boards(frame(*rows))] == ["maml", "protonet"]


def counted(*right):
    """Answers in which that many of ten queries are right, an episode each."""
    return np.arange(10) < np.array(right)[:, None]


def mixed(right, wrong):
    """Two episodes of ten queries, of which the first are right and those listed are not."""
    return np.tile((np.arange(10) < right) & ~np.isin(np.arange(10), wrong), (2, 1))


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [({}, 0.4), ({"query": "transfer", "surrogate": "aq"}, 0.4), ({"support": "adv"}, 0.7),
     ({"support": "poisoned", "query": "clean"}, 0.7)],
)  # fmt: skip
def test_what_is_wrong_without_attack_is_not_right_in_the_worst_case(tmp_path, scenario, expected):
    # Without attack five of ten are right; the attacks leave eight, but for one each.
    clean = mixed(5, [])
    records = [planted(mixed(8, [0]), clean=clean, **scenario)]
    records.append(planted(mixed(8, []), clean=clean, attack="fgsm", **scenario))
    rows = build(stored(tmp_path, *records))
    assert rows["worst_case_accuracy"].tolist() == pytest.approx([expected] * 2)
    told = "Worst case: right under every attack of the table"
    text = " ".join(drawn(rows).split())
    assert (f"{told}, and without any." in text) == (expected == 0.4)
    assert f"{told}, and without any." in text or f"{told}." in text


@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_no_worst_case_is_above_the_clean_accuracy(answers, clean):
    clean = np.reshape(clean, (2, 3))
    rows = built(
        *(
            planted(np.reshape(robust, (2, 3)), clean=clean, attack=f"a{number}")
            for number, robust in enumerate(answers)
        )
    )
    assert (rows["worst_case_accuracy"] <= rows["clean_accuracy"]).all()


FILE = {"query": "transfer", "surrogate": "maml (abcdef01)"}


@pytest.mark.parametrize(
    "other",
    [{"trained": "file 1"}, {"trained": "file 0", "surrogate_code": "v2"}, {"trained": "file 1", "attack": "fgsm"}],
    ids=str,
)
def test_two_surrogates_of_one_label_are_never_mixed(tmp_path, other):
    first, second = planted(counted(8, 8), trained="file 0", **FILE), planted(counted(3, 1), **FILE, **other)
    rows = build(stored(tmp_path, first, second)).set_index("spec_hash")
    assert rows["worst_case_accuracy"].to_dict() == {first["key"]: 0.8, second["key"]: 0.2}
    assert rows["attack_hash"].nunique() == rows["surrogate"].nunique() == 2
    assert all(re.fullmatch(r"maml \(abcdef01\) #[0-9a-f]{4}", label) for label in rows["surrogate"])
    shown = [board.scores["maml"][board.columns[-1]].mean for board in boards(rows.reset_index())]
    assert sorted(shown) == pytest.approx([20, 80])


def test_the_worst_case_is_over_the_attacks_on_one_surrogate(tmp_path):
    # On each file fgsm and pgd fail on other queries: 7 and 3 of ten stay right, not the 0 of all four.
    low, high = np.arange(10) < 3, np.arange(10) >= 3
    answers = {("fgsm", "0"): high, ("pgd", "0"): high, ("fgsm", "1"): low, ("pgd", "1"): low | (np.arange(10) == 9)}
    records = [
        planted(np.tile(right, (2, 1)), attack=attack, trained=f"file {name}", **FILE)
        for (attack, name), right in answers.items()
    ]
    rows = build(stored(tmp_path, *records))
    assert sorted(rows["worst_case_accuracy"]) == [0.3, 0.3, 0.7, 0.7]
    assert (rows["worst_case_accuracy"] <= rows["robust_accuracy"]).all()
    found = [board.scores["maml"] for board in boards(rows)]
    assert sorted(scores["worst case"].mean for scores in found) == pytest.approx([30, 70])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fgsm", "pgd"]), st.sampled_from(["file 0", "file 1", None]), st.integers(0, 1),
            st.lists(st.booleans(), min_size=6, max_size=6),
        ),
        min_size=1, max_size=10, unique_by=lambda case: case[:3],
    )
)  # fmt: skip
def test_no_row_vanishes_and_no_worst_case_is_above_the_row(cases):
    records = [
        planted(np.reshape(robust, (2, 3)), attack=attack, trained=trained, seed=seed, **FILE)
        for attack, trained, seed, robust in cases
    ]
    rows = built(*records)
    assert sorted(rows["spec_hash"]) == sorted(record["key"] for record in records)
    assert (rows["worst_case_accuracy"] <= rows["robust_accuracy"]).all()
    shown = [
        score for board in boards(rows) for scores in board.scores.values() for name, score in scores.items()
        if name not in {"clean", "worst case"}
    ]  # fmt: skip
    assert sum(score.seeds for score in shown) == len(records)


def test_seeds_of_a_trained_surrogate_are_averaged(tmp_path):
    told = {"query": "transfer", "surrogate": "aq"}
    rows = build(stored(tmp_path, *(planted(counted(5 + seed, 5 + seed), seed=seed, **told) for seed in (0, 2))))
    (board,) = boards(rows)
    assert board.setting["surrogate"] == "aq"
    assert (board.scores["maml"]["pgd"].mean, board.scores["maml"]["pgd"].seeds) == (60, 2)


def test_wide_tables_tell_the_strongest_attack_of_each_seed_and_the_mean_over_seeds():
    told = {("fgsm", 0): (0.2, 0.3), ("pgd", 0): (0.5, 0.1), ("fgsm", 1): (0.9, 0.05), ("pgd", 1): (0.8, 0.2)}
    rows = [{"attack": attack, "seed": seed, "attack_success_rate": success, "worst_decile_accuracy": decile}
            for (attack, seed), (success, decile) in told.items()]  # fmt: skip
    (board,) = boards(frame(*rows))
    assert board.extras["maml"]["success"] == "70.0", "of 50 and 90"
    assert board.extras["maml"]["worst 10 %"] == "7.5", "of 10 and 5"


@pytest.mark.parametrize("turned", [False, True])
def test_of_several_records_of_one_cell_the_newest_checked_one_is_shown(tmp_path, turned):
    # In both orders of their hashes: the three differ in what checked them only.
    days = {"old": "2026-01-01", "new": "2026-01-02", "": "2026-01-03"}
    if turned:
        days |= {"old": "2026-01-02", "new": "2026-01-01"}
    records = {
        checks: planted(
            counted(count, count), checks=checks, written=f"{days[checks]}T00:00:00Z",
            flags=["few-episodes"] if checks else ["unchecked"],
        )
        for checks, count in (("old", 5), ("new", 6), ("", 7))
    }  # fmt: skip
    fgsm = planted(counted(9, 9), attack="fgsm")
    rows = build(stored(tmp_path, *records.values(), fgsm))
    (board,) = boards(rows)
    newest = "old" if turned else "new"
    mean = {"old": 50, "new": 60}[newest]
    assert board.scores["maml"]["pgd"].mean == board.scores["maml"]["worst case"].mean == mean
    assert list(rows.columns) == COLUMNS
    mine = rows.loc[rows["attack"] == "pgd", "spec_hash"].tolist()
    assert mine == [record["key"] for record in sorted(records.values(), key=lambda each: each["written"])[::-1]]


def test_a_single_training_is_told_beside_the_ranks():
    told = "Ranks rest on one training each: its luck is not in them."
    rows = [{"learner": name, "rank": 1, "seed": seed} for name in ("maml", "adml") for seed in (0, 1)]
    assert told in " ".join(drawn(frame(*rows[::2])).split())
    assert told not in " ".join(drawn(frame(*rows)).split())
    assert told not in drawn(frame(rows[0]), 200)


def test_a_worst_case_of_fewer_seeds_is_marked_and_told():
    rows = [{"attack": "fgsm", "seed": seed, "rank": 1} for seed in (0, 1)] + [{"attack": "pgd", "rank": 1}]
    rows += [{**row, "learner": "adml"} for row in rows]
    rows += [{"attack": "pgd", "rank": 1, "seed": 1, "learner": "adml"}]
    text = drawn(frame(*rows))
    assert line(text, "1   maml")[-1] == "*"
    text = " ".join(text.split())
    assert "With * it is over the seeds that saw all attacks: the other columns have more." in text
    assert "Ranks rest on one training each where a learner has one seed: its luck is not in them." in text


def test_a_number_may_be_flagged_and_rest_on_fewer_seeds():
    rows = [{"attack": "fgsm", "seed": seed} for seed in (0, 1)] + [{"attack": "pgd", "flags": "flat-in-eps"}]
    assert line(drawn(frame(*rows)), "maml")[-1].endswith("!*")


LONG = "adml:first_order=true,outer=sequential,alpha_adv=0.2"
MANY = [
    "fgsm",
    "pgd:steps=40,alpha=0.01",
    "apgd",
    "square:queries=5000",
    "mifgsm",
    "bim",
    "cw",
    "tifgsm",
    "autoattack",
]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_fit_and_lose_nothing(width):
    rows = [
        {"learner": learner, "attack": attack, "robust_accuracy": (10 * i + j) / 1000}
        for i, learner in enumerate(("maml", LONG))
        for j, attack in enumerate(MANY, start=50)
    ]
    text = drawn(frame(*rows), width)
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        assert f"{100 * row['robust_accuracy']:.1f}" in text
    for name in [*LONG.split(","), "steps=40,", "queries=5000", "worst case"]:
        assert name in text


def test_a_wide_terminal_shows_more():
    assert "trained" not in drawn(two_learners, 80)
    wide = drawn(two_learners, 140)
    assert line(wide, "maml")[-4:] == ["53.0", "12.0", "71", "s"]
