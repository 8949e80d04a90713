"""On a GPU: the CPU's rows, the same rows again, right gradients, every precision, and no waiting in the loop."""

from __future__ import annotations

import contextlib
import warnings

import pandas as pd
import pytest
import torch

from robustbench_meta.contracts import Random
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.attacked_model import PoisonedAdaptation
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.training import _step, make_engine
from robustbench_meta.evaluation.evaluator import Outcome, evaluate_cells
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.plugins.attacks.apgd import APGD, APGDL2
from robustbench_meta.plugins.attacks.auto import Auto, AutoL2
from robustbench_meta.plugins.attacks.pgd import PGD, PGDL2
from robustbench_meta.plugins.attacks.square import Square, SquareL2
from robustbench_meta.results import leaderboard
from robustbench_meta.results.store import Store, unpack
from robustbench_meta.runtime.devices import peak_memory, reset_peak_memory, wait
from robustbench_meta.runtime.precision import computing_in
from tests.helpers.victims import ModuleVictim, conv, images
from tests.helpers.worlds import flat, make_world, random_tasks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TINY = {"profile": "smoke", "learners": ("maml", "adml"), "attacks": ("none", "fgsm", "pgd:steps=2")}


def new_enough():
    return torch.cuda.get_device_capability(CUDA) >= (8, 0)


def prepared(registry, **given):
    return runner.build_grid(RunSpec.read(**{**TINY, **given}), registry, None)


def run(registry, folder, device=CUDA, **given):
    store = Store(folder)
    summary = runner.run(prepared(registry, **given), registry, store, device)
    assert summary.failed == []
    return store


def untimed(store):
    return leaderboard.build(store).drop(columns=leaderboard.COSTS)


def on_cuda(engine, weights, tasks):
    for network in (engine.network, engine.surrogate_network):
        network.module.to(CUDA)
    engine.surrogate_weights = {name: weight.to(CUDA) for name, weight in engine.surrogate_weights.items()}
    theta = {name: weight.detach().to(CUDA).requires_grad_() for name, weight in weights.items()}
    return engine, theta, TaskBatch(*(Batch(part.x.to(CUDA), part.y.to(CUDA)) for part in tasks))


# -- numbers -----------------------------------------------------------------------------------------


def test_rows_are_close_to_the_cpus(registry, tmp_path):
    """The same episodes; after ten meta-steps, rounding has turned few answers."""
    there = {record["key"]: record for record in run(registry, tmp_path / "cpu", CPU).records()}
    here = {record["key"]: record for record in run(registry, tmp_path / "cuda").records()}
    assert here.keys() == there.keys()
    for key, record in here.items():
        assert record["device"].startswith("cuda (")
        assert record["episodes_digest"] == there[key]["episodes_digest"]
        for name in ("clean", "robust"):
            assert (unpack(record[name]) == unpack(there[key][name])).mean() > 0.9, record["labels"]


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_same_command_gives_the_same_rows(registry, tmp_path, precision):
    if precision != "float32" and not new_enough():
        pytest.skip("needs compute capability 8.0")
    first = run(registry, tmp_path / "first", precision=precision)
    again = run(registry, tmp_path / "again", precision=precision)
    pd.testing.assert_frame_equal(untimed(again), untimed(first), check_exact=True)
    assert set(untimed(first).precision) == {precision}
    assert not torch.backends.cuda.matmul.allow_tf32, "given back"


@pytest.mark.parametrize("norm", ["group", "batch", "layer", "none"])
@pytest.mark.parametrize("learner", ["maml", "adml"])
def test_every_plan_gives_the_plain_loops_gradient_in_float64(registry, learner, norm):
    built = make_world(registry, learner, ("conv4", {"width": "4", "groups": "2", "norm": norm}))
    engine, theta, tasks = on_cuda(*built, random_tasks())
    with computing_in("float32", CUDA):
        engine.plan = Plan("loop", "loop", 1)
        plain = flat(engine.meta_gradients(theta, tasks)[0][0])
        for plan in (Plan("vmap", "vmap", 5), Plan("vmap", "loop", 5), Plan("loop", "vmap", 2)):
            engine.plan = plan
            found = flat(engine.meta_gradients(theta, tasks)[0][0])
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-9, msg=str(plan))


@pytest.mark.parametrize(("precision", "most"), [("tf32", 0.1), ("bf16", 0.5)])
def test_a_lower_precision_is_lower_and_close(registry, precision, most):
    """How far the meta-gradient of a small conv4 lies from float32's, as a share of its length."""
    if not new_enough():
        pytest.skip("needs compute capability 8.0")
    grid = prepared(registry, learners=("maml",), backbone="conv4:width=32", precision=precision)
    gradients = {}
    for name in ("float32", precision):
        engine, weights = make_engine(grid, grid.trainings[0], CUDA, Plan("vmap", "vmap", 8))
        engine.network.precision = name
        tasks = grid.splits.train.to(CUDA).sample([0], 5, 1, 5, 8)
        with computing_in(name, CUDA):
            gradients[name] = flat(engine.meta_gradients(weights, tasks, range(8))[0][0])
    apart = (gradients[precision] - gradients["float32"]).norm() / gradients["float32"].norm()
    assert 0 < apart < most


# -- attacks -----------------------------------------------------------------------------------------


def under_attack(device, dtype=torch.float64):
    """A small network, and 18 images in 3 tasks, of which it gets 2 wrong as they are."""
    shape, way = (3, 8, 8), 5
    victim, x = conv(shape, way), images(shape, 18).view(3, 6, *shape)
    y = victim(x).argmax(-1)
    y[0, :2] = (y[0, :2] + 1) % way
    return ModuleVictim(victim.module.to(device, dtype), shape, way), x.to(device, dtype), y.to(device)


def within(attack):
    return ThreatModel(attack.norm, 0.06 if attack.norm == "linf" else 0.4)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(restarts=2), PGDL2(restarts=2), APGD(steps=12), APGD(steps=6, loss="dlr-targeted"), APGDL2(steps=12),
        Square(queries=120), SquareL2(queries=120), Auto(steps=6, queries=60), AutoL2(steps=6, queries=60),
    ],
    ids=lambda attack: attack.name + getattr(attack, "loss", ""),
)  # fmt: skip
def test_an_attack_finds_what_it_finds_on_the_cpu_in_float64(attack):
    """The draws are the CPU's; images may differ in pixels that do not count, what they are worth may not."""
    judge, clean, labels = under_attack(CPU)
    found = []
    for device in (CPU, CUDA):
        victim, x, y = under_attack(device)
        adversarial = attack.perturb(victim, x, y, within(attack), Random([1, 2, 3]))
        assert (adversarial.device, adversarial.dtype) == (device, torch.float64)
        found.append(adversarial.cpu())
    within(attack).verify(attack.name, found[1], clean, 3)
    there, here = ((judge.fooled(each, labels), judge.loss(each, labels)) for each in found)
    assert here[0].sum() > judge.fooled(clean, labels).sum()
    assert torch.equal(here[0], there[0])
    torch.testing.assert_close(here[1], there[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("plan", [Plan("vmap", "vmap", 5), Plan("loop", "loop", 2)], ids=["vmap", "loop"])
@pytest.mark.parametrize(("learner", "options"), [("maml", {"first_order": "true"}), ("protonet", {})])
@pytest.mark.parametrize("attack", [PGD(), APGDL2(steps=12)], ids=lambda attack: attack.name)
def test_poison_is_as_strong_as_the_cpus_in_float64(registry, attack, learner, options, plan):
    tasks, losses = random_tasks(), []

    def poisoner(device):
        engine, theta = make_world(registry, learner, ("conv4", {"width": "4", "norm": "none"}), plan=plan, **options)
        episodes = tasks
        if device == CUDA:
            engine, theta, episodes = on_cuda(engine, theta, tasks)
        engine.set_mode(training=False)
        engine.set_task_seeds(range(5))
        return engine, PoisonedAdaptation(engine, engine.theta(theta), episodes.query), episodes.support

    _, judge, clean = poisoner(CPU)
    for device in (CPU, CUDA):
        engine, victim, support = poisoner(device)
        with computing_in("float32", device):
            poisoned = engine.attacked(victim, support, guarded(attack, within(attack)), "support")
        assert torch.equal(poisoned.y, support.y)
        with torch.no_grad():
            losses.append(judge.loss(poisoned.x.cpu(), clean.y)[:, 0])
    with torch.no_grad():
        before = judge.loss(clean.x, clean.y)[:, 0]
    assert (losses[1] > before).all()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-8)


def test_rows_of_strong_attacks_and_of_poison_are_the_same_again_and_close_to_the_cpus(registry, tmp_path):
    given = {
        "learners": ("maml",), "attacks": ("apgd:steps=5", "square:queries=60", "auto:steps=3,queries=20"),
        "scenarios": ("clean/adv", "poisoned/clean"),
    }  # fmt: skip
    first, again = (run(registry, tmp_path / name, **given) for name in ("first", "again"))
    pd.testing.assert_frame_equal(untimed(again), untimed(first), check_exact=True)
    here = {record["key"]: record for record in first.records()}
    there = {record["key"]: record for record in run(registry, tmp_path / "cpu", CPU, **given).records()}
    assert len(here) == 4, "square and auto ask for logits: they cannot poison"
    assert here.keys() == there.keys()
    for key, record in here.items():  # poisoning amplifies rounding more than an attack on queries does
        assert (unpack(record["robust"]) == unpack(there[key]["robust"])).mean() > 0.8, record["labels"]


# -- memory ------------------------------------------------------------------------------------------


def test_images_stay_bytes_on_the_device(registry):
    bank = prepared(registry).splits.test.to(CUDA)
    assert (bank.images.dtype, bank.images.device) == (torch.uint8, CUDA)
    reset_peak_memory(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    tasks = bank.sample([0, 1], 5, 1, 5)
    for part in tasks:
        assert part.x.device == part.y.device == CUDA
    assert peak_memory(CUDA) - before < 20 * sum(part.x.nbytes for part in tasks), "the bank itself was widened"


def test_the_peak_is_that_of_the_tensors(registry, tmp_path):
    store = run(registry, tmp_path, learners=("maml",), attacks=("fgsm",))
    [record] = store.records()
    assert all(2**20 < count < 2**33 for count in record["memory"].values())


def test_out_of_memory_halves_the_chunk_and_goes_on(registry):
    grid = prepared(registry, learners=("maml",), attacks=("fgsm",), backbone="conv4:width=64", episodes=256)
    [training], source = grid.trainings, grid.splits.test.to(CUDA)

    def reserved(chunk):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(CUDA)
        engine, weights = make_engine(grid, training, CUDA, Plan("vmap", "vmap", chunk))
        found = evaluate_cells(engine, weights, source, grid.of(training), CUDA)
        return torch.cuda.max_memory_reserved(CUDA), next(iter(found.values()))

    with computing_in("float32", CUDA):
        (little, expected), (much, _) = reserved(8), reserved(256)
        if much < 2 * little:
            pytest.skip("the large chunk takes no more memory than the small one")
        total = torch.cuda.get_device_properties(CUDA).total_memory
        try:
            torch.cuda.set_per_process_memory_fraction((little + much) / 2 / total, CUDA)
            _, found = reserved(256)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    assert isinstance(found, Outcome)
    assert found.episodes_digest == expected.episodes_digest
    assert (found.robust == expected.robust).mean() > 0.95


# -- waiting -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody_waits():
    """Whatever makes the CPU wait for the GPU is an error."""
    wait(CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dataset", ["glyphs", "toy"])
def test_drawing_tasks_does_not_wait(registry, dataset):
    source = prepared(registry, dataset=dataset).splits.train.to(CUDA)
    source.sample([0], 2, 1, 3, 4)
    with nobody_waits():
        source.sample([1], 2, 1, 3, 4)


@pytest.mark.parametrize("learner", ["maml", "protonet", "adml"])
def test_a_meta_step_does_not_wait(registry, learner):
    grid = prepared(registry, learners=(learner,))
    training = grid.trainings[0]
    spec = training.spec
    source = grid.splits.train.to(CUDA)
    with computing_in("float32", CUDA):
        engine, weights = make_engine(grid, training, CUDA, Plan("vmap", "vmap", spec.tasks_per_step))
        optimizer = training.learner.make_optimizer(weights)

        def step(seed):
            tasks = source.sample([seed], spec.way, spec.shot, spec.query, spec.tasks_per_step)
            for gradients, rate in engine.meta_gradients(weights, tasks, range(spec.tasks_per_step)):
                _step(optimizer, weights, gradients, [rate * 1e-3])

        step(0)  # cuDNN and cuBLAS wake up, and Adam makes its state
        with nobody_waits():
            step(1)


def waits(call):
    """How often the CPU waits for the GPU in a call."""
    wait(CUDA)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in told)


def test_a_wait_is_seen():
    numbers = torch.arange(3, device=CUDA)
    assert waits(lambda: numbers + 1) == 0
    assert waits(lambda: numbers.sum().item()) == 1


@pytest.mark.parametrize(
    ("few", "many", "most"),
    [
        (PGD(steps=2, restarts=2), PGD(steps=20, restarts=2), 0), (PGDL2(steps=2), PGDL2(steps=20), 0),
        (APGD(steps=5), APGD(steps=40), 2), (APGD(steps=5, loss="dlr"), APGD(steps=40, loss="dlr"), 2),
        (APGDL2(steps=5), APGDL2(steps=40), 2), (Square(queries=10), Square(queries=50), 2),
        (SquareL2(queries=10), SquareL2(queries=50), 2),
    ],
    ids=lambda given: getattr(given, "name", None),
)  # fmt: skip
def test_no_step_of_an_attack_waits(few, many, most):
    """To find out who withstands, and at the end whether the loss was a number; not for each step or query."""
    victim, x, y = under_attack(CUDA, torch.float32)
    threat = ThreatModel(few.norm, 0.2 * within(few).eps)

    def waited(attack):
        return waits(lambda: attack.perturb(victim, x, y, threat, Random([1, 2, 3])))

    waited(few), waited(many)  # cuDNN and cuBLAS wake up, and the bumps of SquareL2 are made
    assert waited(few) == waited(many) <= most
