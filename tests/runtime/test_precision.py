"""Precision: told in the row, never mixed, right under every way of mapping, and given back afterwards."""

from __future__ import annotations

import pytest
import torch

from robustbench_meta.contracts import Weights
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.preflight import can_be_vmapped, may_be_vmapped
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.results import leaderboard
from robustbench_meta.results.store import Store
from robustbench_meta.results.tables import boards
from robustbench_meta.runtime.precision import check_precision, computing_in, lowered
from tests.helpers.worlds import flat, make_world, random_tasks

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
SMALL = ("conv4", {"width": "16", "groups": "2"})
PLANS = [Plan("loop", "loop", 1), Plan("vmap", "loop", 5), Plan("vmap", "vmap", 5)]


def world(registry, learner, precision, backbone=SMALL, **options):
    """An engine, θ and tasks in float32."""
    shape = (1, 28, 28)
    engine, weights = make_world(registry, learner, backbone, shape=shape, **options)
    for network in (engine.network, engine.surrogate_network):
        network.module.float()
        network.precision = precision
    engine.surrogate_weights = {name: weight.float() for name, weight in engine.surrogate_weights.items()}
    theta: Weights = {name: weight.detach().float().requires_grad_() for name, weight in weights.items()}
    tasks = random_tasks(shape=shape)
    return engine, theta, TaskBatch(*(Batch(part.x.float(), part.y) for part in tasks))


def gradient(engine, theta, tasks, plan=PLANS[0]):
    engine.plan = plan
    return flat(engine.meta_gradients(theta, tasks, range(tasks.tasks))[0][0])


# -- torch's switches --------------------------------------------------------------------------------


def switches():
    told = [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32]
    told.append(torch.get_float32_matmul_precision())
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        for place in (torch.backends.cudnn.conv, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv):
            told.append(place.fp32_precision)
    return told


@pytest.fixture
def medium():
    """A user who likes it fast, and gets everything back at the end."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_switches_are_set_and_given_back(medium):
    before = switches()
    with computing_in("float32", CPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert not {"tf32", "bf16"} & set(map(str, switches()))
    assert switches() == before


def test_switches_are_given_back_after_an_error(medium):
    before = switches()
    with pytest.raises(KeyError), computing_in("bf16", CPU):
        raise KeyError
    assert switches() == before


def test_tf32_opens_what_float32_closes(monkeypatch):
    monkeypatch.setattr("robustbench_meta.runtime.precision.check_precision", lambda *_: None)
    before = switches()
    with computing_in("tf32", CPU):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        with computing_in("float32", CPU):
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    assert switches() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has only the older names"
)
def test_a_user_of_torchs_newer_names_gets_them_back_too():
    before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # torch then refuses to answer by the older names
        with computing_in("float32", CPU):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_a_users_autocast_stays_outside():
    x = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with computing_in("float32", CPU):
            assert (x @ x).dtype == torch.float32


def test_what_a_device_has_not_is_told_with_the_way_out(monkeypatch):
    with pytest.raises(BenchError, match=r"tf32 was given, and the device is cpu.*use --precision float32"):
        check_precision("tf32", CPU)
    check_precision("bf16", CPU)
    check_precision("bf16", torch.device("cuda"))  # of another machine's device nothing is known here
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    for precision in ("tf32", "bf16"):
        with pytest.raises(BenchError, match=rf"{precision} was given, and Tesla T4 has compute capability 7\.5"):
            check_precision(precision, CUDA)
    check_precision("float32", CUDA)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    check_precision("tf32", CUDA)


# -- bf16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", ["maml", "adml", "aq", "protonet"])
def test_the_meta_gradient_of_bf16_points_where_that_of_float32_does(registry, learner):
    """Through the inner step, in every way of mapping: cosine > 0.99, and not by being float32 after all."""
    exact = gradient(*world(registry, learner, "float32"))
    for plan in PLANS:
        found = gradient(*world(registry, learner, "bf16"), plan)
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found, exact, 0) > 0.99, plan
        assert (found - exact).norm() > 1e-3 * exact.norm(), plan


class Probe(torch.nn.Module):
    """Notes the precision of each of its layers."""

    def __init__(self):
        super().__init__()
        self.convolution, self.linear = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 3)
        self.seen = set()

    def forward(self, x):
        maps = self.convolution(x)
        out = self.linear(maps.float().mean((2, 3)))
        self.seen |= {maps.dtype, out.dtype}
        return out


@pytest.mark.parametrize("learner", ["maml", "protonet"])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.shared}-{plan.own}")
def test_layers_are_lowered_in_every_way_of_mapping(registry, learner, plan):
    """torch's own autocast leaves some layers under vmap in float32 on a CPU."""
    for precision, expected in [("bf16", {torch.bfloat16}), ("float32", {torch.float32})]:
        engine, _, tasks = world(registry, learner, precision)
        engine.network.module = probe = Probe()
        weights = {name: weight.detach().requires_grad_() for name, weight in probe.named_parameters()}
        gradient(engine, weights, tasks, plan)
        assert probe.seen == expected


def test_float64_stays_float64():
    """So that the checks before a training are as exact as ever."""
    module, x = torch.nn.Conv2d(1, 2, 3).double(), torch.rand(2, 1, 5, 5, dtype=torch.float64)
    with lowered(CPU):
        assert torch.equal(module(x), module(x).double())
        assert module(x).dtype == torch.float64


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "cw", "square"])
def test_attacks_on_bf16_stay_in_their_threat_model(registry, attack):
    """The harness checks; the images are float32 as ever, and are changed."""
    engine, theta, tasks = world(registry, "maml", "bf16")
    plugin = registry.make(
        "attack", attack, {"queries": "20"} if attack == "square" else {"steps": "3"} if attack != "fgsm" else {}
    )
    state = engine.adapt(engine.theta({name: w.detach() for name, w in theta.items()}), tasks.support)
    threat = ThreatModel(plugin.norm, 0.1 if plugin.norm == "linf" else 1.0)
    attacked = engine.perturb(state, tasks.query, guarded(plugin, threat))
    assert attacked.x.dtype == torch.float32
    assert attack == "cw" or not torch.equal(attacked.x, tasks.query.x)


def test_learners_that_can_be_vmapped_in_float64_can_in_bf16(registry):
    for backbone in (SMALL, ("conv4", {"width": "16", "norm": "batch"}), "mlp"):
        engine, theta, tasks = world(registry, "adml", "bf16", backbone)
        assert can_be_vmapped(engine, theta, tasks)
        engine.network.precision = "float32"
        assert may_be_vmapped(engine, theta, tasks)


def test_what_vmap_cannot_do_in_bf16_is_looped_over(registry):
    class Picky(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(784, 3)

        def forward(self, x):
            out = self.linear(x.flatten(1))
            return out if out.dtype != torch.bfloat16 else out * out.sum().item()

    engine, _, tasks = world(registry, "maml", "bf16")
    engine.network.module = module = Picky()
    weights = {name: weight.detach().requires_grad_() for name, weight in module.named_parameters()}
    assert not can_be_vmapped(engine, weights, tasks)


# -- rows --------------------------------------------------------------------------------------------


def test_rows_of_two_precisions_are_told_apart(registry, tmp_path):
    given = {"profile": "smoke", "dataset": "toy", "learners": ("maml",), "attacks": ("fgsm",), "meta_steps": 3}
    store = Store(tmp_path)
    for precision in ("float32", "bf16"):
        grid = runner.build_grid(RunSpec.read(**given, precision=precision), registry, None)
        before = switches()
        summary = runner.run(grid, registry, store, CPU)
        assert (summary.finished, summary.skipped, summary.failed) == (1, 0, [])
        assert switches() == before
    frame = leaderboard.build(store)
    assert sorted(frame.precision) == ["bf16", "float32"]
    assert frame.training_hash.nunique() == frame.recipe_hash.nunique() == frame.spec_hash.nunique() == 2
    assert [board.setting["precision"] for board in boards(frame)] == frame.precision.tolist()
    assert {record["precision"] for record in store.records()} == {"bf16", "float32"}


def test_a_run_that_the_device_cannot_do_is_refused_before_it_begins(registry, tmp_path):
    grid = runner.build_grid(RunSpec.read(profile="smoke", dataset="toy", precision="tf32"), registry, None)
    with pytest.raises(BenchError, match="tf32"):
        runner.run(grid, registry, Store(tmp_path), CPU)
