"""The bridge against torchattacks called directly; where it mends, that the original fails and ours does not."""

from __future__ import annotations

import random as python_random
import re

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_meta.contracts import Random, Setting
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.errors import BenchError
from robustbench_meta.plugins.attacks.torchattacks import BRIDGED, our_name
from robustbench_meta.registry.registry import load_registry
from tests.helpers.victims import ModuleVictim, conv, images

SHAPE, WAY = (3, 16, 16), 5
RANDOM = Random([7])
FAR = {"l2": 100.0, "l1": 1e4, "l0": 256.0, "linf": 1.0}


def run(name, victim, x, y, eps=None, **options):
    attack = BRIDGED[name](**options)
    threat = ThreatModel(attack.norm, FAR[attack.norm] if eps is None else float(eps))
    x_adv = attack.perturb(victim, x, y, threat, RANDOM)
    threat.verify(name, x_adv, x, victim.event_ndim)
    return x_adv


def directly(name, victim, x, y, **arguments):
    """torchattacks itself, from the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(RANDOM.seed())
        np.random.seed(RANDOM.seed() % 2**32)
        return getattr(torchattacks, name)(nn.Sequential(victim.module), **arguments)(x, y).detach()


@pytest.fixture
def task():
    victim = conv(SHAPE, WAY)
    x = images(SHAPE, 6)
    return victim, x, victim(x).argmax(-1)


SEED = {"seed": RANDOM.seed()}
CLASSES = {"n_classes": WAY}
AS_IT_IS = [
    # torchattacks' class, its arguments (its own ε and steps unless given), our options, our ε if it takes one
    ("VANILA", {}, {}, 0.1),
    ("FGSM", {}, {}, 8 / 255),
    ("BIM", {}, {}, 8 / 255),
    ("RFGSM", {}, {}, 8 / 255),
    ("PGD", {}, {"steps": 10}, 8 / 255),
    ("PGD", {"eps": 0.1, "alpha": 0.0125, "steps": 20}, {}, 0.1),
    ("PGD", {"eps": 0.1, "alpha": 0.03}, {"alpha": 0.03, "steps": 10}, 0.1),
    ("EOTPGD", {}, {}, 8 / 255),
    ("FFGSM", {}, {}, 8 / 255),
    ("TPGD", {}, {}, 8 / 255),
    ("MIFGSM", {}, {}, 8 / 255),
    ("UPGD", {"random_start": True}, {"random_start": True}, 8 / 255),
    ("APGD", SEED, {}, 8 / 255),
    ("APGD", {"norm": "L2", "eps": 0.5, "loss": "dlr"} | SEED, {"norm": "L2", "loss": "dlr"}, 0.5),
    ("APGDT", SEED | CLASSES, {}, 8 / 255),
    ("DIFGSM", {"decay": 1.0}, {"decay": 1.0}, 8 / 255),
    ("TIFGSM", {}, {}, 8 / 255),
    ("Jitter", {}, {}, 8 / 255),
    ("NIFGSM", {}, {}, 8 / 255),
    ("PGDRS", {}, {}, 8 / 255),
    ("SINIFGSM", {}, {}, 8 / 255),
    ("VMIFGSM", {}, {}, 8 / 255),
    ("VNIFGSM", {}, {}, 8 / 255),
    ("SPSA", {}, {"lr": 0.01}, 0.3),
    ("PIFGSM", {}, {}, 16 / 255),
    ("PIFGSMPP", {}, {}, 16 / 255),
    ("PGDL2", {}, {}, 1.0),
    ("PGDRSL2", {}, {}, 1.0),
    ("SparseFool", {}, {}, None),
    ("OnePixel", {"pixels": 3}, {}, 3.0),
    ("Pixle", {"restarts": 3, "x_dimensions": (2, 4)}, {"restarts": 3, "x_dimensions": "2-4"}, None),
    ("FAB", SEED | CLASSES, {}, 8 / 255),
    (
        "FAB",
        {"norm": "L2", "eps": 1.0, "multi_targeted": True} | SEED | CLASSES,
        {"norm": "L2", "multi_targeted": True},
        1,
    ),
    ("AutoAttack", {"eps": 0.1} | SEED | CLASSES, {"steps": 10}, 0.1),
    ("AutoAttack", {"eps": 0.1, "version": "rand"} | SEED | CLASSES, {"steps": 10, "version": "rand"}, 0.1),
    ("Square", {"n_queries": 40, "eps": 0.2} | SEED, {"n_queries": 40}, 0.2),
    ("Square", {"n_queries": 40, "norm": "L2", "eps": 4.0} | SEED, {"n_queries": 40, "norm": "L2"}, 4.0),
]


@pytest.mark.parametrize(
    ("wraps", "arguments", "options", "eps"),
    AS_IT_IS,
    ids=[f"{case[0]}-{index}" for index, case in enumerate(AS_IT_IS)],
)
def test_the_bridge_is_torchattacks_called_directly(task, wraps, arguments, options, eps):
    victim, x, y = task
    name = our_name(wraps)
    ours = run(name, victim, x, y, eps, **options)
    assert torch.equal(ours, directly(wraps, victim, x, y, **arguments))
    assert wraps == "VANILA" or not torch.equal(ours, x)


def test_multiattack_is_torchattacks_multiattack(task):
    victim, x, y = task
    module = nn.Sequential(victim.module)
    parts = [torchattacks.BIM(module), torchattacks.NIFGSM(module)]
    assert torch.equal(
        run("multiattack", victim, x, y, 8 / 255, attacks="bim+nifgsm"), torchattacks.MultiAttack(parts)(x, y)
    )


def test_jsma_with_a_budget_of_pixels_is_torchattacks_with_that_gamma(task):
    victim, x, y = task
    below = y < WAY - 1  # torchattacks aims at y + 1, modulo 10
    direct = directly("JSMA", victim, x[below], y[below], gamma=7.5 / 768)  # ⌈7.5 / 2⌉ pairs of the 3·16·16 features
    assert torch.equal(run("jsma", victim, x[below], y[below], 9.0), direct)


def test_every_attack_of_torchattacks_is_registered():
    registry = load_registry(local=False)
    ours = {cls.wraps.__name__ for cls in BRIDGED.values()}
    theirs = {
        name for name, value in vars(torchattacks).items()
        if isinstance(value, type) and issubclass(value, torchattacks.attack.Attack)
    }  # fmt: skip
    assert ours == theirs == set(torchattacks.__all__)
    assert set(BRIDGED) <= set(registry.names("attack"))
    for name in ("fgsm", "pgd", "pgdl2", "apgd", "fab", "square"):
        assert registry.get("attack", name) is not BRIDGED[f"torchattacks-{name}"]
    assert all(cls.summary() and cls.source for cls in BRIDGED.values())


@pytest.mark.parametrize(
    "name", ["torchattacks-apgd", "torchattacks-apgdt", "torchattacks-fab", "torchattacks-square", "autoattack"]
)
def test_the_option_norm_drives_the_threat_model(name):
    assert BRIDGED[name]().norm == "linf"
    assert BRIDGED[name](norm="L2").norm == BRIDGED[name](norm="l2").norm == "l2"
    assert BRIDGED[name](norm="L2").default_eps() == 1.0
    with pytest.raises(ValueError, match="Linf"):
        BRIDGED[name](norm="L7")


def test_what_the_run_decides_is_no_option():
    for cls in BRIDGED.values():
        assert not {"model", "eps", "max_epsilon", "seed", "n_classes", "verbose"} & set(cls.model_fields)


# What the bridge mends: torchattacks fails, ours does not.


def flat() -> ModuleVictim:
    """Logits that are what they are, whatever the image: the gradient vanishes."""
    return conv(SHAPE, WAY, gain=0.0)


class Shy(nn.Module):
    """A model whose gradient vanishes for its first calls."""

    def __init__(self, module, calls):
        super().__init__()
        self.module, self.calls, self.saw_nan = module, calls, False

    def forward(self, x):
        self.calls -= 1
        self.saw_nan |= bool(x.isnan().any())
        return self.module(x * (self.calls < 0))


MOMENTUM = ["MIFGSM", "UPGD", "DIFGSM", "TIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM"]


@pytest.mark.parametrize("wraps", MOMENTUM)
def test_a_gradient_that_once_vanished_freezes_the_example_directly_and_not_here(task, wraps):
    victim, x, y = task
    calls = 5 if wraps == "SINIFGSM" else 1  # it averages the gradients of 5 calls
    theirs, ours = (ModuleVictim(Shy(victim.module, calls), SHAPE, WAY) for _ in range(2))
    assert torch.equal(directly(wraps, theirs, x, y), x)
    x_adv = run(wraps.lower(), ours, x, y, 8 / 255)
    assert (victim(x_adv).argmax(-1) != y).any()
    assert theirs.module.saw_nan == (wraps in {"NIFGSM", "SINIFGSM", "VNIFGSM"})  # they look ahead along the momentum
    assert not ours.module.saw_nan


@pytest.mark.parametrize("wraps", [*MOMENTUM, "DeepFool"])
def test_where_no_gradient_ever_is_the_image_stays(wraps):
    victim, x = flat(), images(SHAPE, 2)
    y = victim(x).argmax(-1)
    assert directly("DeepFool", victim, x, y).isnan().all()
    assert torch.equal(run(wraps.lower(), victim, x, y, 0.1), x)


def test_cw_is_inert_on_black_and_white_images_directly_and_not_here():
    victim, x = conv(SHAPE, WAY), images(SHAPE, 20, black_and_white=True)
    y = victim(x).argmax(-1)
    assert torch.equal(directly("CW", victim, x, y, c=10), x)
    x_adv = run("cw", victim, x, y, c=10)
    assert (victim(x_adv).argmax(-1) != y).float().mean() > 0.9
    assert ThreatModel("l2", 0.0).distance(x_adv, x, 3).max() < 2


def test_cw_needs_positive_logits_directly_and_not_here(task):
    victim, x, y = task
    lower = conv(SHAPE, WAY)
    lower.module[3].bias -= 100  # the same predictions
    assert torch.equal(directly("CW", lower, x, y), x)
    fooled = victim(run("cw", victim, x, y)).argmax(-1) != y
    assert fooled.any()
    assert torch.equal(lower(run("cw", lower, x, y)).argmax(-1) != y, fooled)


def test_upgd_margin_needs_positive_logits_directly_and_not_here(task):
    _, x, y = task
    lower = conv(SHAPE, WAY)
    lower.module[3].bias -= 100
    assert torch.equal(directly("UPGD", lower, x, y, loss="margin"), x)
    assert (lower(run("upgd", lower, x, y, 0.1, loss="margin")).argmax(-1) != y).all()


def test_deepfool_stops_on_the_boundary_directly_and_beyond_it_here():
    victim, x = conv(SHAPE, WAY), images(SHAPE, 20, black_and_white=True)
    y = victim(x).argmax(-1)
    direct, ours = directly("DeepFool", victim, x, y), run("deepfool", victim, x, y)
    assert (victim(direct).argmax(-1) != y).float().mean() < 0.9
    assert (victim(ours).argmax(-1) != y).all()
    distance = ThreatModel("l2", 0.0).distance
    assert (distance(ours, x, 3) <= 1.021 * distance(direct, x, 3)).all()


def test_jsma_fails_on_the_last_class_directly_and_not_here(task):
    victim, x, _ = task
    y = torch.full((6,), WAY - 1)
    with pytest.raises(IndexError):
        directly("JSMA", victim, x, y)
    run("jsma", victim, x, y, 4.0)


def test_attacks_that_look_for_the_smallest_perturbation_give_the_clean_image_beyond_eps(task):
    victim, x, y = task
    distance = ThreatModel("l2", 0.0).distance(run("deepfool", victim, x, y), x, 3)
    eps = float(distance.median())
    x_adv = run("deepfool", victim, x, y, eps)
    assert [torch.equal(a, b) for a, b in zip(x_adv, x, strict=True)] == (distance > eps + 1e-6).tolist()


class Stubborn(nn.Module):
    """A model in mixed modes that breaks at its third call."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm2d(3).eval(), nn.Dropout(0.0).train(), nn.Linear(768, WAY)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise ArithmeticError("broken")
        return self.head(self.drop(self.norm(x)).flatten(1))


def states():
    return torch.get_rng_state(), str(np.random.get_state()), python_random.getstate()


@pytest.mark.parametrize("steps", [1, 9], ids=["returns", "raises"])
def test_modules_keep_their_modes_and_generators_their_states(steps):
    module = Stubborn().requires_grad_(False)
    victim, before = ModuleVictim(module, SHAPE, WAY), states()
    modes = [part.training for part in module.modules()]
    try:
        run("torchattacks-pgd", victim, images(SHAPE, 2), torch.zeros(2, dtype=torch.int64), 0.1, steps=steps)
    except ArithmeticError:
        assert steps == 9
    assert [part.training for part in module.modules()] == modes
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(states(), before, strict=True)
    )


DRAWS = "torchattacks-pgd torchattacks-apgd torchattacks-square onepixel pixle autoattack spsa difgsm jitter"


@pytest.mark.parametrize("name", DRAWS.split())
def test_what_is_drawn_depends_on_the_given_randomness_only(task, name):
    victim, x, y = task
    attack = BRIDGED[name](**FAST.get(name, {}))
    threat = ThreatModel(attack.norm, 0.02 if attack.norm == "linf" else 2.0)
    first = attack.perturb(victim, x, y, threat, Random([1]))
    torch.rand(3)
    np.random.rand(3)
    assert torch.equal(first, attack.perturb(victim, x, y, threat, Random([1])))
    if name in {"torchattacks-pgd", "jitter", "spsa", "onepixel"}:
        assert not torch.equal(first, attack.perturb(victim, x, y, threat, Random([2])))


FAST = {
    "torchattacks-square": {"n_queries": 10},
    "autoattack": {"version": "rand", "steps": 2},
    "pixle": {"restarts": 2},
    "eadl1": {"binary_search_steps": 2, "max_iterations": 10},
    "eaden": {"binary_search_steps": 2, "max_iterations": 10},
}
SOME = st.sampled_from(sorted(set(BRIDGED) - {"lgv"}))


@settings(max_examples=60, deadline=None)
@given(name=SOME, eps=st.floats(0, 0.5), black_and_white=st.booleans(), gain=st.sampled_from([0.0, 3.0, 3000.0]))
def test_every_attack_stays_within_its_threat_model(name, eps, black_and_white, gain):
    shape = (3, 8, 8)
    victim, x = conv(shape, WAY, gain), images(shape, 3, black_and_white=black_and_white)
    attack = BRIDGED[name](**FAST.get(name, {}))
    eps = round(eps * 20) if attack.norm == "l0" else eps
    x_adv = run(name, victim, x, victim(x).argmax(-1), eps, **FAST.get(name, {}))
    assert eps > 0 or torch.equal(x_adv, x)


def test_features_that_are_no_images_are_attacked_too():
    victim = ModuleVictim(nn.Linear(50, 2), (50,), 2)
    x = torch.rand(8, 50)
    y = victim(x).argmax(-1)
    expected = (x + 0.1 * (victim.module.weight[1 - y] - victim.module.weight[y]).sign()).clamp(0, 1)
    # a linear model's worst case is a corner
    torch.testing.assert_close(run("torchattacks-pgd", victim, x, y, 0.1), expected)


class Counting(nn.Module):
    def forward(self, x):
        return torch.nn.functional.one_hot((x.mean((1, 2, 3)) * WAY).long(), WAY).float()


def test_a_model_without_gradients_is_refused_where_they_are_needed_only():
    victim, x = ModuleVictim(Counting(), SHAPE, WAY), images(SHAPE, 2)
    y = victim(x).argmax(-1)
    with pytest.raises(BenchError, match=r"'torchattacks-pgd' needs gradients .* such as square"):
        run("torchattacks-pgd", victim, x, y, 0.1)
    run("torchattacks-square", victim, x, y, 0.1, n_queries=5)


def setting(shape=(3, 28, 28), way=5, transductive=False):
    return Setting(shape, way, 1, 5, "cross_entropy", transductive)


@pytest.mark.parametrize(
    ("name", "options", "where", "reason"),
    [
        ("torchattacks-pgd", {}, setting(transductive=True), None),
        ("cw", {}, setting(transductive=True), None),
        ("torchattacks-apgd", {}, setting(transductive=True), "other batches .* transductive"),
        ("spsa", {}, setting(transductive=True), "other batches .* transductive"),
        ("multiattack", {}, setting(transductive=True), "other batches .* transductive"),
        ("pifgsm", {}, setting((1, 28, 28)), "3 channels"),
        ("pifgsmpp", {}, setting((1, 28, 28)), "3 channels"),
        ("tifgsm", {}, setting((1, 28, 28)), "3 channels"),
        ("tifgsm", {}, setting(), None),
        ("difgsm", {}, setting((1, 28, 28)), None),
        ("difgsm", {}, setting((1, 28, 32)), "as high as wide"),
        ("torchattacks-square", {}, setting((50,)), "as high as wide"),
        ("torchattacks-square", {"norm": "L2"}, setting((3, 24, 24)), "norm=L2 fails in torchattacks"),
        ("torchattacks-square", {"norm": "L2"}, setting((3, 32, 32)), None),
        ("torchattacks-pgd", {}, setting((50,)), None),
        ("torchattacks-pgd", {}, setting((2, 3, 4, 5)), "not examples of shape"),
        ("torchattacks-apgdt", {}, setting(way=3), "at least 4 classes .* 3-way"),
        ("autoattack", {}, setting(way=3), "at least 4 classes .* 3-way"),
        ("autoattack", {"version": "rand"}, setting(way=3), None),
        ("torchattacks-apgd", {"loss": "dlr"}, setting(way=2), "at least 3 classes .* 2-way"),
        ("torchattacks-apgd", {}, setting(way=2), None),
        ("upgd", {"loss": "dlr"}, setting(way=2), "at least 3 classes"),
        ("jsma", {}, setting((3, 84, 84)), "too much memory"),
        ("multiattack", {"attacks": "pgd+tifgsm"}, setting((1, 28, 28)), "tifgsm takes images with 3"),
        ("lgv", {}, setting(), "training set"),
    ],
)
def test_an_attack_refuses_what_it_cannot_do_with_the_reason(name, options, where, reason):
    obstacle = BRIDGED[name](**options).obstacle(where)
    assert (obstacle is None) == (reason is None)
    if reason:
        assert re.search(reason, str(obstacle))


@pytest.mark.parametrize(
    ("attacks", "reason"),
    [
        ("pgd", "two or more"),
        ("pgd+pgdl2", "one norm"),
        ("pgd+fab", "cannot take fab"),
        ("pgd+bmi", "did you mean 'bim'"),
    ],
)
def test_multiattack_takes_bounded_attacks_of_one_norm(attacks, reason):
    with pytest.raises(ValueError, match=reason):
        BRIDGED["multiattack"](attacks=attacks)


@pytest.mark.parametrize(
    ("name", "options", "how"),
    [
        ("bim", {"steps": 1}, "single-step"),
        ("bim", {}, "iterative"),
        ("pifgsm", {"num_iter_set": 1}, "single-step"),
        ("torchattacks-apgd", {"steps": 1}, "single-step"),
        ("torchattacks-apgd", {"steps": 1, "n_restarts": 2}, "iterative"),
        ("onepixel", {"steps": 1}, "black-box"),
        ("autoattack", {"steps": 1}, "iterative"),
        ("autoattack", {"steps": 1, "version": "rand"}, "single-step"),
        ("multiattack", {}, "iterative"),
        ("multiattack", {"attacks": "fgsm+ffgsm"}, "single-step"),
        ("multiattack", {"attacks": "gn+fgsm"}, "single-step"),
        ("multiattack", {"attacks": "gn+gn"}, "random"),
        ("multiattack", {"attacks": "square+fgsm"}, "iterative"),
        ("multiattack", {"attacks": "square+spsa"}, "black-box"),
    ],
)
def test_what_the_options_make_of_how_they_search_is_told(name, options, how):
    assert BRIDGED[name](**options).how() == how


def test_a_stronger_one_has_three_times_the_steps_of_their_usual_size():
    assert BRIDGED["bim"](steps=4, alpha=0.1).stronger() == BRIDGED["bim"](steps=12)
    assert BRIDGED["cw"](steps=20, c=2).stronger() == BRIDGED["cw"](steps=60, c=2)
    fab = BRIDGED["torchattacks-fab"]
    assert fab(norm="L2").stronger() == fab(norm="L2", steps=30)


def test_who_has_no_stronger_version_is_known():
    """By hand, from the table of options: no steps to multiply, one step only, answers only, or pixels counted."""
    without = {
        "vanila", "gn", "torchattacks-fgsm", "ffgsm", "spsa", "jsma", "eadl1", "eaden", "pifgsm", "pifgsmpp",
        "sparsefool", "onepixel", "pixle", "torchattacks-square", "multiattack", "lgv",
    }  # fmt: skip
    assert {name for name in BRIDGED if BRIDGED[name]().stronger() is None} == without


def test_how_they_search_is_told():
    """By hand, from torchattacks' source: who draws at random, takes one gradient, or asks for answers only."""
    other = {
        "gn": "random", "torchattacks-fgsm": "single-step", "ffgsm": "single-step", "torchattacks-square": "black-box",
        "onepixel": "black-box", "pixle": "black-box", "spsa": "black-box",
    }  # fmt: skip
    assert {name: cls.method for name, cls in BRIDGED.items()} == {
        name: other.get(name, "iterative") for name in BRIDGED
    }
