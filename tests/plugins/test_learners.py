"""Learners and defences, each against an oracle of its own: a derivation by hand, another implementation, or a plain
loop of torch.autograd over one task after the other that uses nothing of the engine.

All in float64. The backbones are small enough to be written down again here: `forward` is the linear model and the MLP.
"""

from __future__ import annotations

import sys
from math import gcd

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustbench_meta.contracts import Setting
from robustbench_meta.contracts.plugin import plugin_as_typed
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.training import _step
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.options import parse_choice
from robustbench_meta.registry.registry import load_registry
from tests.helpers.worlds import PLANS, flat, make_world, plan_id, random_tasks

REGISTRY = load_registry(local=False)
NAMES = REGISTRY.names("learner")
WAY, EPS = 3, 0.05
MLP = ("mlp", {"width": "7", "depth": "1"})
CONV = ("conv4", {"width": "4", "groups": "2"})
SMALL = {"baseline": {"epochs": 3}, "baseline++": {"epochs": 3}, "reptile": {"test_updates": 6, "batch": 4}}
"""Options with which the slow ones are quick."""


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def module_of(name):
    """The module that a learner stands in."""
    return sys.modules[REGISTRY.get("learner", name).__module__]


def world(learner, backbone=MLP, shape=(6,), **options):
    return make_world(REGISTRY, learner, backbone, shape=shape, way=WAY, eps=EPS, **options)


def shuffled(shape=(6,), seed=0, **options):
    """Random tasks whose support and query come in an order of their own in each task."""
    tasks, draw = random_tasks(shape=shape, seed=seed, **options), torch.Generator().manual_seed(seed + 100)

    def mixed(batch):
        order = [torch.randperm(batch.y.shape[1], generator=draw) for _ in batch.y]
        return Batch(*(torch.stack([row[o] for row, o in zip(part, order, strict=True)]) for part in batch))

    return TaskBatch(*(mixed(batch) for batch in tasks))


def features(w, x):
    """What the head of the linear model or of an MLP is given."""
    hidden = x.flatten(1)
    for name in sorted(name for name in w if name.endswith("weight") and name[0].isdigit()):
        hidden = torch.relu(hidden @ w[name].T + w[name.replace("weight", "bias")])
    return hidden


def forward(w, x):
    return features(w, x) @ w["head.weight"].T + w["head.bias"]


def nll(scores, y):
    """Cross-entropy, written out."""
    return -(scores - scores.exp().sum(1, keepdim=True).log())[torch.arange(len(y)), y].mean()


def loss(w, batch):
    return nll(forward(w, batch.x), batch.y)


def inner_step(w, batch, rates, first_order=False):
    slopes = torch.autograd.grad(loss(w, batch), [w[name] for name in rates], create_graph=True)
    slopes = [slope.detach() if first_order else slope for slope in slopes]
    return w | {name: w[name] - rates[name] * slope for name, slope in zip(rates, slopes, strict=True)}


def each(tasks):
    for i in range(tasks.tasks):
        yield tuple(Batch(part.x[i], part.y[i]) for part in tasks)


def leaves_of(weights):
    return {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}


def plain_meta_gradient(weights, tasks, objective):
    """The gradient of the mean over tasks of objective(θ, support, query), one plain graph through it all."""
    w = leaves_of(weights)
    total = torch.stack([objective(w, *task) for task in each(tasks)]).mean()
    slopes = torch.autograd.grad(total, list(w.values()), allow_unused=True)
    return {name: torch.zeros_like(w[name]) if slope is None else slope for name, slope in zip(w, slopes, strict=True)}


def close(found, expected, atol=1e-11):
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def fgsm(predict, batch):
    """The batch, attacked by one step through predict(x); data."""
    x = batch.x.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(nll(predict(x), batch.y), x)
    return Batch((batch.x + EPS * slope.sign()).clamp(0, 1).detach(), batch.y)


# ---- MAML and what varies its inner step

HEAD = ["head.weight", "head.bias"]
BODY = ["1.weight", "1.bias"]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("learner", "backbone", "moved"),
    [("maml", MLP, BODY + HEAD), ("anil", MLP, HEAD), ("anil", "linear", HEAD), ("boil", MLP, BODY)],
)
def test_meta_gradient_through_inner_steps_that_move_what_the_learner_moves(learner, backbone, moved, steps):
    engine, weights = world(learner, backbone, alpha=0.3, steps=steps)
    tasks = shuffled()

    def objective(w, support, query):
        for _ in range(steps):
            w = inner_step(w, support, dict.fromkeys(moved, 0.3))
        return loss(w, query)

    [(found, rate)] = engine.meta_gradients(weights, tasks)
    assert rate == 1.0
    close(found, plain_meta_gradient(weights, tasks, objective))


@pytest.mark.parametrize(
    ("learner", "backbone", "moved"),
    [("anil", MLP, HEAD), ("anil", "linear", HEAD), ("boil", MLP, BODY), ("maml", MLP, BODY + HEAD)],
)  # fmt: skip
def test_only_what_the_learner_moves_is_another_after_adaptation(learner, backbone, moved):
    engine, weights = world(learner, backbone, alpha=0.3)
    adapted = engine.adapt(engine.theta(weights), shuffled().support)
    changed = [name for name in weights if not torch.equal(adapted.task(1)[name], weights[name])]
    assert sorted(changed) == sorted(moved)


def test_boil_refuses_a_network_that_is_all_head():
    engine, weights = world("boil", "linear")
    with pytest.raises(PluginError, match="this backbone is all head"):
        engine.adapt(engine.theta(weights), shuffled().support)


@pytest.mark.parametrize("backbone", [MLP, "linear"])
def test_fomaml_takes_the_gradient_at_the_adapted_weights(backbone):
    engine, weights = world("fomaml", backbone, alpha=0.3, steps=3)
    tasks, slopes = shuffled(), []
    for support, query in each(tasks):
        w = leaves_of(weights)
        for _ in range(3):
            w = leaves_of(inner_step(w, support, dict.fromkeys(w, 0.3)))
        slopes.append(torch.autograd.grad(loss(w, query), list(w.values())))
    expected = dict(zip(weights, (torch.stack(part).mean(0) for part in zip(*slopes, strict=True)), strict=True))
    [(found, _)] = engine.meta_gradients(weights, tasks)
    close(found, expected)
    other, _ = world("maml", backbone, alpha=0.3, steps=3)
    [(second_order, _)] = other.meta_gradients(weights, tasks)
    assert (flat(found) - flat(second_order)).abs().max() > 1e-3


RATE = "learner.rate."


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("backbone", [MLP, "linear"])
def test_meta_sgd_learns_a_rate_for_each_weight(backbone, steps):
    engine, weights = world("meta-sgd", backbone, alpha=0.3, steps=steps)
    network = [name for name in weights if not name.startswith(RATE)]
    assert {name: weights[RATE + name].shape for name in network} == {name: weights[name].shape for name in network}
    rates = torch.cat([weights[RATE + name].detach().flatten() for name in network])
    assert rates.min() >= 0.03
    assert rates.max() <= 0.3
    assert rates.std() > 0.03

    def objective(w, support, query):
        for _ in range(steps):
            w = inner_step(w, support, {name: w[RATE + name] for name in network})
        return loss(w, query)

    tasks = shuffled()
    [(found, _)] = engine.meta_gradients(weights, tasks)
    close(found, plain_meta_gradient(weights, tasks, objective))


# ---- MAML++


def distinct_rates(weights):
    """θ with another rate for each layer and step."""
    draw = torch.Generator().manual_seed(5)
    return {
        name: (0.1 + 0.3 * torch.rand(w.shape, generator=draw) if name.startswith(RATE) else w)
        .detach().requires_grad_()
        for name, w in weights.items()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("progress", "first_order"), [(0.0, True), (0.05, True), (0.29, True), (0.3, False), (0.9, False)]
)
def test_maml_plus_plus_by_its_stage_of_training(progress, first_order):
    """Importance of the losses, rates by layer and step, and the order of the derivative."""
    steps, multi_step = 3, 0.1
    engine, weights = world("maml++", steps=steps, multi_step=multi_step, first_order_share=0.3)
    weights, engine.progress, tasks = distinct_rates(weights), progress, shuffled()
    network = [name for name in weights if not name.startswith(RATE)]
    left = max(0.0, (multi_step - progress) / multi_step)
    importance = [left / 3, left / 3, 1 - 2 * left / 3]

    def objective(w, support, query, first_order=first_order):
        total = 0.0
        for step in range(steps):
            w = inner_step(w, support, {name: w[RATE + name][step] for name in network}, first_order)
            total = total + importance[step] * loss(w, query)
        return total

    [(found, _)] = engine.meta_gradients(weights, tasks)
    close(found, plain_meta_gradient(weights, tasks, objective))
    other = plain_meta_gradient(
        weights, tasks, lambda w, support, query: objective(w, support, query, first_order=not first_order)
    )
    assert (flat(found) - flat(other)).abs().max() > 1e-4, "the order of the derivative makes no difference here"


@given(st.integers(1, 8), st.floats(0, 3))
def test_the_importance_of_losses_sums_to_one_and_ends_at_the_last(steps, done):
    shares = module_of("maml++").importance(steps, done)
    assert len(shares) == steps
    assert sum(shares) == pytest.approx(1)
    assert all(0 <= share <= shares[-1] + 1e-12 for share in shares)
    assert len({round(share, 12) for share in shares[:-1]}) <= 1
    if done == 0:
        assert shares == pytest.approx([1 / steps] * steps)
    if done >= 1:
        assert shares[-1] == 1


def test_maml_plus_plus_takes_its_last_rates_for_more_steps_at_the_test():
    engine, weights = world("maml++", steps=2, test_steps=4)
    weights, tasks = distinct_rates(weights), shuffled()
    engine.training = False
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    network = [name for name in weights if not name.startswith(RATE)]
    for i, (support, _) in enumerate(each(tasks)):
        w = leaves_of(weights)
        for step in (0, 1, 1, 1):
            w = inner_step(w, support, {name: w[RATE + name][step] for name in network})
        close({name: adapted.task(i)[name] for name in network}, {name: w[name] for name in network})


# ---- Reptile


def in_turn(y, step, size):
    """Places of a minibatch: images are dealt from the classes in turn, then from the beginning again."""
    piles = [[i for i, label in enumerate(y.tolist()) if label == k] for k in range(WAY)]
    dealt = [pile[row] for row in range(len(piles[0])) for pile in piles]
    return [dealt[(step * size + k) % len(dealt)] for k in range(min(size, len(dealt)))]


def adam(w, support, steps, size, lr):
    w = leaves_of(w)
    optimizer = torch.optim.Adam(list(w.values()), lr=lr, betas=(0.0, 0.999), eps=1e-8)
    for step in range(steps):
        chosen = in_turn(support.y, step, size)
        optimizer.zero_grad()
        loss(w, Batch(support.x[chosen], support.y[chosen])).backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in w.items()}


@pytest.mark.parametrize("size", [4, 6, 10])
@pytest.mark.parametrize("backbone", [MLP, "linear"])
def test_reptile_adapts_by_torchs_adam_and_moves_towards_the_mean(backbone, size):
    engine, weights = world("reptile", backbone, alpha=0.02, updates=5, batch=size, test_updates=9, test_batch=2)
    tasks = shuffled()
    before = leaves_of(weights)
    phi = [adam(weights, support, 5, size, 0.02) for support, _ in each(tasks)]
    mean = {name: torch.stack([each[name] for each in phi]).mean(0) for name in weights}
    [(found, rate)] = engine.meta_gradients(weights, tasks)
    close(found, {name: before[name].detach() - mean[name] for name in weights})
    optimizer = engine.learner.make_optimizer(weights)
    _step(optimizer, weights, found, [0.25 * rate])
    moved = {name: weight.detach() for name, weight in weights.items()}
    close(moved, {name: (w + 0.25 * (mean[name] - w)).detach() for name, w in before.items()})

    engine.training = False
    adapted = engine.adapt(engine.theta(before), tasks.support)
    for i, (support, _) in enumerate(each(tasks)):
        expected = adam(before, support, 9, 2, 0.02)
        close({name: adapted.task(i)[name] for name in weights}, expected)
        logits = engine.logits(adapted, tasks.query.x)[i]
        torch.testing.assert_close(logits, forward(expected, tasks.query.x[i]), rtol=0, atol=1e-10)


def test_reptiles_rate_falls_linearly_from_one():
    learner = REGISTRY.make("learner", "reptile", {})
    (weight,) = [torch.zeros(2, requires_grad=True)]
    [group] = learner.make_optimizer({"w": weight}).param_groups
    assert [group["lr"] * learner.rate_factor(done) for done in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.75, 0.5, 0.0]
    assert group["momentum"] == group["weight_decay"] == 0


@given(st.integers(2, 5), st.integers(1, 5), st.integers(1, 12), st.randoms(use_true_random=False))
def test_minibatches_cover_each_support_image_equally(way, shot, size, random):
    y = [k for k in range(way) for _ in range(shot)]
    random.shuffle(y)
    n, counts = len(y), [0] * len(y)
    taken = min(size, n)
    for step in range(n // gcd(size, n)):
        places = module_of("reptile").minibatch(torch.tensor(y), way, step, size).tolist()
        assert len(places) == len(set(places)) == taken
        by_class = [sum(y[place] == k for place in places) for k in range(way)]
        assert max(by_class) - min(by_class) <= 1
        for place in places:
            counts[place] += 1
    assert len(set(counts)) == 1


# ---- metric learners


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_matchingnet_attends_to_support_images():
    engine, weights = world("matchingnet", scale=4.0)
    tasks = shuffled()
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    logits, losses = engine.logits(adapted, tasks.query.x), engine.loss(adapted, tasks.query)
    for i, (support, query) in enumerate(each(tasks)):
        keys, asked = features(weights, support.x).detach(), features(weights, query.x).detach()
        chance = torch.zeros(len(query.y), WAY)
        for q, f in enumerate(asked):
            attention = np.exp([4.0 * cosine(f, key) for key in keys])
            for share, label in zip(attention / attention.sum(), support.y, strict=True):
                chance[q, label] += share
        torch.testing.assert_close(logits[i].softmax(-1).detach(), chance, rtol=0, atol=1e-12)
        expected = -chance[torch.arange(len(query.y)), query.y].log().mean()
        torch.testing.assert_close(losses[i].detach(), expected, rtol=0, atol=1e-12)


def test_relationnet_scores_pairs_one_by_one_and_its_loss_is_the_squared_distance():
    engine, weights = world("relationnet", CONV, (1, 8, 8), hidden=5)
    tasks = shuffled((1, 8, 8))
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    [update] = engine.learner.objective(engine, engine.theta(weights), tasks)
    own = {name.removeprefix("learner."): w.detach() for name, w in weights.items() if name.startswith("learner.")}
    net = {name: w for name, w in weights.items() if not name.startswith("learner.")}
    shape = engine.network.feature_shape
    assert len(shape) == 3

    def maps(x):
        return torch.func.functional_call(engine.network.module, net, (x,)).detach().view(-1, *shape)

    def score(query, of_class):
        hidden = torch.cat([query, of_class], 0)[None]
        for layer in ("conv1", "conv2"):
            hidden = torch.conv2d(hidden, own[f"{layer}.weight"], own[f"{layer}.bias"], padding=1)
            hidden = ((hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()).relu()
        hidden = (own["fc1.weight"] @ hidden.flatten() + own["fc1.bias"]).relu()
        return float(own["fc2.weight"][0] @ hidden + own["fc2.bias"][0])

    for i, (support, query) in enumerate(each(tasks)):
        supported, total = maps(support.x), 0.0
        for q, (asked, label) in enumerate(zip(maps(query.x), query.y.tolist(), strict=True)):
            for k in range(WAY):
                expected = score(asked, supported[support.y == k].mean(0))
                alone = engine.logits(adapted, tasks.query.x[:, q : q + 1]).detach()[i, 0, k]
                assert float(alone) == pytest.approx(expected, abs=1e-10)
                total += (1 / (1 + np.exp(-expected)) - (label == k)) ** 2
        assert float(update.loss[i].detach()) == pytest.approx(total / len(query.y), abs=1e-10)


# ---- heads in closed form


def ridge(x, y, lam):
    """argmin ‖XW − Y‖²/n + λ‖W‖² as one least-squares problem without a regulariser."""
    n, d = x.shape
    rows = np.concatenate([x / n**0.5, lam**0.5 * np.eye(d)])
    return np.linalg.lstsq(rows, np.concatenate([y / n**0.5, np.zeros((d, y.shape[1]))]), rcond=None)[0]


def r2d2_logits(weights, support, query, log_ridge, scale):
    known, asked = (
        np.concatenate([features(weights, b.x).detach().numpy(), np.ones((len(b.x), 1))], 1) for b in (support, query)
    )
    return scale * asked @ ridge(known, np.eye(WAY)[support.y.numpy()], np.exp(log_ridge))


@pytest.mark.parametrize("width", [2, 5, 6, 9], ids=lambda width: f"6 images of {width} features")
def test_r2d2_is_ridge_regression_by_either_system_with_learned_lambda_and_scale(width):
    engine, weights = world("r2d2", ("mlp", {"width": str(width), "depth": "1"}), ridge=0.3, scale=7.0)
    tasks = shuffled()
    logits = engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x).detach()
    start = np.array([np.log(0.3), 7.0])
    for i, task in enumerate(each(tasks)):
        torch.testing.assert_close(logits[i], torch.from_numpy(r2d2_logits(weights, *task, *start)), rtol=0, atol=1e-10)

    def objective(point):
        scores = [torch.from_numpy(r2d2_logits(weights, *task, *point)) for task in each(tasks)]
        return float(sum(nll(s, query.y) for s, (_, query) in zip(scores, each(tasks), strict=True)) / tasks.tasks)

    [(found, _)] = engine.meta_gradients(weights, tasks)
    for k, name in enumerate(("log_ridge", "scale")):
        away = 1e-5 * np.eye(2)[k]
        slope = (objective(start + away) - objective(start - away)) / 2e-5
        assert float(found[f"learner.{name}"]) == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("lam", [1e-3, 1.0, 50.0])
def test_both_systems_of_the_ridge_regression_agree(lam):
    draw = torch.Generator().manual_seed(0)
    for n, d in ((5, 4), (5, 5), (5, 6), (25, 64), (64, 25)):
        x, y = torch.randn(n, d, generator=draw), torch.randn(n, 3, generator=draw)
        found = module_of("r2d2").ridge_regression(x, y, torch.tensor(lam))
        torch.testing.assert_close(found, torch.from_numpy(ridge(x.numpy(), y.numpy(), lam)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("learner", ["r2d2", "metaoptnet", "matchingnet", "protonet"])
def test_heads_work_on_the_bare_example(learner):
    """The linear backbone has no weights of its own when it gives features."""
    engine, weights = world(learner, "linear")
    tasks = shuffled()
    assert engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x).shape == (5, 12, 3)


def kernels():
    """Features of support and query, and one-hot labels: 1 and 5 shots, large and small, ReLUs or not."""
    for scale in (0.1, 1.0, 10.0):
        for shot in (1, 5):
            for rectified in (False, True):
                draw = torch.Generator().manual_seed(shot + 10 * rectified)
                d = 64 if rectified else 16
                centres = torch.randn(5, d, generator=draw)
                x, q = (centres.repeat_interleave(n, 0) + torch.randn(5 * n, d, generator=draw) for n in (shot, 15))
                x, q = (part.relu() if rectified else part for part in (x, q))
                yield scale * x, scale * q, torch.eye(5).repeat_interleave(shot, 0)


def dual(kernel, y, alpha):
    return 0.5 * np.sum(alpha * (kernel @ alpha)) - np.sum(y * alpha)


def primal(x, y, w, c):
    """½‖W‖² + C·Σ_n max_k (1 − [k = y_n] + (w_k − w_yn)·x_n), the problem of Crammer and Singer."""
    scores = x @ w
    return 0.5 * np.sum(w**2) + c * np.sum((scores - np.sum(scores * y, 1, keepdims=True) + 1 - y).max(1))


def reference(x, y, c):
    """The dual problem by scipy's SLSQP, at a kernel of size 1 (α·size at K/size and C·size), judged by its gap."""
    n, way = y.shape
    size = np.mean(np.sum(x**2, 1))
    kernel, sums = x @ x.T / size, np.kron(np.eye(n), np.ones((1, way)))
    found = minimize(
        lambda v: dual(kernel, y, v.reshape(n, way)), np.zeros(n * way), method="SLSQP",
        jac=lambda v: (kernel @ v.reshape(n, way) - y).ravel(),
        bounds=[(None, most) for most in (c * size * y).ravel()],
        constraints=[{"type": "eq", "fun": lambda v: sums @ v, "jac": lambda v: sums}],
        options={"maxiter": 1000, "ftol": 1e-14},
    )  # fmt: skip
    alpha = found.x.reshape(n, way) / size
    assert primal(x, y, x.T @ alpha, c) == pytest.approx(-dual(x @ x.T, y, alpha), rel=1e-5), found.message
    return alpha


@pytest.mark.parametrize("c", [0.1, 1.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("shot", [1, 3])
def test_the_machine_converges_to_a_quadratic_solvers_optimum(shot, scale, c):
    draw = torch.Generator().manual_seed(shot)
    x = scale * torch.randn(3 * shot, 8, generator=draw)
    y = torch.eye(3).repeat_interleave(shot, 0)
    found = module_of("metaoptnet").crammer_singer(x @ x.T, y, c, 2000).numpy()
    expected = reference(x.numpy(), y.numpy(), c)
    w, v = x.numpy().T @ found, x.numpy().T @ expected
    assert np.abs(w - v).max() <= 1e-5 * np.abs(v).max()


@pytest.mark.parametrize("number", range(12))
def test_the_machine_closes_the_duality_gap(number):
    """Feasible α whose dual value is the primal value of its W: an optimum, whoever found it."""
    x, _, y = list(kernels())[number]
    alpha = module_of("metaoptnet").crammer_singer(x @ x.T, y, 0.1, 1000).numpy()
    x, y = x.numpy(), y.numpy()
    size = np.abs(alpha).max()
    assert np.abs(alpha.sum(1)).max() <= 1e-9 * size
    assert (alpha - 0.1 * y).max() <= 1e-12
    value = -dual(x @ x.T, y, alpha)
    assert primal(x, y, x.T @ alpha, 0.1) == pytest.approx(value, rel=1e-8)


def by_default(kernel, y):
    learner = REGISTRY.make("learner", "metaoptnet", {})
    return module_of("metaoptnet").crammer_singer(kernel, y, learner.c, learner.iterations)


@pytest.mark.parametrize("number", range(12))
def test_the_machine_is_near_its_optimum_after_as_many_steps_as_it_takes_by_default(number):
    """Logits within 1 % of their size, and all but the same predictions."""
    x, q, y = list(kernels())[number]
    best = module_of("metaoptnet").crammer_singer(x @ x.T, y, 0.1, 2000)
    exact, found = q @ (x.T @ best), q @ (x.T @ by_default(x @ x.T, y))
    assert (found - exact).abs().max() <= 0.01 * exact.abs().max()
    assert (found.argmax(1) != exact.argmax(1)).double().mean() <= 0.02


@pytest.mark.parametrize("number", range(4, 8))
def test_the_machines_gradient_is_its_slope(number):
    """How the kernel's size enters is part of it, as long as the solver is not quite at its optimum."""
    x, q, y = list(kernels())[number]
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def score(step):
        moved = x + step * direction
        return ((q @ (moved.T @ by_default(moved @ moved.T, y))) * torch.linspace(-1, 1, 5)).sum()

    step = torch.zeros((), requires_grad=True)
    (found,) = torch.autograd.grad(score(step), step)
    slope = float(score(1e-6) - score(-1e-6)) / 2e-6
    assert float(found) == pytest.approx(slope, rel=1e-3)


def test_metaoptnets_logits_are_its_machines_times_a_learned_scale():
    engine, weights = world("metaoptnet", ("mlp", {"width": "9", "depth": "1"}), c=0.5, scale=3.0, iterations=2000)
    tasks = shuffled()
    logits = engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x).detach()
    for i, (support, query) in enumerate(each(tasks)):
        known, asked = (features(weights, b.x).detach().numpy() for b in (support, query))
        alpha = reference(known, np.eye(WAY)[support.y.numpy()], 0.5)
        expected = 3.0 * asked @ known.T @ alpha
        assert np.abs(logits[i].numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


# ---- transfer


def sgd(scores, head, known, y, epochs, size):
    head = [part.clone().requires_grad_() for part in head]
    optimizer = torch.optim.SGD(head, lr=0.01, momentum=0.9, dampening=0.9, weight_decay=0.001)
    for step in range(epochs * -(-len(y) // size)):
        chosen = in_turn(y, step, size)
        optimizer.zero_grad()
        nll(scores(known[chosen], *head), y[chosen]).backward()
        optimizer.step()
    return [part.detach() for part in head]


def cosines(f, w):
    return 10.0 * (f @ w.T) / (f.norm(dim=1)[:, None] * w.norm(dim=1)[None])


@pytest.mark.parametrize(("epochs", "size"), [(1, 4), (9, 4), (9, 6), (100, 4)])
def test_baseline_fits_a_head_as_torchs_sgd_does(epochs, size):
    engine, weights = world("baseline", epochs=epochs, batch=size)
    tasks = shuffled(tasks=2)
    with torch.no_grad():
        logits = engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x)
    for i, (support, query) in enumerate(each(tasks)):
        known = features(weights, support.x).detach()
        zero = torch.zeros(WAY, known.shape[1]), torch.zeros(WAY)
        w, b = sgd(lambda f, w, b: f @ w.T + b, zero, known, support.y, epochs, size)
        expected = features(weights, query.x).detach() @ w.T + b
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(logits[i], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("epochs", "size"), [(1, 4), (9, 6)])
def test_baseline_plus_plus_fits_directions_from_the_classes_means(epochs, size):
    engine, weights = world("baseline++", epochs=epochs, batch=size)
    tasks = shuffled(tasks=2)
    with torch.no_grad():
        logits = engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x)
    for i, (support, query) in enumerate(each(tasks)):
        known, asked = features(weights, support.x).detach(), features(weights, query.x).detach()
        means = torch.stack([known[support.y == k].mean(0) for k in range(WAY)])
        (w,) = sgd(cosines, [means], known, support.y, epochs, size)
        torch.testing.assert_close(logits[i], cosines(asked, w), rtol=0, atol=1e-10)
        assert (cosines(asked, w) - cosines(asked, means)).abs().max() > 1e-4


def test_meta_baseline_is_a_learned_factor_on_cosines_to_the_means():
    engine, weights = world("meta-baseline", scale=6.0)
    tasks = shuffled()

    def scores(w, support, query):
        known = features(w, support.x)
        means = torch.stack([known[support.y == k].mean(0) for k in range(WAY)])
        return 0.1 * w["learner.scale"] * cosines(features(w, query.x), means)

    assert float(weights["learner.scale"].detach()) == 6.0
    logits = engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x)
    for i, task in enumerate(each(tasks)):
        torch.testing.assert_close(logits[i], scores(weights, *task), rtol=0, atol=1e-11)
    [(found, _)] = engine.meta_gradients(weights, tasks)
    close(found, plain_meta_gradient(weights, tasks, lambda w, support, query: nll(scores(w, support, query), query.y)))


BASE_HEADS = {
    "baseline": forward,
    "meta-baseline": forward,
    "baseline++": lambda w, x: cosines(features(w, x), w["head.weight"]),
    "at-transfer": lambda w, x: cosines(features(w, x), w["head.weight"]),
}


@pytest.mark.parametrize(
    ("learner", "defended"),
    [(learner, False) for learner in BASE_HEADS] + [(learner, True) for learner in BASE_HEADS if learner[:2] != "at"],
)
def test_supervised_training_is_cross_entropy_over_the_base_classes(learner, defended):
    engine, weights = world("aq", base=learner) if defended else world(learner)
    engine.base_classes = 9
    images = base_images()
    assert images.y.max() >= WAY
    head = BASE_HEADS[learner]

    def objective(w, _, batch):
        attacked = fgsm(lambda x: head(w, x), batch) if defended or learner == "at-transfer" else batch
        return nll(head(w, attacked.x), batch.y)

    tasks = TaskBatch(images, images)
    [(found, _)] = engine.meta_gradients(weights, tasks, base=True)
    close(found, plain_meta_gradient(weights, tasks, objective))
    assert found["head.weight"].shape == (9, 7)


def base_images():
    draw = torch.Generator().manual_seed(3)
    return Batch(torch.rand(4, 8, 6, generator=draw), torch.randint(9, (4, 8), generator=draw))


def test_how_much_of_meta_training_is_on_the_base_classes():
    share = {name: REGISTRY.make("learner", name, {}).base_training(200) for name in BASE_HEADS}
    assert {name: each.steps for name, each in share.items()} == {
        "baseline": 200, "baseline++": 200, "at-transfer": 200, "meta-baseline": 100,
    }  # fmt: skip
    assert REGISTRY.make("learner", "maml", {}).base_training(200) is None


@pytest.mark.parametrize("calibration", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("near", [1, 3, 50])
def test_at_transfer_moves_centroids_towards_near_base_classes(calibration, near):
    engine, weights = world("at-transfer", calibration=calibration, near=near)
    tasks = shuffled()
    logits = engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x).detach()
    base = weights["head.weight"].detach()
    base = base / base.norm(dim=1, keepdim=True)
    for i, (support, query) in enumerate(each(tasks)):
        known, asked = features(weights, support.x).detach(), features(weights, query.x).detach()
        centroids = []
        for k in range(WAY):
            own = known[support.y == k].mean(0)
            own = own / own.norm()
            nearest = sorted(base, key=lambda b, own=own: -float(b @ own))[:near]
            centroids.append((1 - calibration) * own + calibration * torch.stack(nearest).mean(0))
        torch.testing.assert_close(logits[i], cosines(asked, torch.stack(centroids)), rtol=0, atol=1e-11)
        if calibration == 0:
            means = torch.stack([known[support.y == k].mean(0) for k in range(WAY)])
            torch.testing.assert_close(logits[i], cosines(asked, means), rtol=0, atol=1e-11)


# ---- defences, with FGSM by hand


def adapted_maml(w, support):
    return inner_step(w, support, dict.fromkeys(w, 0.3))


def fixed(w):
    return {name: weight.detach() for name, weight in w.items()}


def attacked_queries(w, query):
    return fgsm(lambda x: forward(fixed(w), x), query)


def kl(p, q):
    """Σ p·log(p/q) of the rows' softmax, averaged."""
    p, q = p.exp() / p.exp().sum(1, keepdim=True), q.exp() / q.exp().sum(1, keepdim=True)
    return (p * (p / q).log()).sum(1).mean()


def aq(w, support, query):
    adapted = adapted_maml(w, support)
    return loss(adapted, attacked_queries(adapted, query))


def at(w, support, query):
    poisoned = fgsm(lambda x: forward(fixed(w), x), support)
    return aq(w, poisoned, query)


def trades(w, support, query):
    adapted = adapted_maml(w, support)
    clean, attacked = forward(adapted, query.x), forward(adapted, attacked_queries(adapted, query).x)
    return nll(clean, query.y) + 2.5 * kl(clean, attacked)


DEFENCES = {"aq": ({}, aq), "at": ({}, at), "trades": ({"c": 2.5}, trades)}


@pytest.mark.parametrize("typed_out", [False, True], ids=["by default", "base=maml"])
@pytest.mark.parametrize("backbone", ["linear", MLP], ids=str)
@pytest.mark.parametrize("name", DEFENCES)
def test_the_objective_of_a_defence_of_maml(name, backbone, typed_out):
    options, objective = DEFENCES[name]
    of_base = {"base": "maml:alpha=0.3"} if typed_out else {"alpha": "0.3"}
    engine, weights = world(name, backbone, **options, **of_base)
    tasks = shuffled()
    [(found, rate)] = engine.meta_gradients(weights, tasks)
    assert rate == 1.0
    close(found, plain_meta_gradient(weights, tasks, objective))


@pytest.mark.parametrize("backbone", ["linear", MLP], ids=str)
def test_r_maml_makes_a_second_smaller_update(backbone):
    engine, weights = world("r-maml", backbone, alpha="0.3", rate=0.15)
    tasks = shuffled()
    (clean, one), (attacked, smaller) = engine.meta_gradients(weights, tasks)
    assert (one, smaller) == (1.0, 0.15)
    close(clean, plain_meta_gradient(weights, tasks, lambda w, s, q: loss(adapted_maml(w, s), q)))
    close(attacked, plain_meta_gradient(weights, tasks, aq))


def protonet_scores(w, support, x):
    known = w(support.x)
    means = torch.stack([known[support.y == k].mean(0) for k in range(WAY)])
    return -torch.cdist(w(x), means).square()


@pytest.mark.parametrize("name", DEFENCES)
def test_the_objective_of_a_defence_of_protonet(name):
    """θ alone does not predict: its support is attacked through the state adapted to the clean support."""
    engine, weights = world(name, base="protonet", **DEFENCES[name][0])
    tasks = shuffled()

    def objective(w, support, query):
        embed, still = (lambda x: features(w, x)), (lambda x: features(fixed(w), x))
        if name == "at":
            support = fgsm(lambda x: protonet_scores(still, Batch(support.x, support.y), x), support)
        attacked = fgsm(lambda x: protonet_scores(still, support, x), query)
        judged = protonet_scores(embed, support, attacked.x)
        if name != "trades":
            return nll(judged, query.y)
        clean = protonet_scores(embed, support, query.x)
        return nll(clean, query.y) + 2.5 * kl(clean, judged)

    [(found, _)] = engine.meta_gradients(weights, tasks)
    close(found, plain_meta_gradient(weights, tasks, objective), atol=1e-9)


@pytest.mark.parametrize("name", ["aq", "at", "trades", "r-maml"])
def test_a_defence_without_base_is_of_maml_and_hands_on_what_it_lacks(name):
    make = lambda **options: REGISTRY.make("learner", name, options)  # noqa: E731
    assert make() == make(base="maml")
    assert make(alpha="0.1", train_eps="0.02") == make(base="maml:alpha=0.1", train_eps="0.02")
    assert make(alpha="0.1") != make()
    assert make(base="r2d2:scale=3", ridge="2") == make(base="r2d2:scale=3;ridge=2")
    assert make(base="r2d2", ridge="2").base.ridge == 2.0
    with pytest.raises(BenchError, match="ridge"):
        make(ridge="2")
    with pytest.raises(BenchError, match="no-such"):
        make(base="no-such")


ATTACKING = ["aq", "at", "trades", "r-maml"]


def attacks_of(engine, weights, images):
    """What the training attack was shown in one meta-step."""
    shown, attack = [], engine.attack
    engine.attack = lambda model, x, *more: shown.append(x) or attack(model, x, *more)
    engine.base_classes, base = 9, isinstance(images, Batch)
    engine.meta_gradients(weights, TaskBatch(images, images) if base else images, base=base)
    return shown


@pytest.mark.parametrize("base", ["aq", "trades", "r-maml", "adml", "at-transfer", "at"])
@pytest.mark.parametrize("name", ATTACKING)
def test_what_is_attacked_already_is_not_attacked_again(name, base):
    """Twice would be out of the ball of ε. A defence may refuse to have such a base."""
    try:
        engine, weights = world(name, base=base)
    except BenchError:
        return
    images = base_images() if base == "at-transfer" else shuffled()
    clean = [images.x] if base == "at-transfer" else [images.support.x, images.query.x]
    for x in attacks_of(engine, weights, images):
        assert any(torch.equal(x, known[: len(x)]) for known in clean)


@pytest.mark.parametrize("base", ["baseline", "baseline++"])
@pytest.mark.parametrize("name", ATTACKING)
def test_a_defence_of_what_trains_on_base_classes_alone_defends_it(name, base):
    """Or refuses to, in `obstacle`."""
    engine, weights = world(name, base=base)
    setting = Setting((6,), WAY, 2, 4, "cross_entropy", False, 9)
    assert engine.learner.obstacle(setting) is not None or attacks_of(engine, weights, base_images())


BASES = {
    "maml": {"alpha": st.floats(1e-6, 10), "steps": st.integers(1, 9), "first_order": st.booleans(),
             "train_shot": st.none() | st.integers(1, 9), "augment": st.sampled_from(["none", "crop+flip"])},
    "r2d2": {"scale": st.floats(1e-9, 1e9), "ridge": st.floats(1e-9, 1e9), "weight_decay": st.floats(0, 1)},
    "reptile": {"train_shot": st.integers(1, 9), "batch": st.integers(1, 99)},
    "protonet": {},
}  # fmt: skip
OWN = {
    "train_attack": st.sampled_from(["fgsm", "pgd:steps=7", "pgd:steps=7;alpha=0.02"]),
    "train_eps": st.none() | st.floats(0, 1),
}
DEFENDED = {"aq": OWN, "at": OWN, "trades": OWN | {"c": st.floats(0, 9)}, "r-maml": OWN | {"rate": st.floats(0.1, 9)}}


@st.composite
def defences(draw):
    base = draw(st.sampled_from(sorted(BASES)))
    made = REGISTRY.make("learner", base, draw(st.fixed_dictionaries({}, optional=BASES[base])))
    name = draw(st.sampled_from(sorted(DEFENDED)))
    own = draw(st.fixed_dictionaries({}, optional=DEFENDED[name]))
    return REGISTRY.get("learner", name)(base=made, **own)


@settings(deadline=None, max_examples=150)
@given(defences())
def test_a_defence_comes_back_from_its_options_and_from_what_is_typed(defence):
    dumped = defence.model_dump(mode="json")
    assert isinstance(dumped["base"], str)
    assert REGISTRY.make("learner", defence.name, dumped) == defence
    choice = parse_choice(plugin_as_typed(defence.base), ";")
    assert REGISTRY.make("learner", choice.name, choice.options) == defence.base


def test_none_can_be_typed_where_the_description_has_it():
    assert "none: as in the test" in REGISTRY.get("learner", "maml").model_fields["train_shot"].description
    assert REGISTRY.make("learner", "reptile", {"train_shot": "none"}).train_shot is None
    assert REGISTRY.make("learner", "at", {"base": "reptile:train_shot=none"}).base.train_shot is None


@pytest.mark.parametrize("base", ["adml", "at-transfer", "aq", "at", "trades", "r-maml"])
@pytest.mark.parametrize("name", ["aq", "at", "trades", "r-maml"])
def test_what_is_attacked_in_training_already_is_not_defended_again(name, base):
    """Its images would be attacked twice, up to 2ε from the clean ones."""
    with pytest.raises(BenchError, match=f"base '{base}' is trained against an attack already: defend another"):
        REGISTRY.make("learner", name, {"base": base})


@pytest.mark.parametrize("name", ["aq", "trades", "r-maml"])
def test_reptile_has_no_queries_to_defend(name):
    engine, weights = world(name, MLP, base="reptile")
    with pytest.raises(PluginError, match="reptile' has no loss of queries"):
        engine.meta_gradients(weights, shuffled())


# ---- all of them


def small(learner, plan=None):
    """A learner in a small world, and tasks for it."""
    images = learner == "relationnet"
    shape = (1, 8, 8) if images else (6,)
    engine, weights = world(learner, CONV if images else MLP, shape, plan=plan, **SMALL.get(learner, {}))
    engine.base_classes, engine.progress = 9, 0.05
    engine.network.module.eval()  # no learner draws then
    return engine, weights, shuffled(shape)


@pytest.mark.parametrize("learner", NAMES)
def test_every_plan_gives_the_plain_loops_gradient(learner):
    engine, weights, tasks = small(learner, Plan("loop", "loop", 1))
    plain = engine.meta_gradients(weights, tasks)
    assert all(flat(gradients).abs().max() > 1e-4 for gradients, _ in plain), "nothing to compare"
    for plan in PLANS:
        engine.plan = plan
        mapped = engine.meta_gradients(weights, tasks)
        assert [rate for _, rate in mapped] == [rate for _, rate in plain]
        for (found, _), (expected, _) in zip(mapped, plain, strict=True):
            torch.testing.assert_close(flat(found), flat(expected), rtol=0, atol=1e-9, msg=plan_id(plan))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mapping", ["vmap", "loop"])
@pytest.mark.parametrize("learner", NAMES)
def test_a_task_is_adapted_to_alike_alone_and_among_others(learner, mapping, training):
    engine, weights, tasks = small(learner, Plan(mapping, mapping, 8))
    engine.set_mode(training)
    engine.network.module.eval()

    def predict(some):
        with torch.no_grad():
            return engine.logits(engine.adapt(engine.theta(weights), some.support), some.query.x)

    among = predict(tasks)
    assert among.std(0).max() > 1e-4, "tasks do not differ"
    for i in range(tasks.tasks):
        alone = predict(tasks.part(slice(i, i + 1)))
        torch.testing.assert_close(alone[0], among[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("learner", NAMES)
def test_what_a_learner_declares_is_learned(learner):
    engine, weights, tasks = small(learner)
    own = {name for name in weights if name.startswith("learner.")}
    [(found, _), *_] = engine.meta_gradients(weights, tasks)
    assert not {name for name in own if found[name].abs().max() < 1e-9}
    declaring = {"meta-sgd", "maml++", "relationnet", "r2d2", "metaoptnet", "meta-baseline"}
    assert bool(own) == (learner in declaring)
