"""On a GPU: the CPU's rows, the same rows again, right gradients, every precision, and no waiting in the loop."""

from __future__ import annotations

import contextlib

import pandas as pd
import pytest
import torch

from robustbench_meta import leaderboard, runner
from robustbench_meta.devices import peak_memory, reset_peak_memory, wait
from robustbench_meta.engine import Plan
from robustbench_meta.evaluation import Outcome, evaluate
from robustbench_meta.precision import computing_in
from robustbench_meta.spec import RunSpec
from robustbench_meta.store import Store, unpack
from robustbench_meta.tasks import Batch, TaskBatch
from robustbench_meta.training import _optimizer, _step, make_engine
from tests.worlds import flat, make_world, random_tasks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TINY = {"profile": "smoke", "learners": ("maml", "adml"), "attacks": ("none", "fgsm", "pgd:steps=2")}


def new_enough():
    return torch.cuda.get_device_capability(CUDA) >= (8, 0)


def prepared(registry, **given):
    return runner.prepare(RunSpec.read(**{**TINY, **given}), registry, None)


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
        found = evaluate(engine, weights, source, grid.of(training), CUDA)
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
        optimizer = _optimizer(training, weights)

        def step(seed):
            tasks = source.sample([seed], spec.way, spec.shot, spec.query, spec.tasks_per_step)
            for gradients, rate in engine.meta_gradients(weights, tasks, range(spec.tasks_per_step)):
                _step(optimizer, weights, gradients, [rate * 1e-3])

        step(0)  # cuDNN and cuBLAS wake up, and Adam makes its state
        with nobody_waits():
            step(1)
