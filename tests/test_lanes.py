"""Lanes: threads share out chunks of tasks, and no number depends on how many there are."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_meta.contracts import Attack
from robustbench_meta.engine import Judged, Plan
from robustbench_meta.evaluation import evaluate
from robustbench_meta.harness import arm
from robustbench_meta.lanes import Lanes, in_lane
from robustbench_meta.registry import load_registry
from robustbench_meta.threat import ThreatModel
from robustbench_meta.training import make_engine, meta_train
from tests.test_evaluation import CPU, small
from tests.worlds import flat, make_world, random_tasks


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
    """What a few steps give, bit by bit, and what was judged; draws seeded as in meta-training."""
    tasks, found = random_tasks(tasks=7), []
    for step in range(steps):
        torch.manual_seed(step)
        found += [flat(each) for each, _ in engine.meta_gradients(weights, tasks, list(range(7)))]
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
    own_randomness: ClassVar[bool] = True

    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + threat.eps * (2 * random.uniform(x) - 1))


class Liar(Noise):
    """Promises that it does not draw globally, and does."""

    name: ClassVar[str] = "liar"
    own_randomness: ClassVar[bool] = True


@pytest.mark.parametrize("attack", [Noise(), OwnNoise(), Liar()], ids=lambda attack: attack.name)
def test_an_attacks_draws_do_not_depend_on_the_lanes(registry, attack):
    one, _ = gradients(*world(registry, "adml", 1, attack=attack))
    assert torch.equal(gradients(*world(registry, "adml", 3, attack=attack))[0], one)
    assert not torch.equal(gradients(*world(registry, "adml", 1))[0], one), "the attack did nothing"


def test_dropout_is_drawn_in_the_same_order_whatever_the_lanes(registry):
    one, _ = gradients(*world(registry, "maml", 1, dropout=True))
    engine, weights = world(registry, "maml", 3, dropout=True)
    assert torch.equal(gradients(engine, weights)[0], one)
    assert engine._draws is True
    engine.network.module.eval()
    assert not torch.equal(gradients(engine, weights)[0], one), "dropout did nothing"


def test_dropout_that_begins_late_is_noticed_and_the_step_done_again(registry):
    """A module that draws from the second step on: the first look sees nothing."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3).double()

        def forward(self, x):
            return self.linear(nn.functional.dropout(x.flatten(1), 0.5 * late[0], late[0] > 0))

    def run(threads):
        engine, _ = world(registry, "maml", threads)
        engine.network.module = Late()
        torch.manual_seed(2)
        weights = {name: torch.randn_like(w).requires_grad_() for name, w in engine.network.module.named_parameters()}
        late[0] = 0
        first, _ = gradients(engine, weights, steps=1)
        late[0] = 1
        second, judged = gradients(engine, weights, steps=1)
        return first, second, judged

    late = [0]
    for one, many in zip(run(1), run(3), strict=True):
        assert one == many if isinstance(one, dict) else torch.equal(one, many)


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
    meeting = threading.Barrier(3, timeout=20)

    def work(item):
        meeting.wait()  # passes only if three threads are here at once
        assert in_lane()
        assert not torch.is_grad_enabled()
        return -item

    with torch.no_grad():
        assert list(Lanes(lambda: 3).map(work, range(6), 3)) == [0, -1, -2, -3, -4, -5]
    assert not in_lane()


def test_the_first_failure_in_order_is_told_and_nothing_goes_on_behind():
    started = []

    def work(item):
        started.append(item)
        if item in (1, 2):
            raise ValueError(f"item {item}")
        return item

    results = Lanes(lambda: 2).map(work, range(100), 2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(results)
    seen = len(started)
    assert seen < 100
    threading.Event().wait(0.05)
    assert len(started) == seen


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


def test_an_attack_too_big_for_memory_is_tried_on_fewer_episodes(registry, monkeypatch):
    grid = small(registry, learners=("maml",), attacks=("none", "fgsm"))
    sizes = []

    def run(most):
        cls = load_registry(None).get("attack", "fgsm")
        original = cls.perturb

        def perturb(self, model, x, y, threat, random):
            sizes.append(len(x))
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, model, x, y, threat, random)

        with monkeypatch.context() as patch:
            patch.setattr(cls, "perturb", perturb)
            engine, weights = make_engine(grid, grid.trainings[0], CPU, Plan(chunk=8))
            return evaluate(engine, weights, grid.splits.test, grid.cells, CPU)

    plenty, scarce, none = run(8), run(3), run(0)
    assert max(sizes) == 8
    for cell in grid.cells:
        assert (plenty[cell.key].robust == scarce[cell.key].robust).all()
        if cell.attack == "fgsm":
            assert "does not fit" in str(none[cell.key])
        else:
            assert (none[cell.key].robust == plenty[cell.key].robust).all()
