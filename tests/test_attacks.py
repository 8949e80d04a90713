"""FGSM against its closed form, and what holds for every attack whose step we write."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_meta.contracts import Random
from robustbench_meta.errors import BenchError
from robustbench_meta.plugins.attacks.fgsm import FGSM
from robustbench_meta.plugins.attacks.none import NoAttack
from robustbench_meta.threat import ThreatModel
from tests.victims import ModuleVictim, conv, images

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
