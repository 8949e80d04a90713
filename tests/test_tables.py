"""The terminal tables, from leaderboards written by hand: every number is looked up where a reader would."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from robustbench_meta.boards import boards
from robustbench_meta.leaderboard import COLUMNS
from robustbench_meta.tables import tables

BASE = {
    "dataset": "glyphs", "way": 5, "shot": 1, "backbone": "conv4:width=32", "norm": "group", "learner": "maml",
    "attack": "fgsm", "threat_norm": "linf", "eps": "0.1", "support": "clean", "query": "adv", "seed": 0,
    "episodes": 200,
    "clean_accuracy": 0.856, "clean_ci95": 0.0123, "robust_accuracy": 0.402, "robust_ci95": 0.0214,
    "worst_case_accuracy": 0.402, "attack_success_rate": 0.53, "worst_decile_accuracy": 0.12, "inference": "inductive",
    "flags": "", "train_seconds": 71.2, "adapt_ms_per_task": 1.0, "attack_ms_per_task": 2.0, "parameters": 112_000,
    "device": "cpu", "version": "0.1.0", "spec_hash": "0" * 16,
    "queries": 5, "meta_steps": 600, "tasks_per_step": 8, "training_attack": "none", "training_eps": "0",
}  # fmt: skip
CLEAN = {"attack": "none", "threat_norm": "none", "eps": "0", "query": "clean"}


def frame(*rows):
    return pd.DataFrame([{**BASE, **row} for row in rows], columns=COLUMNS)


def drawn(leaderboard, width=80, color=False):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=color, color_system="standard" if color else None)
    for table in tables(leaderboard, width):
        console.print(table)
    return out.getvalue()


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
    assert line(text, "maml") == ["maml", "85.6", "±1.2", "40.2", "±2.1", "19.8", "±2.1", "19.7"]
    assert line(text, "adml") == ["adml", "83.0", "±1.2", "67.3", "±2.1", "40.7", "±2.1", "40.1"]
    assert "95 % interval over 200 episodes" in " ".join(text.split())


def test_learners_rank_by_worst_case():
    text = drawn(two_learners)
    assert text.index("adml") < text.index("maml")
    assert [list(board.scores) for board in boards(two_learners)] == [["adml", "maml"]]


def test_the_best_of_each_column_is_bold():
    text = drawn(two_learners, color=True)
    for best in ("85.6", "67.3", "40.7", "40.1"):
        assert re.search(rf"\x1b\[1m *{best}", text)
    for other in ("83.0", "40.2", "19.8", "19.7"):
        assert other in text
        assert not re.search(rf"\x1b\[1m *{other}", text)


def test_equal_as_shown_is_equally_bold():
    text = drawn(frame({"robust_accuracy": 0.50001}, {"learner": "adml", "robust_accuracy": 0.50002}), color=True)
    assert text.count("\x1b[1m50.0") == 2


def test_the_title_tells_the_setting():
    text = drawn(frame({"support": "adv", "query": "clean", "threat_norm": "l2", "eps": "3/2"}))
    assert "glyphs · 5-way 1-shot · conv4:width=32" in text
    assert "L2 ε = 3/2 · attacked support, clean query · inductive (group norm)" in text


@pytest.mark.parametrize(
    "other",
    [
        {"inference": "transductive", "norm": "batch"}, {"eps": "8/255"}, {"threat_norm": "l2"}, {"support": "adv"},
        {"dataset": "toy"}, {"way": 20}, {"shot": 5}, {"backbone": "mlp"}, {"episodes": 600},
    ],
    ids="-".join,
)  # fmt: skip
def test_what_cannot_be_compared_is_never_in_one_table(other):
    found = list(boards(frame({}, {"learner": "adml", **other})))
    assert [list(board.scores) for board in found] == [["maml"], ["adml"]]


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


def test_one_name_trained_in_two_ways_is_two_rows():
    (board,) = boards(frame({"robust_accuracy": 0.3}, {"robust_accuracy": 0.6, "train_seconds": 140.0}))
    means = {learner: row["fgsm"].mean for learner, row in board.scores.items()}
    assert means == {"maml (seed 0, trained in 140.0 s)": 60, "maml (seed 0, trained in 71.2 s)": 30}


def test_flags_are_shown_with_their_number():
    text = drawn(frame({"flags": "masking noisy"}, {"learner": "adml"}))
    assert line(text, "maml")[-1].endswith("!")
    assert "! maml under fgsm: masking noisy." in text


LONG = "adml:first_order=true,outer=sequential,alpha_adv=0.2"
MANY = [
    "fgsm",
    "pgd:steps=40,alpha=0.01",
    "apgd",
    "square:n_queries=5000",
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
    for name in [*LONG.split(","), "steps=40,", "n_queries=5000", "worst case"]:
        assert name in text


def test_a_wide_terminal_shows_more():
    assert "trained" not in drawn(two_learners, 80)
    wide = drawn(two_learners, 140)
    assert line(wide, "maml")[-4:] == ["53.0", "12.0", "71", "s"]
