"""FGSM against its closed form, and what holds for every attack whose step we write."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_meta.contracts import Random
from robustbench_meta.contracts.threat_model import DeferredViolations, ThreatModel
from robustbench_meta.engine.query_counter import CountingModel, QueryCount
from robustbench_meta.errors import BenchError, ViolationError
from robustbench_meta.plugins.attacks.fgsm import FGSM
from robustbench_meta.plugins.attacks.none import NoAttack
from robustbench_meta.plugins.attacks.pgd import PGD, PGDL2
from robustbench_meta.plugins.attacks.torchattacks import BRIDGED
from tests.helpers.victims import ModuleVictim, conv, images

TASKS, N, WAY, FEATURES = 3, 4, 5, 7


def linear(weight: torch.Tensor, bias: torch.Tensor) -> ModuleVictim:
    module = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    module.load_state_dict({"weight": weight, "bias": bias})
    return ModuleVictim(module, (weight.shape[1],), weight.shape[0])


def attack(victim: ModuleVictim, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    return FGSM().perturb(victim, x, y, ThreatModel("linf", eps), Random(range(len(x))))


def test_fgsm_is_its_closed_form_on_a_linear_model_for_all_tasks_at_once():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WAY, FEATURES, generator=generator, dtype=torch.float64)
    bias = torch.randn(WAY, generator=generator, dtype=torch.float64)
    x = torch.rand(TASKS, N, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(WAY, (TASKS, N), generator=generator)
    # cross-entropy of logits Wx + b: dL/dx = Wᵀ(softmax − onehot)
    error = (x @ weight.T + bias).softmax(-1) - F.one_hot(y, WAY)
    expected = (x + 0.1 * (error @ weight).sign()).clamp(0, 1)
    assert torch.equal(attack(linear(weight, bias), x, y, 0.1), expected)


def test_where_the_gradient_is_zero_the_pixel_stays():
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # the second feature does not count
    x, y = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[0]])
    assert torch.equal(attack(linear(weight, torch.zeros(2)), x, y, 0.25), torch.tensor([[[0.25, 0.5]]]))


def test_a_task_is_attacked_alike_alone_and_among_others():
    victim = conv((1, 8, 8), WAY)
    x, y = images((1, 8, 8), 12).view(3, 4, 1, 8, 8), torch.arange(12).view(3, 4) % WAY
    together = attack(victim, x, y, 0.1)
    for task in range(3):
        torch.testing.assert_close(attack(victim, x[task : task + 1], y[task : task + 1], 0.1)[0], together[task])


@settings(max_examples=25, deadline=None)
@given(
    eps=st.floats(0, 1), side=st.integers(5, 12), channels=st.sampled_from([1, 3]), black_and_white=st.booleans(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_fgsm_stays_within_eps_and_the_pixel_range(eps, side, channels, black_and_white, seed):
    shape = (channels, side, side)
    x, y = images(shape, 4, seed, black_and_white=black_and_white)[None], torch.arange(4)[None] % WAY
    x_adv = attack(conv(shape, WAY), x, y, eps)
    ThreatModel("linf", eps).verify("fgsm", x_adv, x, 3)
    if eps == 0:
        assert torch.equal(x_adv, x)


def test_fgsm_leaves_images_and_weights_alone():
    victim = conv((1, 8, 8), WAY)
    x = images((1, 8, 8), 4)[None]
    before = x.clone(), [weight.clone() for weight in victim.module.parameters()]
    attack(victim, x, torch.zeros(1, 4, dtype=torch.int64), 0.1)
    assert torch.equal(x, before[0])
    assert not x.requires_grad
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(victim.module.parameters(), before[1], strict=True))


class Step(nn.Module):
    """Its logits come from comparisons: no gradient."""

    def forward(self, x):
        return torch.stack([(x.mean((1, 2, 3)) > k / WAY).float() for k in range(WAY)], 1)


def test_a_model_without_gradients_is_named_with_what_to_do():
    x, y = images((1, 8, 8), 4)[None], torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(BenchError, match=r"'fgsm' needs the gradient .* does not depend differentiably .* square"):
        attack(ModuleVictim(Step(), (1, 8, 8), WAY), x, y, 0.1)


def test_none_gives_its_images_back_and_says_that_it_is_clean():
    x, y = images((1, 8, 8), 4)[None], torch.zeros(1, 4, dtype=torch.int64)
    assert NoAttack.clean
    assert torch.equal(NoAttack().perturb(conv((1, 8, 8), WAY), x, y, ThreatModel("linf", 0.1), Random([0])), x)


# ---- projected gradient descent


def batch(seed=0, n=6):
    victim = conv((1, 8, 8), WAY)
    x = images((1, 8, 8), TASKS * n, seed).view(TASKS, n, 1, 8, 8)
    return victim, x, torch.arange(TASKS * n).view(TASKS, n) % WAY


def pgd(victim, x, y, eps, norm="linf", seeds=None, **options):
    made = (PGD if norm == "linf" else PGDL2)(**options)
    return made.perturb(victim, x, y, ThreatModel(norm, eps), Random(seeds or range(len(x))))


@pytest.mark.parametrize(("name", "norm", "eps"), [("pgd", "linf", 0.1), ("pgdl2", "l2", 1.0)])
def test_without_a_random_start_it_is_torchattacks_pgd(name, norm, eps):
    """Another implementation, one task at a time."""
    victim, x, y = batch()
    options = {"steps": 7, "alpha": eps / 4, "random_start": False}
    theirs = BRIDGED[f"torchattacks-{name}"](**options)
    for task, found in enumerate(pgd(victim, x, y, eps, norm, **options)):
        expected = theirs.perturb(victim, x[task], y[task], ThreatModel(norm, eps), Random([0]))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_on_a_linear_model_it_finds_the_worst_case():
    """Two classes: the loss grows along one direction, whose corner (or, in L2, end) of the ball is the worst point."""
    weight = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    victim = linear(weight, torch.zeros(2))
    x = 0.3 + 0.4 * torch.rand(2, 5, 50, generator=torch.Generator().manual_seed(1))
    y = torch.arange(10).view(2, 5) % 2
    downhill = (weight[1] - weight[0]) * (1 - 2 * y)[..., None]
    torch.testing.assert_close(pgd(victim, x, y, 0.1), x + 0.1 * downhill.sign())
    expected = x + 0.5 * downhill / downhill.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(pgd(victim, x, y, 0.5, "l2", alpha=1.0, steps=40), expected)


@settings(max_examples=20, deadline=None)
@given(
    eps=st.floats(0, 1), norm=st.sampled_from(["linf", "l2"]), steps=st.integers(1, 4), restarts=st.integers(1, 2),
    black_and_white=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_pgd_stays_within_eps_and_the_pixel_range(eps, norm, steps, restarts, black_and_white, seed):
    x, y = images((1, 8, 8), 4, seed, black_and_white=black_and_white)[None], torch.arange(4)[None] % WAY
    scale = 1.0 if norm == "linf" else 4.0
    found = pgd(conv((1, 8, 8), WAY), x, y, scale * eps, norm, steps=steps, restarts=restarts)
    ThreatModel(norm, scale * eps).verify("pgd", found, x, 3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_tasks_random_start_is_its_own(norm):
    victim, x, y = batch()
    together = pgd(victim, x, y, 0.2, norm, seeds=[5, 6, 7], steps=2)
    alone = pgd(victim, x[1:2], y[1:2], 0.2, norm, seeds=[6], steps=2)
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-6)
    assert not torch.equal(pgd(victim, x, y, 0.2, norm, seeds=[8, 9, 10], steps=2), together)


def test_more_restarts_fool_at_least_as_many_and_never_with_a_lower_loss():
    victim, x, y = batch(3)
    eps = 0.05
    one, five = (pgd(victim, x, y, eps, seeds=[1, 2, 3], steps=2, alpha=0.01, restarts=count) for count in (2, 5))
    wrong = [victim(found).argmax(-1) != y for found in (one, five)]
    assert (wrong[1] | ~wrong[0]).all()
    same = wrong[0] == wrong[1]
    assert (victim.loss(five, y)[same] >= victim.loss(one, y)[same] - 1e-6).all()
    assert not torch.equal(one, five)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_several_starts_the_first_that_fools_is_kept_else_that_of_the_highest_loss(norm):
    victim, x, y = batch(3)
    threat, options = ThreatModel(norm, 0.05 if norm == "linf" else 0.3), {"steps": 2, "alpha": 0.02}
    random = Random([1, 2, 3])
    one = (PGD if norm == "linf" else PGDL2)(**options)
    runs = [one.perturb(victim, x, y, threat, random) for _ in range(4)]
    expected = runs[0].clone()
    for task, image in itertools.product(range(TASKS), range(x.shape[1])):
        each = [found[task, image] for found in runs]
        fools = [one for one in each if victim.fooled(one, y[task, image])]
        losses = [float(loss) for loss in victim.loss(torch.stack(each), y[task, image].expand(len(each)))]
        expected[task, image] = fools[0] if fools else each[losses.index(max(losses))]
    found = pgd(victim, x, y, threat.eps, norm, seeds=[1, 2, 3], restarts=4, **options)
    assert 0 < victim.fooled(found, y).sum() < y.numel()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-4, 0.04, 1.0])
def test_a_later_start_costs_what_withstands_the_earlier_ones_and_what_fills_up_the_batch(eps):
    """A start is five steps and a look; of each task as many images are shown as withstand in the best one."""
    victim, x, y = batch(6)
    first, count = pgd(victim, x, y, eps, seeds=[1, 2, 3], steps=5), QueryCount()
    most = int((~victim.fooled(first, y)).sum(1).max())
    pgd(CountingModel(victim, count), x, y, eps, seeds=[1, 2, 3], steps=5, restarts=2)
    assert count.forward == (y.numel() + TASKS * most) * (5 + 1)
    assert count.gradients == (y.numel() + TASKS * most) * 5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_until_fooled_an_image_stays_at_the_first_iterate_that_fools(norm):
    """By hand, one iterate after the other of the plain attack, on a model whose loss is not monotone in the steps."""
    victim, x, y = batch(6)
    threat, options = ThreatModel(norm, 0.05 if norm == "linf" else 0.3), {"alpha": 0.03}

    def attacked(**more):
        attack = (PGD if norm == "linf" else PGDL2)(**(options | more))
        return attack.perturb(victim, x, y, threat, Random([1, 2, 3]))

    iterates = [attacked(steps=1, alpha=1e-30)]  # where it starts
    iterates += [attacked(steps=count) for count in range(1, 14)]
    expected = iterates[-1]
    for found in reversed(iterates[:-1]):
        expected = torch.where(victim.fooled(found, y)[..., None, None, None], found, expected)
    found = attacked(steps=13, until_fooled=True)
    assert 0 < victim.fooled(found, y).sum() < y.numel()
    assert (victim.fooled(found, y) | ~victim.fooled(iterates[-1], y)).all(), "any step is at least the last one"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "how"), [({"steps": 1}, "single-step"), ({"steps": 1, "restarts": 2}, "iterative"), ({}, "iterative")]
)
def test_one_step_once_is_a_single_step_by_whatever_name(options, how):
    assert PGD(**options).how() == PGDL2(**options).how() == how
    assert FGSM().how() == "single-step"


def test_where_there_is_no_gradient_pgd_l2_stays():
    weight = torch.zeros(2, 4)
    x, y = torch.rand(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64)
    assert torch.equal(pgd(linear(weight, torch.zeros(2)), x, y, 0.5, "l2", random_start=False), x)


def test_doubts_are_judged_when_they_are_settled_and_nan_is_not_forgotten():
    threat, deferred, x = ThreatModel("linf", 0.1), DeferredViolations(), torch.full((1, 2, 3), 0.5)
    for shift in (0.05, 0.13, 0.0):
        threat.verify("strong", x + shift, x, 1, deferred)
    threat.verify("good", x + 0.1, x, 1, deferred)
    with pytest.raises(ViolationError, match=r"'strong' exceeded .*over by 0.03"):
        deferred.settle()
    deferred.settle()
    for image in (x * torch.nan, x):
        threat.verify("broken", image, x, 1, deferred)
    with pytest.raises(ViolationError, match="'broken' returned NaN"):
        deferred.settle()
    with pytest.raises(ViolationError, match="returned NaN or infinite"):
        threat.verify("broken", x + torch.inf, x, 1)


def test_a_tiny_gradient_has_a_direction_all_the_same():
    weight = torch.tensor([[3e-30, 4e-30], [-3e-30, -4e-30]])
    x, y = torch.full((1, 1, 2), 0.5), torch.zeros(1, 1, dtype=torch.int64)
    found = pgd(linear(weight, torch.zeros(2)), x, y, 0.1, "l2", steps=1, alpha=0.05, random_start=False)
    torch.testing.assert_close(found, x - 0.05 * torch.tensor([0.6, 0.8]))


def test_restarts_need_a_random_start():
    with pytest.raises(ValueError, match="would all be the same"):
        PGD(restarts=2, random_start=False)


def test_of_a_transductive_models_restarts_a_whole_task_is_kept():
    victim, x, y = batch()
    victim.transductive = True
    found = pgd(victim, x, y, 0.05, seeds=[1, 2, 3], steps=1, alpha=0.01, restarts=4)
    victim.transductive = False
    mixed = pgd(victim, x, y, 0.05, seeds=[1, 2, 3], steps=1, alpha=0.01, restarts=4)
    whole, single = victim.fooled(found, y).sum(-1), victim.fooled(mixed, y).sum(-1)
    assert (single >= whole).all(), "image by image is at least as strong where images do not see each other"
