"""Scenarios: what poisoning, transfer and sweeps compute, against plain calls and finite differences."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from robustbench_meta.contracts import Attack, Random
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.attacked_model import AttackedModel, PoisonedAdaptation
from robustbench_meta.engine.engine import Plan
from robustbench_meta.errors import BenchError
from robustbench_meta.evaluation.episode_evaluator import AdaptableModel, EpisodeEvaluator
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario
from tests.helpers.worlds import PLANS, make_world, plan_id, random_tasks

CPU = torch.device("cpu")
LINF = ThreatModel("linf", 0.1)


def world(registry, learner="maml", backbone="mlp", **options):
    engine, weights = make_world(registry, learner, backbone, **options)
    engine.set_mode(training=False)
    engine.set_task_seeds(range(5))
    return engine, {name: weight.detach() for name, weight in weights.items()}


def episode_evaluator(registry, surrogates=None, learner="maml", backbone="mlp", **options):
    engine, weights = world(registry, learner, backbone, **options)
    return EpisodeEvaluator(AdaptableModel(engine, engine.theta(weights)), random_tasks(), surrogates or {}, CPU)


def held(where, scenario):
    with torch.no_grad():
        return where.evaluate(scenario).correct


# -- poisoning through adaptation ------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS, ids=plan_id)
@pytest.mark.parametrize(
    ("learner", "options"),
    [("maml", {}), ("maml", {"steps": "2"}), ("maml", {"first_order": "true"}), ("protonet", {})],
)
def test_the_poisons_gradient_is_that_of_the_queries_loss_by_finite_differences(registry, plan, learner, options):
    """Through all inner steps, second-order terms included, also where the learner itself trains first-order."""
    engine, weights = world(registry, learner, plan=plan, **options)
    tasks = random_tasks()
    victim = PoisonedAdaptation(engine, engine.theta(weights), tasks.query)
    x, y = tasks.support.x.clone().requires_grad_(), tasks.support.y
    (gradient,) = torch.autograd.grad(victim.loss(x, y).sum(), x)

    def queries_loss(images):
        with torch.no_grad():
            adapted = engine.adapt(engine.theta(weights), type(tasks.support)(images, y))
            return engine.network.losses(engine.logits(adapted, tasks.query.x), tasks.query.y).mean(1).sum()

    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    h = 1e-6
    with torch.no_grad():
        slope = (queries_loss(x + h * direction) - queries_loss(x - h * direction)) / (2 * h)
    assert slope.abs() > 1e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)


def test_poisoning_through_adaptation_hurts_more_than_an_attack_on_theta(registry):
    where = episode_evaluator(registry, backbone=("mlp", {"width": "16"}))
    pgd = AttackAtEps(registry.make("attack", "pgd", {}), LINF)
    with torch.no_grad():
        _, poisoned, _ = where._adapted_to_attacked(pgd, poisons=True)
        _, before, _ = where._adapted_to_attacked(pgd, poisons=False)
        losses = [
            where.engine.network.losses(where.engine.logits(state, where.tasks.query.x), where.tasks.query.y).mean()
            for state in (where.adapted, before, poisoned)
        ]
    assert losses[2] > losses[0]
    assert losses[2] > losses[1]


def test_the_poisoned_support_stays_inside_its_threat_model_and_its_labels_as_they_are(registry):
    engine, weights = world(registry)
    tasks = random_tasks()
    victim = PoisonedAdaptation(engine, engine.theta(weights), tasks.query)
    found = engine.attacked(victim, tasks.support, guarded(registry.make("attack", "pgd", {}), LINF), "support")
    assert torch.equal(found.y, tasks.support.y)
    assert float((found.x - tasks.support.x).abs().max()) == pytest.approx(0.1, abs=1e-6)


def test_an_attack_that_asks_for_logits_cannot_poison(registry):
    apgd = AttackAtEps(registry.make("attack", "apgd", {"loss": "dlr"}), LINF)
    with pytest.raises(BenchError, match="asks for logits"), torch.no_grad():
        episode_evaluator(registry, way=3).evaluate(Scenario(support=apgd, support_attack="poisoned"))


# -- transfer --------------------------------------------------------------------------------------


def test_a_transferred_attack_is_made_on_the_surrogate_and_judged_on_the_learner(registry):
    other, theta = world(registry, "protonet")
    where = episode_evaluator(registry, {"other": AdaptableModel(other, other.theta(theta))})
    fgsm = registry.make("attack", "fgsm", {})
    correct = held(where, Scenario(query=AttackAtEps(fgsm, LINF), surrogate="other"))
    tasks = where.tasks
    with torch.no_grad():
        foreign = other.adapt(other.theta(theta), tasks.support)
    with torch.enable_grad():
        x_adv = fgsm.perturb(AttackedModel(other, foreign), tasks.query.x, tasks.query.y, LINF, Random(range(5)))
    with torch.no_grad():
        expected = where.engine.logits(where.adapted, x_adv).argmax(-1) == tasks.query.y
    assert torch.equal(correct, expected)
    assert not torch.equal(correct, held(where, Scenario(query=AttackAtEps(fgsm, LINF))))


# -- sweeps ----------------------------------------------------------------------------------------

SWEEP = (0.02, 0.05, 0.1, 0.2)


def swept(registry, where, name, **options):
    attack = registry.make("attack", name, options)
    return [
        held(where, Scenario(query=AttackAtEps(attack, ThreatModel("linf", eps), SWEEP[:place])))
        for place, eps in enumerate(SWEEP)
    ]


@pytest.mark.parametrize("name", ["pgd", "apgd", "square"])
def test_along_a_sweep_what_was_fooled_stays_fooled(registry, name):
    options = {"queries": "50"} if name == "square" else {"steps": "5"}
    curve = swept(registry, episode_evaluator(registry), name, **options)
    for smaller, larger in pairwise(curve):
        assert not (larger & ~smaller).any()


class FromWhere(Attack):
    """Notes where it begins, and stays there."""

    name: ClassVar[str] = "from-where"

    def perturb(self, model, x, y, threat, random):
        seen.append(None)
        return threat.clip(x + threat.eps)

    def perturb_from(self, model, x, y, threat, random, start):
        seen.append(start)
        return start


seen: list[torch.Tensor | None] = []


def test_each_eps_of_a_sweep_begins_where_the_smaller_one_ended(registry):
    seen.clear()
    where = episode_evaluator(registry)
    x = where.tasks.query.x
    held(where, Scenario(query=AttackAtEps(FromWhere(), ThreatModel("linf", 0.2), (0.05, 0.1))))
    assert seen[0] is None
    assert len(seen) == 3
    assert torch.equal(seen[1], (x + 0.05).clamp(0, 1))
    assert torch.equal(seen[2], seen[1])


class Brief(Attack):
    """Counts how often it is run, and what for."""

    name: ClassVar[str] = "brief"
    runs: ClassVar[list[str]] = []
    kind: str = "whole"

    @property
    def loss_only(self):
        return True

    def for_success(self):
        return self.model_copy(update={"kind": "until fooled"})

    def perturb(self, model, x, y, threat, random):
        self.runs.append(self.kind)
        return x


@pytest.mark.parametrize(
    ("support", "query", "surrogate", "runs"),
    [
        (False, True, None, ["until fooled"]), (True, False, None, ["whole"]), (False, True, "other", ["whole"]),
        (True, True, None, ["whole", "until fooled"]),
    ],
)  # fmt: skip
def test_an_attack_may_stop_early_only_where_the_attacked_model_judges(registry, support, query, surrogate, runs):
    engine, weights = world(registry, "protonet")
    where = episode_evaluator(registry, {"other": AdaptableModel(engine, engine.theta(weights))})
    attack = AttackAtEps(Brief(), LINF)
    Brief.runs.clear()
    held(where, Scenario(attack if support else None, attack if query else None, surrogate=surrogate))
    assert Brief.runs == runs


def test_a_trial_is_held_once(registry):
    seen.clear()
    where = episode_evaluator(registry)
    for _ in range(2):
        held(where, Scenario(query=AttackAtEps(FromWhere(), LINF)))
        held(where, Scenario(query=AttackAtEps(FromWhere(), ThreatModel("linf", 0.2), (0.1,))))
    assert len(seen) == 2


def test_a_transductive_model_is_shown_whole_batches_only(registry):
    class Halves(Attack):
        name: ClassVar[str] = "halves"

        def perturb(self, model, x, y, threat, random):
            half = x.shape[1] // 2
            return torch.cat([x[:, :half] + 0 * model(x[:, :half]).sum(), x[:, half:]], 1).detach()

    engine, weights = world(registry, "maml", ("conv4", {"norm": "batch", "width": "4"}))
    tasks = random_tasks()
    victim = AttackedModel(engine, engine.theta(weights), tasks.query.y.shape[1])
    with pytest.raises(BenchError, match="transductive"):
        engine.attacked(victim, tasks.query, guarded(Halves(), LINF), "query")


def test_plans_do_not_change_a_trial(registry):
    pgd = AttackAtEps(registry.make("attack", "pgd", {}), LINF)
    scenarios = [
        Scenario(query=pgd),
        Scenario(support=pgd),
        Scenario(support=pgd, support_attack="poisoned"),
        Scenario(pgd, pgd, support_attack="poisoned"),
    ]
    for scenario in scenarios:
        first, second = (
            held(episode_evaluator(registry, plan=plan), scenario)
            for plan in (Plan("loop", "loop"), Plan("vmap", "vmap"))
        )
        assert torch.equal(first, second)
