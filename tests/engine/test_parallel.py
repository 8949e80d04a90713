"""Forked processes share out chunks of tasks, and no number depends on how many there are."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_meta.contracts import Attack
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.parallel import Cores, Pool, forks
from robustbench_meta.engine.training import meta_train
from robustbench_meta.errors import BenchError
from tests.helpers.grids import CPU, small
from tests.helpers.worlds import flat, make_world, random_tasks

pytestmark = pytest.mark.skipif(not forks(), reason="processes cannot be forked here")


def world(registry, learner="adml", threads=1, dropout=False, attack=None, **options):
    engine, weights = make_world(registry, learner, ("conv4", {"width": "4", "groups": "2"}), **options)
    if dropout:
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).double()
        engine.network.module = module
        torch.manual_seed(2)
        weights = {name: torch.randn_like(weight).requires_grad_() for name, weight in module.named_parameters()}
    if attack is not None:
        engine.attack = guarded(attack, ThreatModel("linf", 0.05))
    engine.plan, engine.cores = Plan(chunk=2), Cores(lambda: threads)
    return engine, weights


def gradients(engine, weights, steps=2):
    """What a few steps give, bit by bit, and what was judged."""
    tasks, found = random_tasks(tasks=7), []
    for _ in range(steps):
        found += [flat(each) for each, _ in engine.meta_gradients(weights, tasks, list(range(7)))]
    engine.close_pool()
    return torch.stack(found), engine.judged.means()


@pytest.mark.parametrize("learner", ["maml", "adml", "protonet"])
def test_lanes_change_no_bit_of_a_gradient(registry, learner):
    one, judged = gradients(*world(registry, learner, 1))
    for threads in (2, 3, 9):
        many, judged_too = gradients(*world(registry, learner, threads))
        assert torch.equal(one, many)
        assert judged == judged_too


def test_the_number_of_lanes_may_change_between_two_steps(registry):
    count = iter([1, 3, 2, 1])
    engine, weights = world(registry)
    engine.cores = Cores(lambda: next(count))
    expected, _ = gradients(*world(registry), steps=4)
    assert torch.equal(gradients(engine, weights, steps=4)[0], expected)


class Noise(Attack):
    """Noise from torch's global generator, which the harness seeds."""

    name: ClassVar[str] = "noise"

    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + threat.eps * (2 * torch.rand_like(x) - 1))


class OwnNoise(Noise):
    """Noise from its own generators."""

    name: ClassVar[str] = "own-noise"

    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + threat.eps * (2 * random.uniform(x) - 1))


@pytest.mark.parametrize("attack", [Noise(), OwnNoise()], ids=lambda attack: attack.name)
def test_an_attacks_draws_do_not_depend_on_the_lanes(registry, attack):
    one, _ = gradients(*world(registry, "adml", 1, attack=attack))
    assert torch.equal(gradients(*world(registry, "adml", 3, attack=attack))[0], one)
    assert not torch.equal(gradients(*world(registry, "adml", 1))[0], one), "the attack did nothing"


def test_dropout_is_drawn_alike_whatever_the_lanes_and_what_was_drawn_before(registry):
    one, _ = gradients(*world(registry, "maml", 1, dropout=True))
    engine, weights = world(registry, "maml", 3, dropout=True)
    torch.manual_seed(5)
    assert torch.equal(gradients(engine, weights)[0], one)
    engine.network.module.eval()
    assert not torch.equal(gradients(engine, weights)[0], one), "dropout did nothing"


@pytest.mark.parametrize(
    "learner", ["adml", "maml++:steps=2,multi_step=1", "meta-baseline:base_batch=12", "reptile:test_updates=5"]
)
def test_a_training_gives_the_same_bits(registry, learner):
    """Also where the progress of the training and the kind of its step go to the processes that share it."""
    grid = small(registry, learners=(learner,), attacks=("none",))

    def trained(count):
        return meta_train(grid, grid.trainings[0], CPU, Plan(chunk=1), cores=Cores(lambda: count))

    one, many = trained(1), trained(3)
    assert one.history == many.history
    assert torch.equal(flat(one.weights), flat(many.weights))


@contextlib.contextmanager
def pool(work, count, cores=None):
    with contextlib.closing(Pool(work, count, cores or Cores())) as made:
        yield made


def test_items_really_run_side_by_side_and_results_keep_their_order():
    meeting = multiprocessing.get_context("fork").Barrier(3)

    def work(item):
        meeting.wait(20)  # passes only if three processes are here at once
        return -item, os.getpid(), torch.is_grad_enabled()

    with torch.no_grad(), pool(work, 3) as made:
        found = made.map(range(6))
    assert [value for value, _, _ in found] == [0, -1, -2, -3, -4, -5]
    assert len({pid for _, pid, _ in found}) == 3
    assert not any(gradients for _, _, gradients in found)


def test_the_first_failure_in_order_is_told_and_nobody_stays_behind():
    def work(item):
        if item in (1, 2):
            raise BenchError(f"item {item}")
        return item

    with pool(work, 2) as made, pytest.raises(BenchError, match="item 1"):
        made.map(range(100))
    assert not any(alive(pid) for pid in made._processes)


def test_an_error_that_cannot_travel_is_told_in_words():
    class Odd(Exception):
        pass

    def work(item):
        raise Odd("here")

    with pool(work, 2) as made, pytest.raises(BenchError, match="Odd: here"):
        made.map([1, 2])


@pytest.mark.parametrize("items", [2, 50])
def test_a_process_that_dies_is_an_error_that_says_how(items):
    with (
        pool(lambda item: os.kill(os.getpid(), signal.SIGKILL), 2) as made,
        pytest.raises(BenchError, match="ended by SIGKILL"),
    ):
        made.map(range(items))


def test_the_processes_of_a_pool_may_be_told_where_to_speak_and_their_memory_is_known(tmp_path):
    def elsewhere():
        sys.stdout = (tmp_path / f"said by {os.getpid()}").open("w", buffering=1)

    with pool(lambda item: print("printed", item), 2, cores := Cores(after_fork=elsewhere)) as made:  # noqa: T201
        made.map([1, 2])
        said = "".join(path.read_text() for path in tmp_path.iterdir())
    assert sorted(said.splitlines()) == ["printed 1", "printed 2"]
    assert cores.peak > 10e6, "the memory of a process with torch in it"


def test_a_process_of_a_pool_has_one_core():
    with pool(lambda item: Cores(lambda: 5).count(), 1) as made:
        assert made.map([0]) == [1]


def test_a_pool_notices_what_changed_since_it_was_forked(registry):
    changed = [world(registry, "adml", threads) for threads in (1, 2)]
    for engine, weights in changed:
        for _ in range(2):
            engine.meta_gradients(weights, random_tasks(tasks=7), range(7))
        engine.attack = guarded(OwnNoise(), ThreatModel("linf", 0.3))
    one, many = (gradients(engine, weights, steps=1)[0] for engine, weights in changed)
    assert torch.equal(one, many)


def test_gradients_that_autograd_shares_are_summed_once(registry):
    """x·(a + b): autograd may give one tensor as the gradient of both."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.full((64, 3), value, dtype=torch.float64)) for value in (0.1, 0.2))

        def forward(self, x):
            return x.flatten(1) @ (self.a + self.b)

    engine, _ = world(registry, "maml")
    engine.network.module = Sum()
    weights = {name: w.detach().clone().requires_grad_() for name, w in engine.network.module.named_parameters()}
    for chunk in (7, 2):
        engine.plan = Plan("loop", "loop", chunk)
        ((found, _),) = engine.meta_gradients(weights, random_tasks(tasks=7), range(7))
        torch.testing.assert_close(found["a"], found["b"])
        expected = found["a"] if chunk == 7 else expected
    torch.testing.assert_close(found["a"], expected)


def test_a_pool_ends_with_the_process_that_forked_it():
    code = (
        "import os, time\nfrom robustbench_meta.engine.parallel import Cores, Pool\n"
        "pool = Pool(lambda item: os.getpid(), 1, Cores())\nprint(*pool.map([1]), flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
        process.wait()
        for _ in range(100):
            if not alive(pid):
                break
            time.sleep(0.05)
        assert not alive(pid)


def alive(pid):
    """Running, or at least not yet reaped by anyone but a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_training_leaves_no_process_behind(registry):
    grid = small(registry, learners=("maml",), attacks=("none",))
    meta_train(grid, grid.trainings[0], CPU, Plan(chunk=1), cores=Cores(lambda: 2))
    assert not multiprocessing.active_children()


def test_out_of_memory_halves_the_chunk_and_goes_on(registry, caplog):
    engine, weights = world(registry, "maml")
    expected, judged = gradients(engine, weights, steps=1)
    engine.judged, engine.plan = QueryMetrics(), Plan(chunk=7)
    learner = engine.learner

    class Greedy(type(learner)):
        def objective(self, ops, theta, tasks):
            if tasks.tasks > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().objective(ops, theta, tasks)

    engine.learner = Greedy()
    found, judged_too = gradients(engine, weights, steps=1)
    assert engine.plan.chunk == 1  # 7 → 3 → 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert judged_too == pytest.approx(judged)
    assert "going on with 1 tasks" in caplog.text
