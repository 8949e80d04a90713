"""MAML and ADML steps against derivations by hand, on a linear model f(x) = Wx with squared loss.

With X [n, d], one-hot Y [n, k] and W [k, d] the loss is L = ‖XWᵀ − Y‖² / (n·k), so
    gradient  G(W) = 2/(n·k)·(XWᵀ − Y)ᵀX,      Hessian (on each row of W)  H = 2/(n·k)·XᵀX,
an inner step is W' = W − α·G_s(W), and dW'/dW = I − α·H_s. The meta-gradient of L_q(W') is therefore
    G_q(W')·(I − α·H_s)        (second order),         G_q(W')        (first order).
FGSM's gradient of the example's loss in x is 2/k·(Wx − y)ᵀW, of which only the sign counts.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers.worlds import PLANS, make_world, plan_id, random_tasks

ALPHA, EPS, WAY = 0.3, 0.05, 3
CASES = [{"outer": outer, "crossed": crossed} for outer in ("joint", "sequential") for crossed in (True, False)]


def gradient(w, x, y):
    return 2 / (len(x) * WAY) * (x @ w.T - y).T @ x


def curvature(x):
    return 2 / (len(x) * WAY) * x.T @ x


def meta_gradient(w, adapted_on, judged_on, first_order=False, alpha=ALPHA, steps=1):
    (xs, ys), (xq, yq) = adapted_on, judged_on
    adapted = w
    for _ in range(steps):
        adapted = adapted - alpha * gradient(adapted, xs, ys)
    outer = gradient(adapted, xq, yq)
    chain = torch.linalg.matrix_power(torch.eye(xs.shape[1]) - alpha * curvature(xs), steps)
    return outer if first_order else outer @ chain


def fgsm(w, x, y):
    return (x + EPS * torch.sign(2 / WAY * (x @ w.T - y) @ w)).clamp(0, 1)


def world(registry, learner, **options):
    linear = ("linear", {"bias": "false"})
    return make_world(registry, learner, linear, loss="squared", way=WAY, shape=(6,), eps=EPS, alpha=ALPHA, **options)


def by_task(tasks):
    one_hot = torch.eye(WAY, dtype=torch.float64)
    for i in range(tasks.tasks):
        yield tuple((batch.x[i], one_hot[batch.y[i]]) for batch in tasks)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("plan", PLANS, ids=plan_id)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_meta_gradient(registry, plan, steps, first_order):
    engine, weights = world(registry, "maml", first_order=first_order, steps=steps, plan=plan)
    tasks = random_tasks(shape=(6,))
    [(found, rate)] = engine.meta_gradients(weights, tasks)
    (w,) = weights.values()
    expected = torch.stack(
        [meta_gradient(w.detach(), *task, first_order=first_order, steps=steps) for task in by_task(tasks)]
    ).mean(0)
    assert rate == 1.0
    torch.testing.assert_close(next(iter(found.values())), expected, rtol=0, atol=1e-12)


def test_first_order_lacks_exactly_the_curvature_term(registry):
    tasks = random_tasks(shape=(6,))
    second, weights = world(registry, "maml")
    first, _ = world(registry, "maml", first_order=True)
    [(full, _)], [(short, _)] = second.meta_gradients(weights, tasks), first.meta_gradients(weights, tasks)
    (w,) = weights.values()
    terms = []
    for (xs, ys), (xq, yq) in by_task(tasks):
        adapted = w.detach() - ALPHA * gradient(w.detach(), xs, ys)
        terms.append(-ALPHA * gradient(adapted, xq, yq) @ curvature(xs))
    difference = next(iter(full.values())) - next(iter(short.values()))
    assert difference.abs().max() > 1e-3
    torch.testing.assert_close(difference, torch.stack(terms).mean(0), rtol=0, atol=1e-12)


def expected_adml(w, task, crossed, first_order, alpha_adv):
    support, query = task
    support_adv = (fgsm(w, *support), support[1])
    clean = w - ALPHA * gradient(w, *support)
    adversarial = w - alpha_adv * gradient(w, *support_adv)
    if crossed:
        query_adv = (fgsm(clean, *query), query[1])
        one = meta_gradient(w, support, query_adv, first_order)
        two = meta_gradient(w, support_adv, query, first_order, alpha_adv)
    else:
        query_adv = (fgsm(adversarial, *query), query[1])
        one = meta_gradient(w, support_adv, query_adv, first_order, alpha_adv)
        two = meta_gradient(w, support, query, first_order)
    return one, two


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['outer']}-{'crossed' if case['crossed'] else 'uncrossed'}"
)
@pytest.mark.parametrize("first_order", [False, True])
def test_adml_meta_gradients(registry, case, first_order):
    engine, weights = world(registry, "adml", alpha_adv=0.2, beta1=0.7, beta2=1.9, first_order=first_order, **case)
    tasks = random_tasks(shape=(6,))
    found = [(next(iter(grads.values())), rate) for grads, rate in engine.meta_gradients(weights, tasks)]
    (w,) = weights.values()
    pairs = [expected_adml(w.detach(), task, case["crossed"], first_order, 0.2) for task in by_task(tasks)]
    one, two = (torch.stack(side).mean(0) for side in zip(*pairs, strict=True))
    if case["outer"] == "joint":
        assert [rate for _, rate in found] == [1.0]
        torch.testing.assert_close(found[0][0], 0.7 * one + 1.9 * two, rtol=0, atol=1e-12)
    else:
        assert [rate for _, rate in found] == [0.7, 1.9]
        torch.testing.assert_close(found[0][0], one, rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1][0], two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attack_on", ["initial", "surrogate"])
def test_adml_attacks_queries_through_the_weights_that_the_option_names(registry, attack_on):
    engine, weights = world(registry, "adml", attack_on=attack_on)
    tasks = random_tasks(shape=(6,))
    [(found, _)] = engine.meta_gradients(weights, tasks)
    w = next(iter(weights.values())).detach()
    if attack_on == "initial":
        attack = lambda x, y: fgsm(w, x, y)  # noqa: E731
    else:
        v, bias = engine.surrogate_weights.values()
        attack = lambda x, y: (x + EPS * torch.sign((x @ v.T + bias - y) @ v)).clamp(0, 1)  # noqa: E731
    expected = []
    for support, query in by_task(tasks):
        query_adv, support_adv = (attack(*query), query[1]), (attack(*support), support[1])
        expected.append(meta_gradient(w, support, query_adv) + meta_gradient(w, support_adv, query))
    torch.testing.assert_close(next(iter(found.values())), torch.stack(expected).mean(0), rtol=0, atol=1e-12)


def test_aq_judges_attacked_queries_only(registry):
    engine, weights = world(registry, "aq")
    tasks = random_tasks(shape=(6,))
    [(found, _)] = engine.meta_gradients(weights, tasks)
    w = next(iter(weights.values())).detach()
    expected = []
    for support, query in by_task(tasks):
        adapted = w - ALPHA * gradient(w, *support)
        expected.append(meta_gradient(w, support, (fgsm(adapted, *query), query[1])))
    torch.testing.assert_close(next(iter(found.values())), torch.stack(expected).mean(0), rtol=0, atol=1e-12)


def test_sequential_updates_agree_with_joint_under_sgd_and_differ_under_adam(registry):
    from robustbench_meta.engine.training import _step

    tasks, moved = random_tasks(shape=(6,)), {}
    for outer in ("joint", "sequential"):
        for make in (torch.optim.SGD, torch.optim.Adam):
            engine, weights = world(registry, "adml", outer=outer, beta1=0.7, beta2=1.9)
            optimizer = make(list(weights.values()), lr=0.01)
            for gradients, rate in engine.meta_gradients(weights, tasks):
                _step(optimizer, weights, gradients, [0.01 * rate])
            moved[outer, make.__name__] = next(iter(weights.values())).detach()
    torch.testing.assert_close(moved["joint", "SGD"], moved["sequential", "SGD"], rtol=0, atol=1e-14)
    assert (moved["joint", "Adam"] - moved["sequential", "Adam"]).abs().max() > 1e-3
