"""conv4:norm=support: batch norm by the statistics of the support set, and the predictions inductive."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_meta.contracts.state import WithSupport
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.attacked_model import PoisonedAdaptation
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.network import Network
from robustbench_meta.engine.preflight import check_declared, may_be_vmapped
from robustbench_meta.plugins.backbones.conv4 import BatchStatistics, Conv4, SupportNormed
from tests.helpers.worlds import PLANS, flat, make_world, plan_id, random_tasks

SUPPORT = ("conv4", {"width": "4", "norm": "support"})
LEARNERS = {
    "maml": ("maml", {}),
    "maml-3-steps": ("maml", {"steps": 3, "alpha": 0.1}),
    "maml-first-order": ("maml", {"first_order": True}),
    "adml": ("adml", {}),
    "adml-surrogate": ("adml", {"attack_on": "surrogate", "surrogate": "linear"}),
    "aq": ("aq", {}),
    "protonet": ("protonet", {}),
}


def build(registry, learner, plan=None, tasks=5):
    name, options = LEARNERS[learner]
    engine, weights = make_world(registry, name, SUPPORT, plan=plan, **options)
    return engine, weights, random_tasks(tasks)


def test_it_is_torchs_batch_norm_with_the_support_sets_mean_and_variance():
    """torch's own in evaluation mode, its running statistics set by hand, layer by layer."""
    torch.manual_seed(0)
    module = Conv4(width=4, norm="support").build((1, 16, 16), 3).double().requires_grad_(False)
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, BatchStatistics):
                layer.weight.normal_()
                layer.bias.normal_()
    support, x = torch.rand(6, 1, 16, 16).double(), torch.rand(9, 1, 16, 16).double()
    shown, expected = support, x
    for layer in module:
        if isinstance(layer, BatchStatistics):
            mean, variance = shown.mean((0, 2, 3)), shown.var((0, 2, 3), correction=0)
            shown, expected = (
                F.batch_norm(images, mean, variance, layer.weight, layer.bias, training=False, eps=layer.epsilon)
                for images in (shown, expected)
            )
        else:
            shown, expected = layer(shown), layer(expected)
    torch.testing.assert_close(module(x, support), expected, rtol=1e-10, atol=1e-12)


def test_one_block_by_hand():
    """Pixels 1 and 3 in the support set: mean 2, variance 1; a query of 6 becomes (6 − 2)/√(1 + 10⁻⁵)."""
    block = SupportNormed(BatchStatistics(1)).double()
    support, query = (torch.tensor(pixels).double().view(-1, 1, 1, 1) for pixels in ([1.0, 3.0], [6.0, 2.0, -1.0]))
    deviation = (1 + 1e-5) ** 0.5
    expected = torch.tensor([4.0, 0.0, -3.0]).double() / deviation
    torch.testing.assert_close(block(query, support).flatten(), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(block(support).flatten(), torch.tensor([-1.0, 1.0]).double() / deviation)


def test_the_support_set_itself_is_normalised_as_in_adaptation():
    module = Conv4(width=4, norm="support").build((1, 8, 8), 3).double()
    support = random_tasks(1).support.x[0]
    batch = Conv4(width=4, norm="batch").build((1, 8, 8), 3).double()
    batch.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(support, support), batch(support), rtol=0, atol=1e-12)
    torch.testing.assert_close(module(support), batch(support), rtol=0, atol=1e-12)


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_query_is_answered_alike_alone_among_others_and_in_any_order(registry, learner):
    engine, weights, tasks = build(registry, learner)
    with torch.no_grad():
        adapted = engine.adapt(engine.theta(weights), tasks.support)
        whole = engine.logits(adapted, tasks.query.x)
        alone = torch.cat([engine.logits(adapted, x) for x in tasks.query.x.split(1, dim=1)], dim=1)
        order = torch.randperm(whole.shape[1], generator=torch.Generator().manual_seed(0))
        permuted = engine.logits(adapted, tasks.query.x[:, order])
    assert not engine.transductive
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-9)
    torch.testing.assert_close(permuted, whole[:, order], rtol=0, atol=1e-9)
    check_declared(engine, weights, tasks, learner)


@pytest.mark.parametrize("learner", ["maml", "protonet"])
def test_it_is_the_support_set_that_was_adapted_to_that_counts(registry, learner):
    """Weights held fixed, another support set gives other answers: an attacked one attacks through the norm, too."""
    engine, weights, tasks = build(registry, learner)
    with torch.no_grad():
        adapted = engine.adapt(engine.theta(weights), tasks.support)
        moved = Batch((tasks.support.x + 0.1).clamp(0, 1), tasks.support.y)
        assert torch.equal(engine.adapt(engine.theta(weights), moved).tree.support, moved.x)
        other = adapted.with_support(moved.x)
        assert isinstance(other.without_support().tree, type(adapted.tree.tree))
        assert not torch.allclose(engine.logits(adapted, tasks.query.x), engine.logits(other, tasks.query.x))


def test_adapting_an_adapted_state_again_reads_the_new_support_set(registry):
    engine, weights, tasks = build(registry, "maml")
    first = engine.adapt(engine.theta(weights), tasks.support)
    again = engine.adapt(first, tasks.query)
    assert torch.equal(again.tree.support, tasks.query.x)
    assert not isinstance(again.tree.tree, WithSupport)


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_plan_gives_the_plain_loops_gradient(registry, learner):
    engine, weights, tasks = build(registry, learner, Plan("loop", "loop", 1))
    plain = flat(engine.meta_gradients(weights, tasks)[0][0])
    assert plain.abs().max() > 1e-4, "nothing to compare"
    for plan in PLANS:
        engine.plan = plan
        found = flat(engine.meta_gradients(weights, tasks)[0][0])
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-9, msg=plan_id(plan))
    assert may_be_vmapped(engine, weights, tasks)


def slopes(function, at, found, step=1e-7):
    """Compares a gradient with central differences of the function, along random directions."""
    for seed in range(3):
        direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (function(at + step * direction) - function(at - step * direction)) / (2 * step)
        torch.testing.assert_close((found * direction).sum(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", [Plan("vmap", "vmap", 5), Plan("vmap", "loop", 5)], ids=plan_id)
@pytest.mark.parametrize("learner", ["maml", "maml-3-steps", "protonet"])
def test_the_meta_gradient_equals_central_differences(registry, learner, plan):
    engine, weights, tasks = build(registry, learner, plan)
    found = flat(engine.meta_gradients(weights, tasks)[0][0])

    def objective(point: Tensor) -> Tensor:
        parts = point.split([weight.numel() for weight in weights.values()])
        moved = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
        return engine.learner.objective(engine, engine.theta(moved), tasks)[0].loss.mean().detach()

    slopes(objective, flat(weights).detach(), found)


@pytest.mark.parametrize("plan", [Plan("vmap", "vmap", 5), Plan("loop", "loop", 5)], ids=plan_id)
@pytest.mark.parametrize("learner", ["maml", "maml-3-steps", "maml-first-order", "protonet"])
def test_poison_is_followed_through_weights_and_statistics(registry, learner, plan):
    engine, weights, tasks = build(registry, learner, plan)
    victim = PoisonedAdaptation(engine, engine.theta(weights), tasks.query)
    images = tasks.support.x.clone().requires_grad_()
    found = torch.autograd.grad(victim.loss(images, tasks.support.y).sum(), images)[0]
    slopes(lambda x: victim.loss(x, tasks.support.y).sum().detach(), tasks.support.x, found)


def test_poison_works_through_the_statistics_alone(registry):
    """Weights held fixed, the queries' loss still has a gradient in the support images: the norm's own."""
    engine, weights, tasks = build(registry, "maml")
    adapted = engine.adapt(engine.theta(weights), tasks.support).detach()
    images = tasks.support.x.clone().requires_grad_()
    loss = engine.loss(adapted.with_support(images), tasks.query).sum()
    assert torch.autograd.grad(loss, images)[0].abs().max() > 1e-6


@pytest.mark.parametrize("plan", [Plan("vmap", "vmap", 5), Plan("loop", "loop", 5)], ids=plan_id)
def test_an_attack_of_all_tasks_and_of_one_see_the_same_model(registry, plan):
    engine, weights, tasks = build(registry, "maml", plan)
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    together, single = [], []

    def watch(model, x, y, random, start=None):
        together.append(model(x))
        single.append(torch.stack([model.task(index)(x[index]) for index in range(len(x))]))
        return x

    engine.perturb(adapted, tasks.query, watch)
    torch.testing.assert_close(together[0], single[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(together[0], engine.logits(adapted, tasks.query.x), rtol=0, atol=1e-9)


def test_an_attacked_query_is_judged_by_itself(registry):
    """FGSM on all queries together moves each exactly as FGSM on it alone: an inductive model under attack."""
    engine, weights, tasks = build(registry, "maml", Plan("loop", "loop", 5))
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    fgsm = guarded(registry.make("attack", "fgsm", {}), ThreatModel("linf", 0.1))
    whole = engine.perturb(adapted, tasks.query, fgsm).x
    for place in range(3):
        one = Batch(tasks.query.x[:, place : place + 1], tasks.query.y[:, place : place + 1])
        torch.testing.assert_close(engine.perturb(adapted, one, fgsm).x, whole[:, place : place + 1])


def test_bf16_normalises_by_the_support_set_too(registry):
    engine, weights, tasks = build(registry, "maml")
    low = {name: weight.detach().float() for name, weight in weights.items()}
    tasks = TaskBatch(*(Batch(batch.x.float(), batch.y) for batch in tasks))
    exact = engine.adapt(engine.theta(low), tasks.support)
    expected = engine.logits(exact, tasks.query.x)
    engine.network.precision = "bf16"
    for plan in (Plan("vmap", "vmap", 5), Plan("loop", "loop", 5)):
        engine.plan = plan
        found = engine.logits(exact, tasks.query.x)
        assert found.dtype == torch.float32
        assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
        alone = torch.cat([engine.logits(exact, x) for x in tasks.query.x.split(1, dim=1)], dim=1)
        assert (alone - found).abs().max() < 0.02 * expected.abs().max()


def test_networks_that_read_no_support_set_keep_none(registry):
    engine, weights = make_world(registry, "maml", ("conv4", {"width": "4", "norm": "batch"}))
    tasks = random_tasks()
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    assert isinstance(adapted.tree, dict)
    assert not engine.network.reads_support


def test_conv4_declares_it_inductive_with_a_norm_column_of_its_own(registry):
    backbone = registry.make("backbone", "conv4", {"norm": "support"})
    assert (backbone.norm_layer, backbone.transductive) == ("support", False)
    module = backbone.build((1, 28, 28), 5)
    assert Network(module, "cross_entropy", 5).reads_support
    parameters = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    batch = registry.make("backbone", "conv4", {"norm": "batch"}).build((1, 28, 28), 5)
    assert parameters == {name: tuple(weight.shape) for name, weight in batch.named_parameters()}
    assert copy.deepcopy(module).reads_support
