"""Checkpoints as models: they answer as the benchmark's own, their rows verify, and false rows do not."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
import torchattacks
from typer.testing import CliRunner

import robustbench_meta as rbm
from robustbench_meta.cli import app
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.checkpoints import checkpoint_bytes, read_checkpoint, weights_of
from robustbench_meta.zoo import published, stated_rows, verified_rows

LEARNERS = ["maml", "protonet", "reptile:test_updates=3", "metaoptnet", "smoothing:sigma=0.3", "aq:base=r2d2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A results folder with several learners, hardly trained."""
    folder = tmp_path_factory.mktemp("made")
    return rbm.run(
        learner=LEARNERS, attack=["none", "pgd:steps=3"], profile="smoke", backbone="conv4:width=8", meta_steps=4,
        episodes=3, checks=False, results=folder, progress=False,
    )  # fmt: skip


def checkpoint(made, learner):
    rows = made.leaderboard.set_index("learner")
    return made.path / "checkpoints" / f"{rows.loc[[learner], 'training_hash'].iloc[0]}.safetensors"


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_loaded_model_answers_as_the_benchmark_did(made, learner):
    """Episode by episode, also where the learner draws: the oracle is the record."""
    model = rbm.load_model(checkpoint(made, learner))
    accuracies = []
    for number in range(3):
        support, query = model.episode(number)
        adapted = model.adapt(*support, seed=number)
        accuracies.append(float((adapted(query.x).argmax(-1) == query.y).double().mean()))
    episodes = made.episodes.query("learner == @learner and attack == 'none'").sort_values("episode")
    assert accuracies == pytest.approx(list(episodes["robust_accuracy"]), abs=1e-6)


def test_an_adapted_model_is_a_module_that_an_attack_library_takes(made):
    model = rbm.load_model(checkpoint(made, "maml"))
    support, query = model.episode(0)
    adapted = model.adapt(*support)
    before = [each.clone() for each in adapted.parameters()]
    assert sum(each.numel() for each in before) == int(
        made.leaderboard.set_index("learner").loc[["maml"], "parameters"].iloc[0]
    )
    found = torchattacks.PGD(adapted, eps=0.1, alpha=0.02, steps=10)(query.x, query.y)
    loss = torch.nn.functional.cross_entropy
    assert loss(adapted(found), query.y) > loss(adapted(query.x), query.y)
    assert all(torch.equal(*pair) for pair in zip(before, adapted.parameters(), strict=True))
    other = model.adapt(*model.episode(1)[0])
    assert not torch.equal(other(query.x), adapted(query.x)), "each task has a model of its own"


@pytest.mark.parametrize("learner", LEARNERS)
def test_rows_verify(made, learner):
    rows = verified_rows(str(checkpoint(made, learner)))
    assert [row.attack for row in rows] == ["none", "pgd:steps=3"]
    assert {row.verdict for row in rows} == {"equal"}


def test_rows_of_several_norms_and_scenarios_verify_and_a_warm_start_or_a_surrogate_is_not_guessed(tmp_path):
    rbm.run(
        learner="maml", attack=["none", "pgd:steps=3,eps=0:0.1:3", "pgdl2:steps=2,eps=1"], surrogate="protonet",
        scenario=["clean/adv", "poisoned/clean", "clean/transfer"], profile="smoke", meta_steps=2, episodes=3,
        checks=False, results=tmp_path, progress=False,
    )  # fmt: skip
    rows = rbm.load_results(tmp_path).leaderboard
    file = tmp_path / "checkpoints" / f"{rows['training_hash'].iloc[0]}.safetensors"
    verdicts = {(row.attack, row.eps, row.scenario): row.verdict for row in verified_rows(str(file))}
    assert len(verdicts) == len(rows)
    for (attack, eps, scenario), verdict in verdicts.items():
        guessed = scenario == "clean/transfer" or (attack == "pgd:steps=3" and eps == "0.1")
        assert verdict == ("not verified" if guessed else "equal"), (attack, eps, scenario)
    assert "not verified" in verdicts.values()
    assert ("pgdl2:steps=2", "1", "poisoned/clean") in verdicts


@pytest.fixture
def entry(made, tmp_path):
    """A folder with one checkpoint and its rows, to be falsified."""
    (tmp_path / "checkpoints").mkdir()
    file = checkpoint(made, "maml")
    copy = tmp_path / "checkpoints" / file.name
    copy.write_bytes(file.read_bytes())
    (tmp_path / "leaderboard.csv").write_bytes((made.path / "leaderboard.csv").read_bytes())
    return copy


def falsify(entry, attack, **values):
    path = entry.parents[1] / "leaderboard.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name, value in values.items():
        rows.loc[(rows["learner"] == "maml") & (rows["attack"] == attack), name] = value
    rows.to_csv(path, index=False)


def test_a_raised_number_is_seen(entry):
    _, attacked = stated_rows(str(entry))
    falsify(entry, "pgd:steps=3", robust_accuracy=str(float(attacked["robust_accuracy"]) + 0.02))
    assert [row.verdict for row in verified_rows(str(entry))] == ["equal", "different"]
    told = CliRunner().invoke(app, ["verify", str(entry), "--json"])
    assert told.exit_code == 1
    assert "1 of 2 rows" in told.stderr
    assert [row["verdict"] for row in json.loads(told.stdout)["rows"]] == ["equal", "different"]


def test_the_number_of_a_weaker_attack_is_seen(entry):
    clean, _ = stated_rows(str(entry))
    falsify(entry, "pgd:steps=3", robust_accuracy=clean["robust_accuracy"])
    assert [row.verdict for row in verified_rows(str(entry))] == ["equal", "different"]


def test_other_weights_under_the_same_name_are_seen(entry):
    data = entry.read_bytes()
    trained, about = read_checkpoint(data, None), weights_of(data)[1]
    trained.weights = {name: -weight for name, weight in trained.weights.items()}
    entry.write_bytes(checkpoint_bytes(trained, about))
    assert "different" in {row.verdict for row in verified_rows(str(entry))}


@pytest.mark.parametrize(("column", "value"), [("meta_steps", "40"), ("learner", "maml:alpha=0.1"), ("seed", "1")])
def test_rows_of_another_training_are_refused(entry, column, value):
    for attack in ("none", "pgd:steps=3"):
        falsify(entry, attack, **{column: value})
    with pytest.raises(BenchError, match=f"was trained otherwise than its rows say: {column}"):
        verified_rows(str(entry))


def test_a_checkpoint_without_rows_is_told(entry):
    (entry.parents[1] / "leaderboard.csv").unlink()
    with pytest.raises(BenchError, match="no row of"):
        verified_rows(str(entry))


def test_damage_is_told(entry):
    entry.write_bytes(entry.read_bytes()[:-3])
    with pytest.raises(BenchError, match="damaged"):
        rbm.load_model(entry)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((5, 1, 28, 27), [0, 1, 2, 3, 4], "expected images"), ((5, 1, 28, 28), [0, 1, 2, 3], "expected images"),
        ((5, 1, 28, 28), [0, 1, 2, 3, 5], "labels from 0 to 4"), ((0, 1, 28, 28), [], "labels from 0 to 4"),
    ],
)  # fmt: skip
def test_a_support_set_that_is_none_is_told(made, x, y, message):
    with pytest.raises(BenchError, match=message):
        rbm.load_model(checkpoint(made, "maml")).adapt(torch.zeros(x), torch.tensor(y, dtype=torch.int64))


def test_each_published_checkpoint_has_rows_and_can_be_loaded():
    assert published()
    for name in published():
        assert "none" in {row["attack"] for row in stated_rows(name)}
        model = rbm.load_model(name)
        support, query = model.episode(0)
        assert model.adapt(*support)(query.x).shape == (25, 5)
    assert CliRunner().invoke(app, ["zoo"]).stdout.count("5w1s") == len(published())


def test_an_unknown_name_is_told_with_what_is_near():
    with pytest.raises(BenchError, match=r"unknown checkpoint 'glyphs/5w1s/madl'.*did you mean 'glyphs/5w1s/maml'"):
        rbm.load_model("glyphs/5w1s/madl")
