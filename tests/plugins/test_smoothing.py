"""Randomised smoothing and its certificate, models that draw, and poisoning by other queries than the judged ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from torch import nn

import robustbench_meta as rbm
from robustbench_meta.contracts import Random
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import certified
from robustbench_meta.engine.attacked_model import AttackedModel, PoisonedAdaptation
from robustbench_meta.evaluation.episode_evaluator import AdaptableModel, EpisodeEvaluator, swapped
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario
from robustbench_meta.registry.registry import load_registry
from tests.helpers.victims import ModuleVictim
from tests.helpers.worlds import make_world, random_tasks

REGISTRY = load_registry(local=False)
SIGMA = 0.5


def half_space(weight, bias):
    """A classifier of two classes whose boundary is a plane: class 1 where w·x + b > 0."""
    module = nn.Linear(len(weight), 2).double()
    with torch.no_grad():
        module.weight.copy_(torch.stack([torch.zeros(len(weight)), torch.tensor(weight)]))
        module.bias.copy_(torch.tensor([0.0, bias]))
    return ModuleVictim(module, (len(weight),), 2)


def certificate(**options):
    return REGISTRY.make("attack", "certificate", {name: str(value) for name, value in options.items()})


# ---- the certificate


@settings(max_examples=15, deadline=None)
@given(
    weight=st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 0.1), min_size=1, max_size=4),
    bias=st.floats(-1, 1), seed=st.integers(0, 100),
)  # fmt: skip
def test_a_proved_radius_is_within_the_distance_to_a_plane_and_near_it(weight, bias, seed):
    """A smoothed half-space is the same half-space, whose exact radius is |w·x + b| / ‖w‖."""
    x = torch.rand(2, 3, len(weight), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    signed = (x @ torch.tensor(weight, dtype=torch.float64) + bias) / math.hypot(*weight)
    y = (signed > 0).long()
    radius = certificate(draws=400, alpha=1e-9).certified_radius(
        half_space(weight, bias), SIGMA, x, y, Random([seed, 7])
    )
    distance = signed.abs()
    assert bool((radius <= distance).all())
    far = distance > SIGMA  # by 400 draws p is known to about ±0.13 at this α, and Φ⁻¹ is steep at its ends
    assert bool((radius[far] > 0.2 * SIGMA).all())


def test_the_bound_is_clopper_and_pearsons():
    draws, alpha = 200, 0.01
    x, y = torch.full((1, 1, 1), 0.3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.long)
    attack, victim = certificate(draws=draws, alpha=alpha), half_space([1.0], 0.0)
    random = Random([3])
    attack._votes(victim, SIGMA, x, random, attack.guesses)  # what the guess draws
    votes = int(attack._votes(victim, SIGMA, x, random, draws)[0, 0, 1])
    assert 0 < votes < draws
    low = binomtest(votes, draws).proportion_ci(1 - 2 * alpha, method="exact").low
    radius = attack.certified_radius(victim, SIGMA, x, y, Random([3]))
    assert float(radius) == pytest.approx(SIGMA * norm.ppf(low), rel=1e-9)


def test_nothing_is_proved_of_a_wrong_answer_or_of_a_coin_toss():
    x, y = torch.full((1, 1, 1), 0.3, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.long)
    assert float(certificate().certified_radius(half_space([1.0], 0.0), SIGMA, x, y, Random([0]))) == -1  # wrong
    assert (
        float(certificate().certified_radius(half_space([1.0], -0.3), SIGMA, x, y, Random([0]))) == -1
    )  # on the plane
    lost = certificate(draws=1, guesses=1).certified_radius(half_space([1.0], 0.0), SIGMA, x, 1 - y, Random([0]))
    assert float(lost) == -1  # one draw proves nothing


def test_a_certificate_of_one_task_does_not_depend_on_the_others():
    x, y = torch.rand(3, 4, 2, dtype=torch.float64), torch.ones(3, 4, dtype=torch.long)
    victim, attack = half_space([1.0, -0.5], 0.1), certificate(draws=50)
    together = attack.certified_radius(victim, SIGMA, x, y, Random([1, 2, 3]))
    alone = attack.certified_radius(victim, SIGMA, x[1:2], y[1:2], Random([2]))
    assert torch.equal(together[1:2], alone)


# ---- the learner


def test_smoothed_probabilities_are_the_mean_under_noise():
    """Against Gauss-Hermite quadrature, on a one-dimensional linear model of two classes."""
    engine, weights = make_world(
        REGISTRY,
        "smoothing",
        "linear",
        way=2,
        shape=(1,),
        base="maml:steps=1",
        sigma=SIGMA,
        samples=20000,
    )
    engine.set_mode(training=False)
    x = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    w = {name: weight.detach() * 3 for name, weight in weights.items()}
    with torch.no_grad():
        torch.manual_seed(0)
        found = engine.learner.logits(engine.network, w, x).exp()
        nodes, mass = np.polynomial.hermite_e.hermegauss(60)
        shifted = x[:, None] + SIGMA * torch.tensor(nodes)[None, :, None]
        each = engine.learner.unsmoothed(engine.network, w, shifted.reshape(-1, 1)).softmax(-1).view(2, 60, 2)
        expected = (each * torch.tensor(mass / mass.sum())[None, :, None]).sum(1)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_meta_training_takes_one_draw_and_the_test_as_many_as_asked(monkeypatch):
    engine, weights = make_world(REGISTRY, "smoothing", "linear", shape=(6,), base="protonet", samples=5)
    called = []
    original = type(engine.learner.base).logits
    monkeypatch.setattr(
        type(engine.learner.base), "logits", lambda *given: (called.append(given[3]), original(*given))[1]
    )
    tasks = random_tasks(tasks=1, shape=(6,))
    with torch.no_grad():
        for training, count in ((True, 1), (False, 5)):
            called.clear()
            engine.set_mode(training)
            engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x)
            assert len(called) == count
            assert all(not torch.equal(x, tasks.query.x[0]) for x in called)
            assert len({float(x.sum()) for x in called}) == count  # each with noise of its own


def test_predictions_of_a_smoothed_model_are_the_same_at_every_call_and_in_any_batch():
    engine, weights = make_world(REGISTRY, "smoothing", "linear", shape=(6,), base="protonet")
    engine.set_mode(training=False)
    tasks = random_tasks(tasks=3, shape=(6,))
    with torch.no_grad():
        adapted = engine.adapt(engine.theta(weights), tasks.support)
        logits = engine.logits(adapted, tasks.query.x)
        assert torch.equal(engine.logits(adapted, tasks.query.x), logits)
        torch.testing.assert_close(engine.logits(adapted, tasks.query.x[:, 2:4]), logits[:, 2:4])


@pytest.mark.parametrize("name", ["aq", "at"])
def test_a_defence_of_a_smoothed_learner_is_smoothed(name):
    defence = REGISTRY.make("learner", name, {"base": "smoothing:base=protonet;sigma=0.3"})
    assert defence.smoothing_sigma() == 0.3


def test_smoothing_hands_on_the_training_attack_of_its_base():
    smoothed = REGISTRY.make("learner", "smoothing", {"base": "aq:base=protonet;train_eps=0.2"})
    assert smoothed.training_attack() == ("fgsm", 0.2)
    assert REGISTRY.make("learner", "smoothing", {}).training_attack() is None


def test_a_run_counts_what_is_proved_right(tmp_path):
    """No flag of attacks, no worst case with others, and a curve that begins at its own smallest ε."""
    found = rbm.run(
        learner="smoothing:base=protonet,samples=2", dataset="glyphs", profile="smoke", meta_steps=30, episodes=6,
        attack=["none", "certificate:draws=60,eps=0.05", "certificate:draws=60,eps=1", "certificate:draws=40,eps=0.05"],
        results=tmp_path, device="cpu",
    )  # fmt: skip
    proved = found.leaderboard[found.leaderboard["query"] == "certified"].sort_values(["attack", "eps"])
    assert list(proved["eps"]) == ["0.05", "0.05", "1"]
    assert list(proved["worst_case_accuracy"]) == list(proved["robust_accuracy"])
    assert proved["robust_accuracy"].iloc[-1] == 0  # 60 draws prove no more than σ·Φ⁻¹(0.001^(1/60)) = 0.31
    assert proved["robust_accuracy"].iloc[1] > 0
    flags = set(" ".join(proved["flags"]).split())
    assert flags <= {"few-episodes", "at-chance", "one-class", "loss-flat"}
    curve = found.curves
    assert list(curve["eps"]) == ["0.05", "1"]


def test_a_certificate_is_refused_where_predictions_depend_on_other_queries_and_as_a_training_attack(tmp_path):
    given = {"attack": "certificate", "profile": "smoke", "results": tmp_path}
    with pytest.raises(rbm.BenchError, match="transductive"):
        rbm.run(learner="smoothing", backbone="conv4:norm=batch", **given)
    with pytest.raises(rbm.BenchError, match="attacks nothing"):
        rbm.run(learner="aq:train_attack=certificate", **given)


class Failing(type(certificate())):
    """A certificate that fails, or gives what is no radius."""

    def certified_radius(self, model, sigma, x, y, random):
        if self.draws == 1:
            raise ValueError("oops")
        return torch.full(y.shape, torch.nan) if self.draws == 2 else None


@pytest.mark.parametrize(("draws", "told"), [(1, "oops"), (2, r"\(1, 1\) as certified"), (3, "NoneType as certified")])
def test_a_certificate_that_fails_is_named(draws, told):
    engine, weights = make_world(REGISTRY, "smoothing", "linear", shape=(1,))
    engine.set_mode(training=False)
    model = AttackedModel(engine, engine.theta({name: w.detach() for name, w in weights.items()}))
    batch = Batch(torch.rand(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(rbm.BenchError, match=f"attack 'certificate' .*{told}"):
        certified(Failing(draws=draws), model, SIGMA, batch, Random([0]))


def test_other_learners_have_no_certificate(tmp_path):
    with pytest.raises(rbm.BenchError, match="certifies randomised smoothing"):
        rbm.run(learner="protonet", attack="certificate", profile="smoke", results=tmp_path)


# ---- models that draw


class Fickle(ModuleVictim):
    """Its loss rises along x with slope 3 at one call, and falls with slope 1 at the next."""

    def __init__(self):
        super().__init__(nn.Identity(), (1,), 2)
        self.calls = 0

    def loss(self, x, y):
        self.calls += 1
        return x[..., 0] * (3.0 if self.calls % 2 == 0 else -1.0)

    def fooled(self, x, y):
        self.calls += 1
        return torch.full(y.shape, self.calls % 3 == 0)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_gradients_are_averaged_over_the_calls_asked_for(name):
    x, y = torch.full((1, 1, 1), 0.5), torch.zeros(1, 1, dtype=torch.long)
    options = {"steps": "1", "eot": "2"} | ({"random_start": "false", "alpha": "0.1"} if name == "pgd" else {})
    attack = REGISTRY.make("attack", name, options)
    found = attack.perturb(Fickle(), x, y, ThreatModel("linf", 0.1), Random([0]))
    assert float(found) == pytest.approx(0.6)
    once = REGISTRY.make("attack", "pgd", {"steps": "1", "random_start": "false", "alpha": "0.1"})
    assert float(once.perturb(Fickle(), x, y, ThreatModel("linf", 0.1), Random([0]))) == pytest.approx(0.4)


# ---- support made with other queries than the judged ones


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_swapped_images_are_of_their_class_and_each_is_used_once(data):
    way, shot, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    order = data.draw(st.permutations([c for c in range(way) for _ in range(shot)]))
    found_y = data.draw(st.lists(st.integers(0, way - 1), min_size=count, max_size=count))
    support = Batch(-torch.arange(1.0, way * shot + 1).view(1, -1, 1), torch.tensor([order]))
    found = Batch(torch.arange(count, dtype=torch.float32).view(1, -1, 1), torch.tensor([found_y]))
    images = swapped(support, found)[0, :, 0].tolist()
    for label in range(way):
        of_class = [i for i, y in enumerate(order) if y == label]
        theirs = [float(i) for i, y in enumerate(found_y) if y == label]
        kept = [float(support.x[0, i, 0]) for i in of_class]
        assert [images[i] for i in of_class] == (theirs + kept[len(theirs) :])[: len(of_class)]


def blind_world(learner, query=5, **options):
    engine, weights = make_world(REGISTRY, learner, "linear", shape=(6,), **options)
    engine.set_mode(training=False)
    engine.set_task_seeds(range(4))
    tasks = random_tasks(tasks=4, shape=(6,), query=query, seed=2)
    theta = engine.theta({name: weight.detach() for name, weight in weights.items()})
    return engine, theta, tasks


def test_asp_drives_queries_towards_the_next_class():
    engine, theta, tasks = blind_world("maml", alpha=0.3)
    x = tasks.support.x.clone().requires_grad_()
    victim = PoisonedAdaptation(engine, theta, tasks.query, shift=1)
    (slope,) = torch.autograd.grad(victim.loss(x, tasks.support.y).sum(), x)
    aim = Batch(tasks.query.x, (tasks.query.y + 1) % 3)
    plain = PoisonedAdaptation(engine, theta, aim)
    (towards,) = torch.autograd.grad(plain.loss(x, tasks.support.y).sum(), x)
    torch.testing.assert_close(slope, -towards)


@pytest.mark.parametrize("learner", ["maml", "protonet"])
@pytest.mark.parametrize("made", ["asp", "swap"])
def test_each_query_is_judged_under_support_made_without_it(learner, made):
    """Against plain loops over tasks and halves, with FGSM, which draws nothing."""
    engine, theta, tasks = blind_world(learner)
    eps, device = 0.1, torch.device("cpu")
    evaluator = EpisodeEvaluator(AdaptableModel(engine, theta), tasks, {}, device)
    attack = AttackAtEps(REGISTRY.make("attack", "fgsm", {}), ThreatModel("linf", eps))
    found = evaluator.evaluate(Scenario(attack, None, made)).correct

    expected = torch.zeros_like(found)
    for task in range(4):
        support, query = (Batch(b.x[task : task + 1], b.y[task : task + 1]) for b in tasks)
        by_class = sorted(range(query.y.shape[1]), key=lambda i: (int(query.y[0, i]), i))
        for half in (0, 1):
            known, judged = by_class[half::2], by_class[1 - half :: 2]
            seen = Batch(query.x[:, known], query.y[:, known])
            if made == "asp":
                x = support.x.clone().requires_grad_()
                victim = PoisonedAdaptation(engine, theta, seen, shift=1)
                (slope,) = torch.autograd.grad(victim.loss(x, support.y).sum(), x)
                images = (support.x + eps * slope.sign()).clamp(0, 1)
            else:
                x = seen.x.clone().requires_grad_()
                victim = AttackedModel(engine, engine.adapt(theta, support))
                (slope,) = torch.autograd.grad(victim.loss(x, seen.y).sum(), x)
                hostile = (seen.x + eps * slope.sign()).clamp(0, 1)
                images = support.x.clone()
                for label in range(3):
                    places = [i for i in range(support.y.shape[1]) if support.y[0, i] == label]
                    theirs = [i for i in range(len(known)) if seen.y[0, i] == label]
                    for place, one in zip(places, theirs, strict=False):
                        images[0, place] = hostile[0, one]
            logits = engine.logits(engine.adapt(theta, Batch(images.detach(), support.y)), query.x)
            expected[task, judged] = (logits.argmax(-1) == query.y)[0, judged]
    assert torch.equal(found, expected)
    assert not torch.equal(found, evaluator.clean)
