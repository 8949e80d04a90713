"""Planted cheats are flagged or refused, each for its own reason; the honest learner they stand on is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.engine.training import make_engine, meta_train
from robustbench_meta.errors import BenchError
from robustbench_meta.evaluation.evaluator import evaluate_cells
from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.experiment import probes
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs.context import WorkerContext, self_check
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.store import Store

CPU = torch.device("cpu")
EPISODES = 12
FEW_QUERIES = 60
"""Of the black-box probe, where it is not what tells."""


@pytest.fixture(scope="module")
def plugins():
    return load_registry(Path(__file__).parent / "cheats")


@pytest.fixture(scope="module")
def honest(plugins):
    """θ of a MAML that has learned something."""
    grid = grid_of(plugins, ("none",))
    return meta_train(grid, grid.trainings[0], CPU, Plan("vmap", "loop", 4), cores=Cores(lambda: 2)).weights


def grid_of(plugins, attacks, learner="maml", **given):
    spec = RunSpec.read(
        learners=(learner,),
        attacks=attacks,
        backbone="conv4:width=16",
        meta_steps=150,
        **{"episodes": EPISODES, **given},
    )
    return build_grid(spec, plugins, None)


def outcomes(plugins, weights, attacks, learner="maml", **given):
    """By attack, support and query: the outcome of evaluating a learner with these weights."""
    grid = grid_of(plugins, attacks, learner, **given)
    how = "vmap" if learner == "maml" else "loop"  # cheats do what cannot be mapped
    engine, _ = make_engine(grid, grid.trainings[0], CPU, Plan(how, how, 8), Cores(lambda: 2))
    found = evaluate_cells(engine, weights, grid.splits.test, grid.cells, CPU, probe_plan=grid.probe_plan)
    return {cell.attack: found[cell.key] for cell in grid.cells}


def flags(outcome):
    assert not isinstance(outcome, BenchError), outcome
    return set(outcome.reliability.flags)


def test_an_honest_learner_under_honest_attacks_is_flagged_for_its_few_episodes_only(plugins, honest):
    found = outcomes(plugins, honest, ("none", "fgsm", "pgd", "square:queries=50"), episodes=24)
    seen = {name: flags(outcome) for name, outcome in found.items()}
    assert seen.pop("square:queries=50") >= {"few-episodes", "not-converged"}, "so few queries are weak, and it is said"
    assert seen == {name: {"few-episodes"} for name in ("none", "fgsm", "pgd")}
    assert found["none"].robust.mean() > 0.5
    seen = found["pgd"].reliability.accuracies
    assert seen["noise"] > seen["single step"] > seen["pgd"] >= seen["pgd, 2 eps"] >= seen["pgd, full range"]


@pytest.mark.parametrize(
    ("cheat", "why"),
    [
        ("saturated", {"zero-gradients"}),
        ("quantised", {"zero-gradients", "masked-gradients"}),
        ("noisy", {"random-outputs"}),
        ("softmax", {"probabilities"}),
        ("masked", {"masked-gradients"}),
        ("remembering", {"zero-gradients", "remembers"}),
        ("remembering:slope=1", {"remembers"}),
        ("one-class", {"at-chance", "one-class"}),
    ],
)
def test_a_cheating_learner_is_flagged_for_its_reason(plugins, honest, cheat, why, monkeypatch):
    if "masked-gradients" not in why:
        monkeypatch.setattr(probes, "BLACK_BOX_QUERIES", FEW_QUERIES)
    episodes = EPISODES if "masked-gradients" in why else 8
    found = outcomes(plugins, honest, ("pgd",), cheat, episodes=episodes)
    assert why <= flags(found["pgd"]), found["pgd"].reliability
    others = {"zero-gradients", "random-outputs", "probabilities", "transductive", "remembers", "at-chance"} - why
    assert not flags(found["pgd"]) & others


def test_a_learner_that_looks_at_batch_mates_is_refused(plugins, tmp_path):
    grid = grid_of(plugins, ("pgd",), "peeking")
    with pytest.raises(BenchError, match="declared inductive, but a query's logits change"):
        self_check(WorkerContext(Store(tmp_path), CPU), grid, grid.trainings[0])


def test_a_noisy_learner_is_not_refused_for_looking_at_batch_mates(plugins, tmp_path):
    grid = grid_of(plugins, ("pgd",), "noisy")
    self_check(WorkerContext(Store(tmp_path), CPU), grid, grid.trainings[0])


def test_an_attack_without_effect_is_flagged(plugins, honest):
    found = flags(outcomes(plugins, honest, ("idle",))["idle"])
    assert {"no-effect", "weaker-than-fgsm"} <= found


def test_what_an_attack_declares_itself_to_be_saves_it_from_nothing(plugins, honest):
    found = outcomes(plugins, honest, ("lazy", "helping"))
    assert "weaker-than-fgsm" in flags(found["lazy"])
    assert found["helping"].robust.mean() > found["helping"].clean.mean()
    assert {"above-clean", "weaker-than-fgsm", "no-effect"} <= flags(found["helping"])


BREACHES = {
    "generous": r"linf distance is 0\.101, eps is 0\.1 \(over by 0\.001\)",
    "nan": "NaN or infinite",
    "flipping": "changed the labels in place",
    "untidy": "reseeded torch's generator",
    "moody": "in another mode",
    "reseeding": "reseeded torch's generator",
    "hooking": r"left something on the model: Conv2d #\d+\._forward_hooks",
    "hooking-all": "left something on the model: torch's _global_forward_hooks",
    "patching": r"left something on the model: Conv2d #\d+\.forward",
    "patching-class": r"left something on the model: the class Conv2d\.forward",
    "patching-torch": r"left something on the model: torch\.nn\.functional\.relu",
    "buffering": r"left something on the model: Conv2d #\d+\._buffers, Conv2d #\d+\._non_persistent|left something on "
    r"the model: Conv2d #\d+\._buffers, Conv2d #\d+\.note",
}


def test_an_attack_that_breaks_its_contract_fails_its_cell_alone(plugins, honest):
    found = outcomes(plugins, honest, (*BREACHES, "fgsm"), episodes=4)
    for cheat, reason in BREACHES.items():
        assert isinstance(found[cheat], BenchError), cheat
        assert f"'{cheat}'" in str(found[cheat])
        assert re.search(reason, str(found[cheat])), found[cheat]
    assert set(FLAGS) >= flags(found["fgsm"])
    alone = outcomes(plugins, honest, ("fgsm",), episodes=4)["fgsm"]
    assert (found["fgsm"].robust == alone.robust).all(), "its neighbours cost it nothing"
