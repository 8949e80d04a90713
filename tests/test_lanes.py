"""Lanes: forked processes share out chunks of tasks, and no number depends on how many there are."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_meta.contracts import Attack
from robustbench_meta.engine import Plan
from robustbench_meta.errors import BenchError, traceback_of
from robustbench_meta.evaluation import evaluate
from robustbench_meta.harness import arm
from robustbench_meta.lanes import Crew, Lanes, forks
from robustbench_meta.registry import load_registry
from robustbench_meta.sharing import Judged
from robustbench_meta.threat import ThreatModel
from robustbench_meta.training import make_engine, meta_train
from tests.test_evaluation import CPU, small
from tests.worlds import flat, make_world, random_tasks

pytestmark = pytest.mark.skipif(not forks(), reason="processes cannot be forked here")


def world(registry, learner="adml", threads=1, dropout=False, attack=None, **options):
    engine, weights = make_world(registry, learner, ("conv4", {"width": "4", "groups": "2"}), **options)
    if dropout:
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).double()
        engine.network.module = module
        torch.manual_seed(2)
        weights = {name: torch.randn_like(weight).requires_grad_() for name, weight in module.named_parameters()}
    if attack is not None:
        engine.attack = arm(attack, ThreatModel("linf", 0.05))
    engine.plan, engine.lanes = Plan(chunk=2), Lanes(lambda: threads)
    return engine, weights


def gradients(engine, weights, steps=2):
    """What a few steps give, bit by bit, and what was judged."""
    tasks, found = random_tasks(tasks=7), []
    for _ in range(steps):
        found += [flat(each) for each, _ in engine.meta_gradients(weights, tasks, list(range(7)))]
    engine.dismiss()
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
    engine.lanes = Lanes(lambda: next(count))
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


def test_training_and_evaluation_give_the_same_bits(registry):
    grid = small(registry, learners=("adml",), attacks=("none", "fgsm", "pgd:steps=2"), scenarios=("all",))
    training = grid.trainings[0]

    def whole(threads):
        lanes, told = Lanes(lambda: threads), []
        trained = meta_train(grid, training, CPU, Plan(chunk=1), lanes=lanes)
        engine, _ = make_engine(grid, training, CPU, Plan(chunk=3), lanes)
        found = evaluate(engine, trained.weights, grid.splits.test, grid.cells, CPU, told.append)
        assert told == [count * len(grid.cells) for count in (3, 6, 9, 10)]
        return trained, found

    (one, rows), (many, rows_too) = whole(1), whole(3)
    assert one.history == many.history
    assert torch.equal(flat(one.weights), flat(many.weights))
    for key, row in rows.items():
        assert (row.clean == rows_too[key].clean).all()
        assert (row.robust == rows_too[key].robust).all()
        assert row.episodes_digest == rows_too[key].episodes_digest


def test_items_really_run_side_by_side_and_results_keep_their_order():
    meeting = multiprocessing.get_context("fork").Barrier(3)

    def work(item):
        meeting.wait(20)  # passes only if three processes are here at once
        return -item, os.getpid(), torch.is_grad_enabled()

    with torch.no_grad(), Crew(work, 3) as crew:
        found = list(crew.map(range(6)))
    assert [value for value, _, _ in found] == [0, -1, -2, -3, -4, -5]
    assert len({pid for _, pid, _ in found}) == 3
    assert not any(gradients for _, _, gradients in found)


def test_the_first_failure_in_order_is_told_and_nobody_stays_behind():
    def work(item):
        if item in (1, 2):
            raise BenchError(f"item {item}")
        return os.getpid()

    with Crew(work, 2) as crew:
        results = crew.map(range(100))
        pid = next(results)
        with pytest.raises(BenchError, match="item 1"):
            next(results)
        assert not alive(pid)


def test_an_error_that_cannot_travel_is_told_in_words():
    class Odd(Exception):
        pass

    def work(item):
        raise Odd("here")

    with Crew(work, 2) as crew, pytest.raises(BenchError, match="Odd: here"):
        list(crew.map([1, 2]))


@pytest.mark.parametrize("items", [2, 50])
def test_a_process_that_dies_is_an_error_that_says_how(items):
    with (
        Crew(lambda item: os.kill(os.getpid(), signal.SIGKILL), 2) as crew,
        pytest.raises(BenchError, match="ended by SIGKILL"),
    ):
        list(crew.map(range(items)))


def test_what_is_said_in_a_process_is_said_here(capsys, caplog):
    def work(item):
        print("printed", item)  # noqa: T201
        logging.getLogger("robustbench_meta.plugin").warning("logged %s", item)
        warnings.warn(f"warned {item}", stacklevel=1)

    with Crew(work, 2, lanes := Lanes()) as crew:
        list(crew.map([1, 2]))
    assert sorted(capsys.readouterr().out.split("\n")) == ["", "printed 1", "printed 2"]
    for text in ("logged 1", "logged 2", "warned 1", "warned 2"):
        assert text in caplog.text
    assert lanes.peak > 10e6, "the memory of a process with torch in it"


def test_a_crew_of_a_crews_process_has_one_lane():
    with Crew(lambda item: Lanes(lambda: 5).count(), 1) as crew:
        assert list(crew.map([0])) == [1]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failing_attack_keeps_its_reason(registry, monkeypatch, threads):
    grid = small(registry, learners=("maml",), attacks=("none", "fgsm"), scenarios=("clean/adv",))

    def perturb(self, model, x, y, threat, random):
        raise ValueError("this one")

    monkeypatch.setattr(load_registry(None).get("attack", "fgsm"), "perturb", perturb)
    engine, weights = make_engine(grid, grid.trainings[0], CPU, Plan(chunk=3), Lanes(lambda: threads))
    found = evaluate(engine, weights, grid.splits.test, grid.cells, CPU)
    reasons = [str(each) for each in found.values() if isinstance(each, BenchError)]
    line = perturb.__code__.co_firstlineno + 1
    assert reasons == [f"attack 'fgsm' failed: ValueError: this one (line {line} of test_lanes.py)"]
    traces = [traceback_of(each) for each in found.values() if isinstance(each, BenchError)]
    assert f'test_lanes.py", line {line}' in traces[0], "also from another process"


def test_a_crew_notices_what_changed_since_it_was_forked(registry):
    changed = [world(registry, "adml", threads) for threads in (1, 2)]
    for engine, weights in changed:
        for _ in range(2):
            engine.meta_gradients(weights, random_tasks(tasks=7), range(7))
        engine.attack = arm(OwnNoise(), ThreatModel("linf", 0.3))
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


def test_a_crew_ends_with_the_process_that_forked_it():
    code = (
        "import os, time\nfrom robustbench_meta.lanes import Crew\n"
        "crew = Crew(lambda item: os.getpid(), 1)\nprint(*crew.map([1]), flush=True)\ntime.sleep(60)"
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
    meta_train(grid, grid.trainings[0], CPU, Plan(chunk=1), lanes=Lanes(lambda: 2))
    assert not multiprocessing.active_children()


def test_out_of_memory_halves_the_chunk_and_goes_on(registry, caplog):
    engine, weights = world(registry, "maml")
    expected, judged = gradients(engine, weights, steps=1)
    engine.judged, engine.plan = Judged(), Plan(chunk=7)
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
