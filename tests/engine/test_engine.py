"""The engine: vmap equals loop, chunks do not matter, gradients equal finite differences, sharing is kept."""

from __future__ import annotations

import pytest
import torch

from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.preflight import check_declared, may_be_vmapped
from robustbench_meta.errors import BenchError
from tests.helpers.worlds import PLANS, flat, make_world, plan_id, random_tasks

BACKBONES = {
    "linear": "linear",
    "mlp": ("mlp", {"width": "7"}),
    "conv4-group": ("conv4", {"width": "4", "groups": "2"}),
    "conv4-batch": ("conv4", {"width": "4", "norm": "batch"}),
    "conv4-layer": ("conv4", {"width": "4", "norm": "layer"}),
    "conv4-none": ("conv4", {"width": "4", "norm": "none"}),
    "conv4-max": ("conv4", {"width": "4", "pool": "max", "groups": "2"}),
}
LEARNERS = {
    "maml": ("maml", {}),
    "maml-3-steps": ("maml", {"steps": 3}),
    "maml-first-order": ("maml", {"first_order": True}),
    "adml": ("adml", {}),
    "adml-sequential": ("adml", {"outer": "sequential"}),
    "adml-uncrossed": ("adml", {"crossed": False}),
    "adml-surrogate": ("adml", {"attack_on": "surrogate"}),
    "aq": ("aq", {}),
    "protonet": ("protonet", {}),
}


def build(registry, learner, backbone, plan=None):
    name, options = LEARNERS[learner]
    shape = (1, 16, 16) if backbone == "conv4-max" else (1, 8, 8)
    engine, weights = make_world(registry, name, BACKBONES[backbone], shape=shape, plan=plan, **options)
    return engine, weights, random_tasks(shape=shape)


PAIRS = [("maml", backbone) for backbone in BACKBONES] + [(learner, "conv4-group") for learner in LEARNERS]


@pytest.mark.parametrize(("learner", "backbone"), PAIRS, ids=map("-on-".join, PAIRS))
def test_every_plan_gives_the_plain_loops_gradient(registry, learner, backbone):
    engine, weights, tasks = build(registry, learner, backbone, Plan("loop", "loop", 1))
    plain = [(flat(gradients), rate) for gradients, rate in engine.meta_gradients(weights, tasks)]
    assert all(gradient.abs().max() > 1e-4 for gradient, _ in plain), "nothing to compare"
    for plan in PLANS:
        engine.plan = plan
        mapped = engine.meta_gradients(weights, tasks)
        assert [rate for _, rate in mapped] == [rate for _, rate in plain]
        for (found, _), (expected, _) in zip(mapped, plain, strict=True):
            torch.testing.assert_close(flat(found), expected, rtol=0, atol=1e-9, msg=plan_id(plan))


DIFFERENCES = [(learner, "mlp") for learner in ("maml", "maml-3-steps", "protonet", "aq", "adml")]
DIFFERENCES += [("maml", backbone) for backbone in BACKBONES if backbone.startswith("conv4")]


@pytest.mark.parametrize("plan", [Plan("vmap", "vmap", 5), Plan("vmap", "loop", 5)], ids=plan_id)
@pytest.mark.parametrize(("learner", "backbone"), DIFFERENCES, ids=map("-on-".join, DIFFERENCES))
def test_meta_gradient_equals_central_differences(registry, learner, backbone, plan):
    """Of the mean objective along random directions; a step so small that no ReLU or FGSM sign changes on the way."""
    engine, weights, tasks = build(registry, learner, backbone, plan)
    found = flat(engine.meta_gradients(weights, tasks)[0][0])
    step = 1e-8

    def objective(shift):
        moved, start = {}, 0
        for name, weight in weights.items():
            moved[name] = weight.detach() + shift[start : start + weight.numel()].view_as(weight)
            start += weight.numel()
        engine.plan = Plan("loop", "loop", 5)
        return engine.learner.objective(engine, engine.theta(moved), tasks)[0].loss.mean().detach()

    for seed in range(3):
        direction = torch.randn(found.numel(), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (objective(step * direction) - objective(-step * direction)) / (2 * step)
        torch.testing.assert_close(found @ direction, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS, ids=plan_id)
def test_a_learner_that_hands_its_weights_through_keeps_them_shared(registry, plan):
    engine, weights, tasks = build(registry, "protonet", "mlp", plan)
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    assert all(adapted.tree.weights[name] is weight for name, weight in weights.items())
    assert adapted.dims.prototypes == 0
    assert adapted.tree.prototypes.shape[0] == tasks.tasks


def test_prototypes_and_logits_are_snells(registry):
    engine, weights, tasks = build(registry, "protonet", "linear")
    adapted = engine.adapt(engine.theta(weights), tasks.support)
    x, y = tasks.support.x[2].flatten(1), tasks.support.y[2]
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    torch.testing.assert_close(adapted.task(2).prototypes, means)
    query = tasks.query.x[2].flatten(1)
    torch.testing.assert_close(engine.logits(adapted, tasks.query.x)[2], -torch.cdist(query, means).square())


def test_permuting_tasks_permutes_results(registry):
    engine, weights, tasks = build(registry, "maml", "conv4-group")
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = type(tasks)(*(type(part)(part.x[order], part.y[order]) for part in tasks))
    with torch.no_grad():
        first = engine.logits(engine.adapt(engine.theta(weights), tasks.support), tasks.query.x)
        second = engine.logits(engine.adapt(engine.theta(weights), moved.support), moved.query.x)
    torch.testing.assert_close(second, first[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("norm", "transductive"), [("group", False), ("layer", False), ("none", False), ("batch", True)]
)
def test_only_batch_norm_lets_a_query_see_its_mates(registry, norm, transductive):
    engine, weights = make_world(registry, "maml", ("conv4", {"width": "4", "groups": "2", "norm": norm}))
    tasks = random_tasks()
    with torch.no_grad():
        adapted = engine.adapt(engine.theta(weights), tasks.support)
        whole = engine.logits(adapted, tasks.query.x)[:, :1]
        alone = engine.logits(adapted, tasks.query.x[:, :1])
    assert engine.transductive is transductive
    assert bool((whole - alone).abs().max() > 1e-3) is transductive


@pytest.mark.parametrize("attacked", [True, False])
def test_judging_changes_nothing_and_counts_every_query(registry, attacked):
    engine, weights, tasks = build(registry, "maml", "mlp")
    before = flat(weights).clone()
    engine.attack = engine.attack if attacked else None
    verdict = engine.judge(weights, lambda places: tasks.part(slice(places.start, places.stop)), [0] * tasks.tasks)
    adapted = engine.adapt(engine.theta(weights), tasks.support).detach()
    x = tasks.query.x.clone().requires_grad_()
    engine.loss(adapted, Batch(x, tasks.query.y)).sum().backward()
    fgsm = (tasks.query.x + 0.05 * x.grad.sign()).clamp(0, 1)
    for judged, shown in ((verdict.clean, tasks.query.x), (verdict.attacked, fgsm if attacked else None)):
        if shown is None:
            assert judged.means() == {}
            continue
        with torch.no_grad():
            logits = engine.logits(adapted, shown)
        right = float((logits.argmax(-1) == tasks.query.y).double().mean())
        log_p = logits.log_softmax(-1).gather(-1, tasks.query.y[..., None])
        assert judged.means() == {"accuracy": pytest.approx(right), "loss": pytest.approx(float(-log_p.mean()))}
    assert torch.equal(flat(weights), before)


class TorchBatchNorm(torch.nn.Module):
    """A backbone as a stranger would write it, with torch's own batch norm."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4, track_running_stats=False), torch.nn.Tanh(),
            torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def dressed(registry, module, learner="maml"):
    """An engine around a stranger's module, with its weights and two tasks, in float32."""
    engine, _ = make_world(registry, learner, "mlp")
    engine.network.module = module
    weights = {name: weight.detach().requires_grad_() for name, weight in module.named_parameters()}
    tasks = random_tasks(tasks=2)
    return engine, weights, type(tasks)(*(type(part)(part.x.float(), part.y) for part in tasks))


def test_a_wrong_gradient_under_vmap_is_found_out(registry):
    """torch's batch norm has a wrong second derivative under vmap: what uses it must be looped over."""
    assert not may_be_vmapped(*dressed(registry, TorchBatchNorm()))
    for backbone in ("conv4-batch", "conv4-group", "mlp"):
        engine, weights, tasks = build(registry, "adml", backbone)
        assert may_be_vmapped(engine, weights, tasks), backbone


class BranchesOnValues(torch.nn.Linear):
    """Nothing that vmap can follow."""

    def __init__(self):
        super().__init__(64, 3)

    def forward(self, x):
        scale = 1.0 if x.sum().item() > 0 else 2.0
        return scale * super().forward(x.flatten(1))


def test_what_vmap_cannot_follow_is_looped_over(registry):
    engine, weights, tasks = dressed(registry, BranchesOnValues())
    assert not may_be_vmapped(engine, weights, tasks)
    engine.plan = Plan("loop", "loop", 2)
    assert flat(engine.meta_gradients(weights, tasks)[0][0]).abs().max() > 1e-3


def test_an_undeclared_transductive_backbone_is_refused(registry):
    engine, weights, tasks = dressed(registry, TorchBatchNorm())
    with pytest.raises(BenchError, match="declared inductive"):
        check_declared(engine, weights, tasks, "maml on theirs")
    engine.transductive = True
    check_declared(engine, weights, tasks, "maml on theirs")
    for backbone in ("conv4-group", "conv4-layer", "conv4-none", "mlp", "linear"):
        check_declared(*build(registry, "maml", backbone), backbone)


def test_dropout_is_on_in_training_only(registry):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3))
    engine, weights, tasks = dressed(registry, module)
    theta = engine.theta({name: weight.detach() for name, weight in weights.items()})
    torch.manual_seed(0)
    engine.set_mode(training=False)
    assert torch.equal(engine.logits(theta, tasks.query.x), engine.logits(theta, tasks.query.x))
    engine.set_mode(training=True)
    assert not torch.equal(engine.logits(theta, tasks.query.x), engine.logits(theta, tasks.query.x))


def test_few_examples_are_mapped_by_vmap_with_the_loops_logits(registry):
    engine, weights = make_world(registry, "maml", ("conv4", {"width": "4"}), plan=Plan("vmap", "loop", 5, few=3))
    tasks, calls = random_tasks(), []
    vmap = torch.func.vmap
    with torch.no_grad():
        adapted = engine.adapt(engine.theta(weights), tasks.support)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.func, "vmap", lambda *args, **more: calls.append(args) or vmap(*args, **more))
            whole = engine.logits(adapted, tasks.query.x)
            assert not calls
            few = engine.logits(adapted, tasks.query.x[:, :3])
            assert calls
    torch.testing.assert_close(few, whole[:, :3])
