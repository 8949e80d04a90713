"""Checks: each flag on planted results that call for it, and on none that do not."""

from __future__ import annotations

import json
import math
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_meta.contracts import Random
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.batch_dependence import influence_of_mates
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.query_counter import QueryCount
from robustbench_meta.evaluation.attack_checks import self_test, undefended
from robustbench_meta.evaluation.episode_evaluator import AdaptableModel, EpisodeEvaluator
from robustbench_meta.evaluation.flags import ENOUGH, FLAGS, assess, of_training
from robustbench_meta.evaluation.model_checks import Observation, UnexposedCopy
from robustbench_meta.evaluation.statistics import above
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.probes import checked_of, probes
from robustbench_meta.experiment.profiles import PROFILES
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.results.cross_row_flags import flags_between
from robustbench_meta.results.records import finite, pack
from robustbench_meta.results.store import Store
from tests.helpers.worlds import make_world, random_tasks

LINF = ThreatModel("linf", 0.1)


def answers(accuracy, episodes=ENOUGH, queries=25, seed=0):
    """Right or wrong [episodes, queries]; what is right at a lower accuracy is so at a higher one."""
    return np.random.default_rng(seed).random((episodes, queries)) < accuracy


def armed(registry, name="pgd", threat=LINF, **options):
    return AttackAtEps(registry.make("attack", name, options), threat)


def flags(
    registry, robust=0.4, name="pgd", clean=0.9, episodes=ENOUGH, effects=(0.2, 0.3, 0.25), observation=None, **found
):
    honest = {
        "noise": 0.85, "single step": 0.5, "pgd": 0.4, "pgd, 2 eps": 0.1, "pgd, full range": 0.0, "black box": 0.6,
        "stronger": 0.4,
    }  # fmt: skip
    probed = {key.replace("_", " "): value for key, value in found.items()}
    probed = honest | {"pgd, 2 eps": probed.pop("twice", 0.1), "pgd, full range": probed.pop("full", 0.0)} | probed
    reliability = assess(
        Scenario(query=armed(registry, name)), answers(clean, episodes), answers(robust, episodes),
        {key: answers(value, checked_of(episodes)) for key, value in probed.items()},
        observation or Observation(queries=800),
        effects=np.array(effects), failed={}, way=5, precision="float32",
    )  # fmt: skip
    return reliability.flags


def test_a_sound_row_has_no_flag(registry):
    assert flags(registry) == []


@pytest.mark.parametrize(
    ("seen", "flag"),
    [
        ({"effects": (0.0, 0.0, 0.0)}, "no-effect"),
        ({"effects": (0.1, -0.1, 0.05)}, "no-effect"),
        ({"robust": 0.88, "pgd": 0.88, "stronger": 0.88, "noise": 0.6}, "weaker-than-noise"),
        ({"robust": 0.6, "stronger": 0.6}, "weaker-than-fgsm"),
        ({"stronger": 0.3}, "not-converged"),
        ({"black_box": 0.2}, "masked-gradients"),
        ({"twice": 0.6}, "flat-in-eps"),
        ({"robust": 0.9, "pgd": 0.9, "twice": 0.9, "full": 0.9, "stronger": 0.9}, "flat-in-eps"),
        ({"twice": 0.4, "full": 0.35}, "robust-at-full-range"),
        ({"robust": 0.95, "stronger": 0.95}, "above-clean"),
        ({"clean": 0.2}, "at-chance"),
        ({"episodes": ENOUGH - 1}, "few-episodes"),
        ({"observation": Observation(queries=800, probabilities=800)}, "probabilities"),
        ({"observation": Observation(queries=800, zero_gradients=9)}, "zero-gradients"),
        ({"observation": Observation(queries=800, varies=0.01)}, "random-outputs"),
        ({"observation": Observation(queries=800, mates=0.01)}, "transductive"),
        ({"observation": Observation(queries=800, remembers=0.01)}, "remembers"),
        ({"observation": Observation(queries=800, one_class=401)}, "one-class"),
    ],
)
def test_each_flag_where_it_is_called_for(registry, seen, flag):
    assert flag in flags(registry, **seen)


@pytest.mark.parametrize(
    "seen",
    [
        {"stronger": 0.395},  # within the interval
        {"black_box": 0.4},
        {"full": 0.2, "twice": 0.35},  # chance
        {"observation": Observation(queries=800, zero_gradients=8)},  # 1 %
        {"observation": Observation(queries=800, varies=1e-6, mates=1e-6, remembers=1e-6)},  # rounding
        {"observation": Observation(queries=800, one_class=400)},
        {
            "clean": 0.25,
            "robust": 0.0,
            "single step": 0.0,
            "noise": 0.24,
            "pgd": 0.0,
            "twice": 0.0,
            "black box": 0.1,
            "stronger": 0.0,
        },
    ],
)
def test_no_flag_at_the_edge(registry, seen):
    assert flags(registry, **seen) == []


def test_probes_are_for_attacked_rows_with_room_to_attack(registry):
    probe_plan = build_grid(RunSpec.read(profile="smoke", learners=("maml",)), registry, None).probe_plan
    shape = (1, 28, 28)

    def names(scenario):
        return {probe.name for probe in probes(probe_plan, scenario, shape)}

    pgd, none = armed(registry), Scenario()
    assert names(none) == set()
    assert names(Scenario(query=armed(registry, threat=ThreatModel("linf", 0.0)))) == set()
    assert names(Scenario(query=armed(registry, "jsma", ThreatModel("l0", 4.0)))) == set()
    white = {"pgd", "pgd, 2 eps", "pgd, full range", "black box"}
    assert names(Scenario(query=pgd)) == white | {"noise", "single step", "stronger"}
    for name in ("fgsm", "gn", "noise"):  # whatever they declare themselves to be
        assert names(Scenario(query=armed(registry, name))) == white | {"noise", "single step"}
    assert names(Scenario(query=pgd, surrogate="x")) == {"noise"}  # one step may well transfer better than many
    assert names(Scenario(support=pgd)) == {"noise"}
    assert names(Scenario(support=pgd, support_attack="poisoned")) == {"noise", "single step", "stronger"}
    full = next(p for p in probes(probe_plan, Scenario(query=armed(registry, "pgdl2", ThreatModel("l2", 1.0))), shape)
                if p.name == "pgd, full range")  # fmt: skip
    assert full.scenario.query.threat.eps == pytest.approx(28.0)


class Showing(nn.Module):
    """A network that keeps in itself how often it was shown images, and may answer by it."""

    def __init__(self, net, drift):
        super().__init__()
        self.net, self.drift, self.shown = net, drift, 0

    def forward(self, x):
        self.shown += 1
        outputs = self.net(x)
        return outputs + self.drift * self.shown * torch.arange(outputs.shape[-1])


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize("copied", [True, False])
def test_answers_that_depend_on_what_was_shown_before_are_seen(registry, drift, copied):
    engine, _ = make_world(registry, "protonet", "mlp", plan=Plan("loop", "loop", 5))
    engine.network.module = module = Showing(engine.network.module, drift).eval()
    engine.set_mode(training=False)
    if not copied:
        module.lock = threading.Lock()  # it has no copy
    theta = engine.theta({name: weight.detach() for name, weight in module.named_parameters()})
    trained_model, noise = AdaptableModel(engine, theta), Scenario(query=armed(registry, "noise"))
    episode_evaluator, fresh = (
        EpisodeEvaluator(trained_model, random_tasks(), {}, torch.device("cpu")),
        UnexposedCopy(trained_model),
    )
    episode_evaluator.evaluate(noise)
    seen = fresh.observe(episode_evaluator, noise).remembers
    assert seen > 0.01 if drift else seen < 1e-9


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_the_undefended_model_is_the_nearest_class_mean(registry, loss):
    tasks = random_tasks(way=3, shot=2, query=4)
    engine, _ = make_world(registry, "maml", "mlp", loss=loss)
    model = undefended(engine, tasks)
    x = tasks.query.x.flatten(2)
    for task in range(5):
        means = torch.stack([tasks.support.x[task].flatten(1)[tasks.support.y[task] == k].mean(0) for k in range(3)])
        nearest = torch.cdist(x[task], means).argmin(-1)
        assert torch.equal(model(tasks.query.x)[task].argmax(-1), nearest)
        assert torch.equal(model.task(task)(tasks.query.x[task]), model(tasks.query.x)[task])
        expected = torch.nn.functional.cross_entropy(model(tasks.query.x)[task], tasks.query.y[task], reduction="none")
        torch.testing.assert_close(model.loss(*tasks.query)[task], expected)


def test_a_class_without_support_images_leaves_the_undefended_model_finite_and_attackable(registry):
    """A coin may fall on one side only: half of the tasks of `toy` at one shot."""
    drawn = random_tasks(way=2, shot=1, query=4)
    tasks = TaskBatch(Batch(drawn.support.x, torch.zeros_like(drawn.support.y)), drawn.query)
    engine, _ = make_world(registry, "maml", "mlp", way=2)
    logits = undefended(engine, tasks)(tasks.query.x)
    mean, x = tasks.support.x.flatten(2).mean(1), tasks.query.x.flatten(2)
    assert torch.equal(logits.argmax(-1) == 0, torch.cdist(x, mean[:, None])[..., 0] < x.norm(dim=-1))
    effects = self_test(engine, armed(registry, "fgsm"), tasks).detach().numpy()
    assert (effects > 0).all()


def test_an_attack_on_the_toy_is_neither_without_effect_nor_unchecked(registry, tmp_path):
    """Square, one of the probes, says that it cannot work on features that are no image: it is not run."""
    run = RunSpec.read(
        dataset="toy", learners=("maml",), attacks=("fgsm", "pgd:eps=0.5"), profile="smoke", shot=1, meta_steps=2,
        episodes=40,
    )  # fmt: skip
    store = Store(tmp_path)
    assert runner.run(build_grid(run, registry, None), registry, store, torch.device("cpu")).failed == []
    for path in (tmp_path / "records").glob("*.json"):
        record = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
        assert record["checks"]["effect"] > 0
        assert record["checks"]["failed"] == {}
        assert not {"no-effect", "unchecked"} & set(record["flags"])


def test_what_is_not_finite_is_null_in_a_record():
    record = {"a": math.nan, "b": [1.5, -math.inf, {"c": math.inf}], "d": "NaN", "e": (0.0, True, None)}
    assert finite(record) == {"a": None, "b": [1.5, None, {"c": None}], "d": "NaN", "e": [0.0, True, None]}


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "square", "bim", "torchattacks-pgd"])
def test_attacks_that_work_show_it_on_the_undefended_model(registry, name):
    engine, _ = make_world(registry, "maml", "mlp")
    options = {"queries": "100"} if name == "square" else {}
    assert above(self_test(engine, armed(registry, name, **options), random_tasks()).detach().numpy(), 0.0)


def test_mates_have_no_influence_on_group_norm_and_some_on_batch_norm(registry):
    tasks, found = random_tasks(), {}
    for norm in ("group", "batch"):
        engine, weights = make_world(registry, "maml", ("conv4", {"norm": norm, "width": "4"}))
        theta = engine.theta({name: weight.detach() for name, weight in weights.items()})
        with torch.no_grad():
            answers = partial(engine.logits, theta)
            found[norm] = influence_of_mates(answers, tasks.query.x, answers(tasks.query.x))
    assert max(found["group"].values()) < 1e-12
    assert found["batch"]["when it is asked alone"] > 1e-3
    assert found["batch"]["when a neighbour changes"] > 1e-3
    assert found["batch"]["in another order"] < 1e-12  # the statistics of a batch know no order


# -- flags that come from rows beside each other ---------------------------------------------------


def record(key, method, accuracy, query="adv", training="t", eps=0.1):
    return {
        "key": key, "method": method, "training": training, "robust": pack(answers(accuracy, 200)),
        "spec": {"attack": {"norm": "linf", "eps": eps}, "support": "clean", "query": query, "episodes": 200},
    }  # fmt: skip


@pytest.mark.parametrize(
    "failed", ["noise", "single step", "pgd", "pgd, 2 eps", "pgd, full range", "black box", "stronger"]
)
def test_a_probe_that_failed_is_told_and_costs_no_row(registry, failed):
    honest = {"noise": 0.85, "single step": 0.5, "pgd": 0.4, "pgd, 2 eps": 0.1, "pgd, full range": 0.0,
              "black box": 0.6, "stronger": 0.4}  # fmt: skip
    reliability = assess(
        Scenario(query=armed(registry)), answers(0.9), answers(0.4),
        {name: answers(value, checked_of(ENOUGH)) for name, value in honest.items() if name != failed},
        Observation(queries=800),
        effects=None, failed={failed: "it raised"}, way=5, precision="float32",
    )  # fmt: skip
    assert reliability.flags == ["unchecked"]
    assert reliability.failed == {failed: "it raised"}


def test_a_single_step_alone_is_no_claim():
    alone = [record("a", "single-step", 0.5), record("n", "random", 0.8)]
    assert flags_between(alone) == {"a": ["fgsm-alone"], "n": ["fgsm-alone"]}
    assert flags_between([*alone, record("b", "iterative", 0.3)]) == {}
    assert flags_between([*alone, record("b", "iterative", 0.3, training="other")]).keys() == {"a", "n"}


@pytest.mark.parametrize("other", [("black-box", "adv"), ("iterative", "transfer")])
def test_a_blind_attack_that_beats_the_white_box_ones_masks_their_gradients(other):
    white = [record("f", "single-step", 0.6), record("p", "iterative", 0.5)]
    assert flags_between([*white, record("o", other[0], 0.3, other[1])]) == {
        "f": ["masked-gradients"], "p": ["masked-gradients"],
    }  # fmt: skip
    assert flags_between([*white, record("o", other[0], 0.6, other[1])]) == {}


def test_random_draws_of_a_task_are_its_own():
    assert torch.equal(Random([3]).uniform(torch.zeros(1, 4))[0], Random([1, 3]).uniform(torch.zeros(2, 4))[1])


def test_every_flag_has_its_page():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8")
    for flag in FLAGS:
        assert f"\n## `{flag}`\n" in page, flag


@pytest.mark.parametrize(
    ("losses", "flat"),
    [
        ([1.609, 1.62, 1.608], True), ([1.9, 1.8, 1.7], False), ([1.5, 1.4, 1.3], False), ([0.4, 0.4, 0.41], False),
        ([2.5, 2.5], True), ([1.61], False), ([], False),
    ],
)  # fmt: skip
def test_a_training_whose_loss_did_not_fall_is_flagged(losses, flat):
    """A blind guess among five classes costs ln 5 = 1.609, or 4/25 = 0.16 squared."""
    assert of_training([{"loss": loss} for loss in losses], "cross_entropy", 5) == ["loss-flat"] * flat
    assert of_training([{"loss": 0.161}, {"loss": 0.16}], "squared", 5) == ["loss-flat"]
    assert of_training([{"loss": 0.161}, {"loss": 0.15}], "squared", 5) == []


def test_how_an_attack_searched_is_counted():
    assert QueryCount(10).method() == "random"
    assert QueryCount(10, forward=500).method() == "black-box"
    assert QueryCount(10, forward=10, gradients=10).method() == "single-step"
    assert QueryCount(10, forward=10, gradients=11).method() == "iterative"


def test_no_flag_has_the_name_of_a_profile():
    assert not set(FLAGS) & set(PROFILES)
