"""Auto-PGD, Square Attack, noise and their ensemble: closed forms, Algorithm 1 by hand, laws, and torchattacks."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_meta.contracts import Random, Setting, Victim
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.query_counter import CountingModel, QueryCount
from robustbench_meta.errors import BenchError
from robustbench_meta.plugins.attacks.apgd import APGD, APGDL2, checkpoints, dlr, targeted_dlr
from robustbench_meta.plugins.attacks.auto import Auto, AutoL2
from robustbench_meta.plugins.attacks.fab import FAB, FABL2, to_plane
from robustbench_meta.plugins.attacks.fgsm import FGSM
from robustbench_meta.plugins.attacks.noise import Noise, NoiseL2
from robustbench_meta.plugins.attacks.pgd import PGD, PGDL2
from robustbench_meta.plugins.attacks.square import Square, SquareL2, _bump
from robustbench_meta.plugins.attacks.torchattacks import BRIDGED
from tests.helpers.victims import ModuleVictim, conv, images

WAY = 5
QUICK = {
    "noise": Noise(), "noisel2": NoiseL2(),
    "apgd": APGD(steps=12), "apgd-dlr": APGD(steps=9, loss="dlr"),
    "apgd-dlr-targeted": APGD(steps=6, loss="dlr-targeted"),
    "apgd-restarts": APGD(steps=5, restarts=3), "apgdl2": APGDL2(steps=12),
    "apgdl2-dlr-targeted": APGDL2(steps=6, loss="dlr-targeted"),
    "square": Square(queries=60), "square-restarts": Square(queries=30, restarts=2), "squarel2": SquareL2(queries=60),
    "fab": FAB(steps=8), "fab-restarts": FAB(steps=5, restarts=2), "fabl2": FABL2(steps=8),
    "auto": Auto(steps=6, queries=30), "autol2": AutoL2(steps=6, queries=30),
}  # fmt: skip
ALL = pytest.mark.parametrize("name", QUICK)
SEARCHES = pytest.mark.parametrize("name", [name for name in QUICK if "noise" not in name])


def eps_of(attack, part=1.0):
    return part * (0.06 if attack.norm == "linf" else 0.4)


def run(attack, victim, x, y, eps=None, seeds=None):
    threat = ThreatModel(attack.norm, eps_of(attack) if eps is None else eps)
    found = attack.perturb(victim, x, y, threat, Random(seeds or range(len(x))))
    threat.verify(attack.name, found, x, victim.event_ndim)
    return found


def batch(tasks=3, n=6, seed=0, shape=(1, 8, 8)):
    victim, x = conv(shape, WAY), images(shape, tasks * n, seed).view(tasks, n, *shape)
    return victim, x, victim(x).argmax(-1)


def linear(weight):
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    module.load_state_dict({"weight": weight})
    return ModuleVictim(module, (weight.shape[1],), weight.shape[0])


def assert_as_bad(victim, these, those, y):
    """The same loss; of pixels that do not count, rounding may decide."""
    torch.testing.assert_close(victim.loss(these, y), victim.loss(those, y), rtol=0, atol=1e-4)


# ---- closed forms


@pytest.mark.parametrize("attack", [APGD(), APGDL2(), Auto(), AutoL2()], ids=lambda attack: attack.name)
def test_on_a_linear_model_the_worst_point_is_found(attack):
    """Two classes: the loss grows along one direction, whose corner (or, in L2, end) of the ball is the worst point."""
    weight = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    victim, eps = linear(weight), 0.02 if attack.norm == "linf" else 0.05
    x = 0.3 + 0.4 * torch.rand(2, 5, 50, generator=torch.Generator().manual_seed(1))
    y = victim(x).argmax(-1)
    downhill = (weight[1] - weight[0]) * (1 - 2 * y)[..., None]
    step = downhill.sign() if attack.norm == "linf" else downhill / downhill.norm(dim=-1, keepdim=True)
    expected = x + eps * step
    assert not victim.fooled(expected, y).all(), "where it fools, what is found need not be the worst"
    assert victim.fooled(expected, y).any()
    found = run(attack, victim, x, y, eps)
    assert torch.equal(victim.fooled(found, y), victim.fooled(expected, y))
    if attack.name.startswith("apgd"):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if attack.norm == "linf" else 0.005 * eps)


@pytest.mark.parametrize("attack", [FAB(steps=20), FABL2(steps=20)], ids=lambda attack: attack.name)
@pytest.mark.parametrize("way", [2, 5])
def test_on_a_linear_model_fab_finds_the_smallest_perturbation(attack, way):
    """The distance to a hyperplane is the difference of the logits over the dual norm of that of the weights."""
    weight = torch.randn(way, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight -= weight.mean(-1, keepdim=True)  # so that planes pass near, and the pixel range is far
    x = 0.3 + 0.4 * torch.rand(2, 5, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    victim, threat = linear(weight), ThreatModel(attack.norm, 1.0)
    logits = victim(x)
    y = logits.argmax(-1)
    apart = weight[y][..., None, :] - weight
    dual = apart.norm(p=1 if attack.norm == "linf" else 2, dim=-1)
    expected = ((logits.max(-1, keepdim=True).values - logits) / dual).nan_to_num(torch.inf).amin(-1)
    closest = [attack.closest(victim, x, y, threat, x, target) for target in range(way - 1)]
    near = torch.stack([distance for _, distance in closest]).amin(0)
    assert (near >= expected * (1 - 1e-9)).all()
    torch.testing.assert_close(near, expected, rtol=0.01, atol=0)
    for part in (0.9, 1.1):
        eps = float(expected.median()) * part
        assert torch.equal(victim.fooled(run(attack, victim, x, y, eps), y), expected * 1.01 <= eps), part


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), value=st.floats(-3, 3))
def test_the_way_onto_a_plane_is_the_shortest_within_the_range(norm, seed, value):
    """Against scipy: the same optimum as a linear programme, or as bounded least distance by its dual variable."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(1, 6, dtype=torch.float64, generator=generator)
    z = torch.where(torch.rand(1, 6, generator=generator) < 0.3, z.round(), z)
    slope = torch.randn(1, 6, dtype=torch.float64, generator=generator)
    slope[0, seed % 6] = 0
    delta = to_plane(z, slope, torch.tensor([value], dtype=torch.float64), ThreatModel(norm, 1.0), 1)[0].numpy()
    w, low, high = slope[0].numpy(), -z[0].numpy(), 1 - z[0].numpy()
    assert (delta >= low - 1e-12).all()
    assert (delta <= high + 1e-12).all()
    most = np.where(w * value > 0, low, high) @ w
    if abs(most) < abs(value):
        assert delta @ w == pytest.approx(most)
        return
    assert delta @ w == pytest.approx(-value, abs=1e-9)
    if norm == "linf":  # minimise t with −t ≤ δ ≤ t
        eye, ones = np.eye(6), np.ones((6, 1))
        best = scipy.optimize.linprog(
            [0] * 6 + [1], A_ub=np.block([[eye, -ones], [-eye, -ones]]), b_ub=np.zeros(12),
            A_eq=[[*w, 0]], b_eq=[-value], bounds=[*zip(low, high, strict=True), (0, None)],
        ).fun  # fmt: skip
        assert abs(delta).max() == pytest.approx(best, abs=1e-7)
    else:

        def off(dual):
            return np.clip(-dual * w, low, high) @ w + value

        dual = scipy.optimize.brentq(off, -1e6, 1e6, xtol=1e-14)
        assert np.linalg.norm(delta) == pytest.approx(np.linalg.norm(np.clip(-dual * w, low, high)), abs=1e-6)


@pytest.mark.parametrize(("attack", "norm"), [(FAB(steps=30), "Linf"), (FABL2(steps=30), "L2")])
def test_fab_comes_as_close_as_that_of_torchattacks(attack, norm):
    victim, x, y = batch(tasks=1, n=24)
    eps = eps_of(attack)
    theirs = torchattacks.FAB(victim.module, norm=norm, eps=10 * eps, steps=30, n_classes=WAY, multi_targeted=True)(
        x[0], y[0]
    )
    there = ThreatModel(attack.norm, 1.0).distance(theirs, x[0], 3)
    there = torch.where(victim.fooled(theirs, y[0]), there, torch.inf)
    ours = torch.stack([attack.closest(victim, x, y, ThreatModel(attack.norm, 1.0), x, at)[1] for at in range(WAY - 1)])
    ours = ours.amin(0)[0].double()
    assert there.isfinite().float().mean() > 0.9
    assert float((ours / there).median()) < 1.02
    assert float((ours <= 1.1 * there).float().mean()) > 0.9


def test_the_worst_point_in_a_corner_of_the_pixel_range_is_found():
    """Where the ball is cut off by the range, the worst point is the corner of what is left."""
    weight = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.rand(1, 6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).round()
    y = linear(weight)(x).argmax(-1)
    downhill = (weight[1] - weight[0]) * (1 - 2 * y)[..., None]
    torch.testing.assert_close(run(APGD(), linear(weight), x, y, 0.1), (x + 0.1 * downhill.sign()).clamp(0, 1))


class Hills(Victim):
    """A landscape without a prediction: nothing is ever fooled, and the loss is what it is."""

    way, event_ndim, transductive = 2, 1, False

    def __init__(self, features, kinds):
        generator = torch.Generator().manual_seed(0)
        self.waves = 12 * torch.randn(kinds, features, dtype=torch.float64, generator=generator)

    def loss(self, x, y):
        return torch.sin(x @ self.waves.T).sum(-1) + 0.3 * (x * self.waves[0]).sum(-1)

    def fooled(self, x, y):
        return torch.zeros_like(y, dtype=torch.bool)


def algorithm_1(victim, x, start, eps, norm, steps):
    """Auto-PGD on one example, as the paper prints it (alpha 0.75, rho 0.75); the point of the highest loss."""

    def f(point):
        leaf = point.clone().requires_grad_()
        value = victim.loss(leaf, None)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient.sign() if norm == "linf" else gradient / gradient.norm()

    def into_ball(point):
        delta = point - x
        delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1, eps / max(float(delta.norm()), 1e-300))
        return (x + delta).clamp(0, 1)

    parts = [0.0, 0.22]
    while parts[-1] <= 1:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
    whens = [math.ceil(round(part * steps, 6)) for part in parts]
    size, halvings = 2 * eps / (1 - 1e-6 if norm == "l2" else 1), 0
    previous = now = start
    value, way = f(now)
    top = (value, now, way)
    rises, checked, top_then, halved = 0, 0, value, False
    for k in range(1, steps + 1):
        z = into_ball(now + size * way)
        new = z if k == 1 else into_ball(now + 0.75 * (z - now) + 0.25 * (now - previous))
        previous, before = now, value
        now = new
        value, way = f(now)
        rises += value > before
        if value > top[0]:
            top = (value, now, way)
        if k in whens:
            first = rises < 0.75 * (k - checked)
            second = not halved and top[0] == top_then
            halved = first or second
            if halved:
                size, halvings = size / 2, halvings + 1
                value, now, way = top
            rises, checked, top_then = 0, k, top[0]
    return top[1], halvings


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [5, 60])
def test_every_example_follows_algorithm_1_as_if_it_were_alone(norm, steps):
    victim, attack = Hills(6, 4), (APGD if norm == "linf" else APGDL2)(steps=steps)
    x = torch.rand(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    eps = 0.3
    start = (x + 0.05 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    y = torch.zeros(2, 4, dtype=torch.int64)
    found = attack.perturb_from(victim, x, y, ThreatModel(norm, eps), Random([0, 1]), start)
    halvings = []
    for task in range(2):
        for i in range(4):
            radius = eps * (1 - 1e-6) if norm == "l2" else eps  # what ours leaves for rounding
            expected, count = algorithm_1(victim, x[task, i], start[task, i], radius, norm, steps)
            halvings.append(count)
            value, best = victim.loss(found[task, i], None), victim.loss(expected, None)
            torch.testing.assert_close(value, best, rtol=0, atol=1e-5)
            torch.testing.assert_close(found[task, i], expected, rtol=0, atol=1e-5)
    assert len(set(halvings)) > 1, "each example has its own steps"


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
@pytest.mark.parametrize("kind", [APGD, APGDL2])
def test_until_fooled_auto_pgd_fools_the_same_examples_and_takes_the_others_as_far(kind, loss):
    victim, x, y = batch(tasks=4, n=9, seed=3)
    victim.module.double()
    x = x.double()
    attack = kind(steps=22, loss=loss)
    counts = [QueryCount(), QueryCount()]
    plain, early = (
        run(one, CountingModel(victim, count), x, y, eps_of(attack, 0.7))
        for one, count in zip((attack, attack.for_success()), counts, strict=True)
    )
    fooled = victim.fooled(plain, y)
    assert 0 < fooled.sum() < y.numel()
    assert torch.equal(victim.fooled(early, y), fooled)
    torch.testing.assert_close(early[~fooled], plain[~fooled], rtol=0, atol=1e-9)
    assert counts[1].forward < counts[0].forward
    if loss != "dlr-targeted":
        assert counts[0].forward == counts[0].gradients + 3 * y.numel(), "a step is one pass"


def test_the_checkpoints_are_the_papers():
    """AutoAttack's code: 22 steps, then 3 fewer each time, 6 at least."""
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), way=st.integers(4, 20), gain=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_dlr_is_torchattacks_and_knows_neither_shift_nor_scale(seed, way, gain, shift):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, way, dtype=torch.float64, generator=generator)
    y, target = (torch.randint(way, (8,), generator=generator) for _ in range(2))
    moved = gain * logits + shift
    plain, aimed = dlr(logits, y), targeted_dlr(logits, y, target)
    torch.testing.assert_close(plain, torchattacks.APGD.dlr_loss(None, logits, y))
    torch.testing.assert_close(aimed, torchattacks.APGDT.dlr_loss_targeted(None, logits, y, target))
    torch.testing.assert_close(dlr(moved, y), plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(targeted_dlr(moved, y, target), aimed, rtol=1e-6, atol=1e-6)
    assert torch.equal(plain > 0, logits.argmax(-1) != y)


@pytest.mark.parametrize("queries", [300, 5000])
def test_the_squares_shrink_by_torchattacks_schedule(queries):
    theirs = torchattacks.Square(nn.Identity(), n_queries=queries)
    assert [Square(queries=queries)._part(i) for i in range(queries)] == [theirs.p_selection(i) for i in range(queries)]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 25])
def test_the_bump_of_the_l2_squares_is_torchattacks(side):
    theirs = torchattacks.Square(nn.Identity())
    theirs.device = torch.device("cpu")
    expected = theirs.eta(side).double()
    ours = _bump(side)
    upright = torch.allclose(ours, expected, atol=1e-6)
    assert upright or torch.allclose(ours.T, expected, atol=1e-6)


def test_noise_is_a_corner_or_has_length_eps():
    x = 0.4 + 0.2 * torch.rand(2, 5, 3, 6, 7)
    y = torch.zeros(2, 5, dtype=torch.int64)
    unasked = type("Unasked", (), {"event_ndim": 3})()
    corner = run(Noise(), unasked, x, y, 0.1)
    torch.testing.assert_close((corner - x).abs(), torch.full_like(x, 0.1))
    assert 0.4 < ((corner > x).float().mean()) < 0.6
    far = run(NoiseL2(), unasked, x, y, 0.5)
    torch.testing.assert_close((far - x).flatten(2).norm(dim=-1), torch.full((2, 5), 0.5))
    assert not torch.equal(corner, run(Noise(), unasked, x, y, 0.1, seeds=[8, 9]))


# ---- laws


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(QUICK)), eps=st.floats(0, 1), shape=st.sampled_from([(1, 8, 8), (3, 5, 9), (1, 12, 4)]),
    black_and_white=st.booleans(), seed=st.integers(0, 1000), gain=st.sampled_from([0.0, 3.0, 3000.0]),
)  # fmt: skip
def test_they_stay_within_eps_and_the_pixel_range(name, eps, shape, black_and_white, seed, gain):
    attack, victim = QUICK[name], conv(shape, WAY, gain)
    x = images(shape, 4, seed, black_and_white=black_and_white).view(2, 2, *shape)
    eps = eps if attack.norm == "linf" else 10 * eps
    found = run(attack, victim, x, victim(x).argmax(-1), eps, seeds=[seed, seed + 1])
    assert eps > 0 or torch.equal(found, x)


@ALL
def test_a_task_is_attacked_alike_alone_and_among_others(name):
    attack, (victim, x, y) = QUICK[name], batch()
    y = y.clone()
    y[0] = (y[0] + 1) % WAY  # a task that is fooled as it is, and one that is half: others must not depend on it
    y[2, :3] = (y[2, :3] + 1) % WAY
    together = run(attack, victim, x, y, seeds=[5, 6, 7])
    assert torch.equal(together, run(attack, victim, x, y, seeds=[5, 6, 7]))
    for task, seed in enumerate((5, 6, 7)):
        alone = run(attack, victim, x[task : task + 1], y[task : task + 1], seeds=[seed])
        assert_as_bad(victim, alone, together[task : task + 1], y[task : task + 1])
    if "noise" not in name:
        assert torch.equal(together[0], x[0]), "what is wrong as it is stays as it is"


@SEARCHES
def test_an_examples_draws_do_not_depend_on_how_long_its_neighbours_withstand(name):
    attack, (victim, x, y) = QUICK[name], batch(tasks=1, n=8)
    other = y.clone()
    other[0, ::2] = (other[0, ::2] + 1) % WAY  # fooled at once, so that only every second example is searched for
    all_of_them, some = run(attack, victim, x, y), run(attack, victim, x, other)
    assert_as_bad(victim, all_of_them[:, 1::2], some[:, 1::2], y[:, 1::2])


@SEARCHES
def test_what_fools_at_the_start_stays_and_nothing_recovers(name):
    attack, (victim, x, y) = QUICK[name], batch()
    smaller = (PGD if attack.norm == "linf" else PGDL2)()
    start = run(smaller, victim, x, y, eps_of(attack, 0.5))
    threat = ThreatModel(attack.norm, eps_of(attack))
    found = attack.perturb_from(victim, x, y, threat, Random(range(3)), start)
    threat.verify(name, found, x, 3)
    fooled = victim.fooled(start, y)
    assert fooled.any()
    assert not fooled.all()
    assert torch.equal(found[fooled], start[fooled])
    assert victim.fooled(found, y).sum() > fooled.sum()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), eps=st.floats(0.001, 0.1), transductive=st.booleans())
def test_auto_is_never_weaker_than_its_parts(seed, eps, transductive):
    victim, x, y = batch(seed=seed)
    victim.transductive = transductive
    auto = {"linf": Auto(steps=3, queries=10), "l2": AutoL2(steps=3, queries=10)}
    for part, times in ((FGSM(), 1), (PGD(), 1), (PGDL2(), 8)):
        worst, fooled = (
            victim.fooled(run(attack, victim, x, y, times * eps, seeds=[1, 2, 3]), y)
            for attack in (auto[part.norm], part)
        )
        if transductive:
            assert (worst.sum(-1) >= fooled.sum(-1)).all()
        else:
            assert (worst | ~fooled).all()


def test_a_stronger_one_of_ours_has_more_steps_or_queries():
    assert APGD(steps=20, loss="dlr").stronger() == APGD(steps=40, restarts=2, loss="dlr")
    assert type(APGDL2().stronger()) is APGDL2
    assert SquareL2(queries=100).stronger() == SquareL2(queries=200)
    assert FABL2(steps=7).stronger() == FABL2(steps=14, restarts=2)
    assert AutoL2(steps=5, queries=10).stronger() == AutoL2(steps=10, queries=20, restarts=2)
    assert Noise().stronger() is FGSM().stronger() is None


def test_auto_pgd_of_one_step_is_a_single_step():
    assert APGD(steps=1).how() == APGDL2(steps=1, loss="dlr").how() == "single-step"
    assert APGD(steps=1, restarts=2).how() == APGD().how() == Auto(steps=1).how() == "iterative"
    assert Square(queries=1).how() == "black-box"


# ---- what they ask of the model


class Asked:
    """A victim that counts how many examples of a task it was shown, time after time."""

    def __init__(self, victim):
        self.victim, self.shown = victim, []
        self.way, self.event_ndim, self.transductive = victim.way, victim.event_ndim, victim.transductive

    def __call__(self, x):
        assert not (torch.is_grad_enabled() and x.requires_grad)
        self.shown.append(x.shape[1])
        return self.victim(x)

    def fooled(self, x, y):
        return self.victim.fooled(x, y)


@pytest.mark.parametrize("attack", [Square(queries=130), SquareL2(queries=130)], ids=lambda attack: attack.name)
def test_square_asks_so_many_queries_of_what_withstands_only_and_no_gradients(attack):
    victim, x, y = batch(tasks=1, n=8)
    asked = Asked(victim)
    found = run(attack, asked, x, y, eps_of(attack, 0.3))
    right = int((~victim.fooled(found, y)).sum())
    assert 0 < right < 8
    assert len(asked.shown) == 130
    assert asked.shown[0] == 8
    assert right <= asked.shown[-1] < 8
    assert asked.shown == sorted(asked.shown, reverse=True)


def test_square_puts_every_pixel_that_it_changes_at_the_edge_of_the_ball():
    victim, x, y = batch(shape=(3, 8, 10))
    found = run(Square(queries=40), victim, x, y, 0.01)
    corners = torch.stack([(x - 0.01).clamp(0, 1), (x + 0.01).clamp(0, 1)])
    assert (found == corners).any(0).all()


class Steps(nn.Module):
    """Its logits come from comparisons: no gradient."""

    def forward(self, x):
        return F.one_hot((x.mean((1, 2, 3)) * WAY * 20).long() % WAY, WAY).float()


def test_a_model_without_gradients_falls_to_square_and_is_named_by_the_others():
    x = images((1, 8, 8), 6)[None]
    victim = ModuleVictim(Steps(), (1, 8, 8), WAY)
    y = victim(x).argmax(-1)
    assert victim.fooled(run(Square(queries=20), victim, x, y, 0.1), y).all()
    with pytest.raises(BenchError, match=r"'apgd' needs the gradient .* such as square"):
        run(APGD(), victim, x, y, 0.1)


class Broken(ModuleVictim):
    """Its gradient is no number."""

    def loss(self, x, y):
        return super().loss(x, y) + torch.sqrt(x.flatten(2).sum(-1) * 0)


def test_a_gradient_that_is_no_number_is_never_taken_for_robustness():
    victim, x, y = batch()
    with pytest.raises(BenchError, match=r"'apgd' met .* not a number"):
        run(APGD(steps=4), Broken(victim.module, (1, 8, 8), WAY), x, y, 0.001)


class Poisoned(Victim):
    """As adaptation looks to a poisoner: no logits, nothing to fool, and one loss a task, shared by its images."""

    way, event_ndim, transductive = WAY, 3, True

    def __init__(self, victim):
        self.victim = victim

    def __call__(self, x):
        raise AssertionError("it asks for logits")

    def loss(self, x, y):
        return (self.victim.loss(x, y).mean(1, keepdim=True) / y.shape[1]).expand(y.shape)

    def fooled(self, x, y):
        return torch.zeros_like(y, dtype=torch.bool)


@pytest.mark.parametrize("attack", [APGD(steps=20), APGD(steps=20, restarts=2), APGDL2(steps=20)])
def test_auto_pgd_poisons_by_the_loss_alone(attack):
    victim, x, y = batch()
    assert attack.loss_only
    assert not APGD(loss="dlr").loss_only
    assert not Square().loss_only
    poisoned = Poisoned(victim)
    found = run(attack, poisoned, x, y)
    noise = run(Noise() if attack.norm == "linf" else NoiseL2(), poisoned, x, y)
    clean, random, worst = (poisoned.loss(images, y)[:, 0] for images in (x, noise, found))
    assert (worst > clean + 5 * (random - clean).abs()).all()


class Crowd(ModuleVictim):
    """Batch statistics: an image's logits depend on those beside it. Never shown a part of a task."""

    transductive = True

    def __call__(self, x):
        assert x.shape[1] == 6
        return super().__call__(x - x.mean((1, 3, 4), keepdim=True) + 0.5)


@SEARCHES
def test_a_transductive_model_is_shown_whole_tasks_and_fares_worse(name):
    victim, x, y = batch()
    crowd, attack = Crowd(victim.module, (1, 8, 8), WAY), QUICK[name]
    y = crowd(x).argmax(-1)
    right = (~crowd.fooled(run(attack, crowd, x, y), y)).float().mean(-1)
    assert (right < 1).all()
    assert right.mean() < 0.7


# ---- against another implementation, on a classifier that has learned something


@pytest.fixture(scope="module")
def trained():
    """A small network, and 200 new images that it gets right, in 2 tasks."""
    generator = torch.Generator().manual_seed(0)
    strokes = F.interpolate(torch.rand(WAY, 1, 4, 4, generator=generator), size=11, mode="bilinear")

    def draw(count):
        y = torch.randint(WAY, (count,), generator=generator)
        noise = torch.randn(count, 1, 11, 11, generator=generator)
        return (strokes[y] + 0.25 * noise).clamp(0, 1), y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(144, WAY),
        )  # fmt: skip
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(80):
        x, y = draw(64)
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    victim = ModuleVictim(module, (1, 11, 11), WAY)
    x, y = draw(300)
    right = ~victim.fooled(x, y)
    return victim, x[right][:200].view(2, 100, 1, 11, 11), y[right][:200].view(2, 100)


PAIRS = [
    (APGD(), "torchattacks-apgd", {"steps": 100}, 0.1),
    (APGD(loss="dlr"), "torchattacks-apgd", {"steps": 100, "loss": "dlr"}, 0.1),
    (APGD(loss="dlr-targeted"), "torchattacks-apgdt", {"steps": 100}, 0.1),
    (APGDL2(), "torchattacks-apgd", {"steps": 100, "norm": "L2"}, 0.8),
    (APGDL2(loss="dlr"), "torchattacks-apgd", {"steps": 100, "norm": "L2", "loss": "dlr"}, 0.8),
    (Square(queries=400), "torchattacks-square", {"n_queries": 400}, 0.12),
    (SquareL2(queries=400), "torchattacks-square", {"n_queries": 400, "norm": "L2"}, 1.2),
    (Auto(steps=30, queries=100), "torchattacks-apgd", {"steps": 100, "loss": "dlr"}, 0.1),
    (AutoL2(steps=30, queries=100), "torchattacks-apgd", {"steps": 100, "norm": "L2", "loss": "dlr"}, 0.8),
]


@pytest.mark.parametrize(
    ("ours", "name", "options", "eps"), PAIRS, ids=[f"{ours.name}-{getattr(ours, 'loss', '')}" for ours, *_ in PAIRS]
)
def test_ours_is_at_least_as_strong_as_torchattacks(trained, ours, name, options, eps):
    """Paired: of the images that only one of them fools, as many or more are ours, but for chance (two deviations)."""
    victim, x, y = trained
    theirs, threat = BRIDGED[name](**options), ThreatModel(ours.norm, eps)
    found = torch.stack(
        [theirs.perturb(victim, *task, threat, Random([i])) for i, task in enumerate(zip(x, y, strict=True))]
    )
    by_us, by_them = victim.fooled(run(ours, victim, x, y, eps), y), victim.fooled(found, y)
    only_us, only_them = int((by_us & ~by_them).sum()), int((by_them & ~by_us).sum())
    assert 0.1 < by_them.float().mean() < 0.9, "neither hopeless nor trivial"
    assert only_them - only_us <= 2 * math.sqrt(only_them + only_us)


# ---- what they refuse


@pytest.mark.parametrize(
    ("attack", "shape", "way", "reason"),
    [
        (APGD(), (50,), 2, None),
        (APGD(loss="dlr"), (1, 8, 8), 2, "at least 3 classes, .* 2-way"),
        (APGD(loss="dlr"), (1, 8, 8), 3, None),
        (APGDL2(loss="dlr-targeted"), (1, 8, 8), 3, "at least 4 classes, .* 3-way"),
        (APGD(loss="dlr-targeted"), (50,), 4, None),
        (Square(), (50,), 5, r"height and width|channels, height, width.* \(50,\)"),
        (SquareL2(), (3, 8, 20), 5, None),
        (Auto(), (50,), 2, None),
        (Noise(), (50,), 2, None),
    ],
)
@pytest.mark.parametrize("transductive", [False, True])
def test_they_refuse_what_they_cannot_do_with_the_reason(attack, shape, way, reason, transductive):
    obstacle = attack.obstacle(Setting(shape, way, 1, 5, "cross_entropy", transductive))
    assert (obstacle is None) == (reason is None)
    if reason:
        assert re.search(reason, str(obstacle))
    assert not attack.sub_batches


def test_auto_does_on_features_and_two_classes_what_can_be_done():
    weight = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    x = torch.rand(1, 20, 50, generator=torch.Generator().manual_seed(1))
    victim = linear(weight)
    y = victim(x).argmax(-1)
    assert torch.equal(
        victim.fooled(run(Auto(), victim, x, y, 0.05), y), victim.fooled(run(FGSM(), victim, x, y, 0.05), y)
    ), "of a linear model's two classes the closed form is the worst case"
