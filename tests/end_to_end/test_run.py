"""Whole runs: the same seed gives the same CSV, what is done is skipped, the toy stays at chance."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from robustbench_meta.evaluation.statistics import mean_and_ci95, worst_decile
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.results import leaderboard
from robustbench_meta.results.store import Store, pack, unpack

CPU = torch.device("cpu")
SMALL = {
    "profile": "smoke", "attacks": ("none", "fgsm", "pgd:steps=2"), "scenarios": ("clean/adv", "adv/adv"),
    "checks": False,
}  # fmt: skip


def run(registry, folder, **given):
    grid = runner.build_grid(RunSpec.read(**{**SMALL, **given}), registry, None)
    store = Store(folder)
    return runner.run(grid, registry, store, CPU), store


@pytest.fixture(scope="module")
def done(registry, tmp_path_factory):
    summary, store = run(registry, tmp_path_factory.mktemp("done"))
    assert (summary.finished, summary.skipped, summary.failed) == (10, 0, [])
    return store


def untimed(store):
    return leaderboard.build(store).drop(columns=leaderboard.COSTS)


def test_the_same_seed_gives_the_same_csv(registry, done, tmp_path):
    _, again = run(registry, tmp_path)
    pd.testing.assert_frame_equal(untimed(again), untimed(done), check_exact=True)


def test_the_same_seed_gives_the_same_checks(registry, tmp_path):
    given = {"learners": ("maml",), "attacks": ("fgsm",), "scenarios": ("clean/adv",), "checks": True}
    (_, one), (_, other) = (run(registry, tmp_path / name, **given) for name in ("one", "other"))
    pd.testing.assert_frame_equal(untimed(one), untimed(other), check_exact=True)
    [certificates] = zip(*([record["checks"] for record in store.records()] for store in (one, other)), strict=True)
    assert certificates[0] == certificates[1]
    assert certificates[0]["accuracies"]


def test_another_seed_gives_other_weights_on_the_same_episodes(registry, done, tmp_path):
    _, other = run(registry, tmp_path, seeds=(1,), learners=("maml",), attacks=("none",))
    [record] = other.records()
    first = next(r for r in done.records() if r["labels"]["learner"] == "maml" and r["labels"]["attack"] == "none")
    assert record["episodes_digest"] == first["episodes_digest"]
    assert record["robust"] != first["robust"]


def test_what_is_done_is_skipped_and_a_new_attack_trains_nothing(registry, done):
    before = {path: path.stat().st_mtime_ns for path in done.root.rglob("[!.]*.*")}
    summary, _ = run(registry, done.root)
    assert (summary.finished, summary.skipped) == (0, 10)
    summary, _ = run(registry, done.root, attacks=("bim:steps=2",), scenarios=("clean/adv",))
    assert (summary.finished, summary.skipped) == (2, 0)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_adding_cells_changes_no_other(registry, done, tmp_path):
    _, alone = run(registry, tmp_path, learners=("adml",), attacks=("fgsm",), scenarios=("adv/adv",))
    [record] = alone.records()
    same = next(r for r in done.records() if r["key"] == record["key"])
    assert (record["clean"], record["robust"]) == (same["clean"], same["robust"])


def test_the_leaderboard_is_what_the_records_say(done):
    frame = leaderboard.build(done)
    assert list(frame.columns) == leaderboard.COLUMNS
    for record in done.records():
        row = frame[frame.spec_hash == record["key"]].iloc[0]
        bits = np.unpackbits(np.frombuffer(__import__("base64").b64decode(record["robust"]["bits"]), np.uint8))[:150]
        per_episode = bits.reshape(10, 15).mean(1)
        assert row.robust_accuracy == pytest.approx(per_episode.mean(), abs=1e-6)
        assert row.robust_ci95 == pytest.approx(2.262157 * per_episode.std(ddof=1) / 10**0.5, abs=1e-5)  # t(9), tables
        assert row.worst_decile_accuracy == pytest.approx(per_episode.min(), abs=1e-6)
        assert row.worst_case_accuracy <= row.robust_accuracy + 1e-9
    csv = pd.read_csv(leaderboard.write(done), dtype={"eps": str}, keep_default_na=False)
    assert set(csv.eps) == {"0", "0.1"}


def test_the_worst_case_is_the_share_that_survives_every_attack(done):
    frame = leaderboard.build(done)
    rows = [r for r in done.records() if r["labels"]["learner"] == "maml" and r["spec"]["support"] == "adv"]
    by_attack = {r["labels"]["attack"]: unpack(r["robust"]) for r in rows}
    expected = (by_attack["fgsm"] & by_attack["pgd:steps=2"]).mean()
    worst = frame[
        (frame.learner == "maml") & (frame.support == "adv") & frame.attack.isin(by_attack)
    ].worst_case_accuracy
    assert worst.tolist() == pytest.approx([expected] * len(worst), abs=1e-6)


def test_the_checkpoint_is_the_best_on_validation(done):
    for record in done.records():
        best = max(record["history"], key=lambda entry: (entry["validation_accuracy"], -entry["validation_loss"]))
        assert record["chosen_step"] == best["step"]


@pytest.mark.parametrize("learner", ["maml", "adml", "adml:attack_on=surrogate", "aq"])
def test_the_toy_stays_at_chance(registry, tmp_path, learner):
    """Its labels do not depend on its features: the 95 % interval over 400 held-out tasks covers 50 %."""
    summary, store = run(
        registry, tmp_path, dataset="toy", learners=(learner,), attacks=("none", "fgsm"), scenarios=("clean/adv",),
        meta_steps=60, episodes=400, shot=5, query=10,
    )  # fmt: skip
    assert summary.failed == []
    for record in store.records():
        assert record["labels"]["eps"] in ("0", "0.001")
        mean, half = mean_and_ci95(unpack(record["clean"]).mean(1))
        assert abs(mean - 0.5) < half, (learner, mean, half)
        assert half < 0.02


ONE = {"learners": ("maml",), "attacks": ("none",)}


@pytest.fixture(scope="module")
def one(registry, tmp_path_factory):
    """The results of one cell, for copies to be damaged."""
    return run(registry, tmp_path_factory.mktemp("one"), **ONE)[1]


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 3, "key": "x"}', "[]"])
def test_a_damaged_record_is_told_and_computed_again(registry, one, tmp_path, caplog, damage):
    shutil.copytree(one.root, tmp_path, dirs_exist_ok=True)
    store = Store(tmp_path)
    [path] = (tmp_path / "records").iterdir()
    whole = untimed(store)
    path.write_text(damage)
    assert leaderboard.build(store).empty
    [aside] = (tmp_path / "damaged").iterdir()
    assert aside.read_text() == damage
    assert str(path) in caplog.text
    assert str(aside) in caplog.text
    summary, _ = run(registry, tmp_path, **ONE)
    assert summary.finished == 1
    pd.testing.assert_frame_equal(untimed(store), whole)


def test_a_damaged_checkpoint_is_told_and_trained_again(registry, one, tmp_path, caplog):
    shutil.copytree(one.root, tmp_path, dirs_exist_ok=True)
    [path] = (tmp_path / "checkpoints").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    summary, _ = run(registry, tmp_path, learners=("maml",), attacks=("fgsm",))
    assert (summary.finished, summary.failed) == (2, [])
    assert path.name in caplog.text


def test_packing_gives_back_what_it_was_given():
    correct = np.random.default_rng(0).random((7, 13)) < 0.5
    assert np.array_equal(unpack(json.loads(json.dumps(pack(correct)))), correct)


def test_interval_by_hand():
    mean, half = mean_and_ci95([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half == pytest.approx(3.182446 * (5 / 3) ** 0.5 / 2, abs=1e-6)  # t(3) from a table
    assert np.isnan(mean_and_ci95([0.5])[1])
    assert worst_decile(np.arange(20)) == 0.5


def test_a_learner_without_weights_is_just_evaluated(registry, tmp_path):
    """Prototypes in pixel space: nothing to train, and far above the 20 % of chance on clean glyphs."""
    summary, store = run(registry, tmp_path, learners=("protonet",), backbone="linear", attacks=("none",), episodes=100)
    assert summary.failed == []
    [record] = store.records()
    assert record["parameters"] == 0
    assert unpack(record["clean"]).mean() > 0.3


# -- transfer ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transductive(registry, tmp_path_factory):
    """A checkpoint of a MAML with batch norm."""
    folder = tmp_path_factory.mktemp("batch norm")
    run(registry, folder, learners=("maml",), attacks=("none",), backbone="conv4:norm=batch,width=4")
    return next((folder / "checkpoints").glob("*.safetensors"))


def test_a_checkpoint_of_another_backbone_and_norm_serves_as_surrogate(registry, transductive, tmp_path):
    given = {"attacks": ("fgsm",), "scenarios": ("clean/adv", "clean/transfer"), "surrogate": str(transductive)}
    summary, store = run(registry, tmp_path, **given)
    assert (summary.finished, summary.failed) == (4, [])
    frame = leaderboard.build(store)
    assert set(frame["inference"]) == {"inductive"}
    [surrogate] = set(frame.loc[frame["query"] == "transfer", "surrogate"])
    assert surrogate.startswith("maml (")
    white = frame[frame["query"] == "adv"].set_index("learner")["robust_accuracy"]
    transferred = frame[frame["query"] == "transfer"].set_index("learner")["robust_accuracy"]
    assert (white <= transferred).all()


def test_a_surrogate_that_fails_costs_the_transferred_cells_only(registry, transductive, tmp_path):
    """The file changes between the making of the grid and its reading."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(transductive.read_bytes())
    spec = {**SMALL, "attacks": ("fgsm",), "scenarios": ("clean/adv", "clean/transfer"), "surrogate": str(copy)}
    grid = runner.build_grid(RunSpec.read(**spec), registry, None)
    copy.write_bytes(transductive.read_bytes() + b" ")
    summary = runner.run(grid, registry, Store(tmp_path / "results"), CPU)
    assert summary.finished == 2
    assert {cell.query for cell, _ in summary.failed} == {"transfer"}
    assert all("changed since the run began" in reason for _, reason in summary.failed)


def test_a_learners_own_checkpoint_is_not_its_surrogate(registry, done):
    for file in (done.root / "checkpoints").glob("*.safetensors"):
        spec = {**SMALL, "attacks": ("fgsm",), "scenarios": ("clean/transfer",), "surrogate": str(file)}
        grid = runner.build_grid(RunSpec.read(**spec), registry, None)
        assert len(grid.cells) == 1
        assert any("it is itself the surrogate" in note for note in grid.notes)
