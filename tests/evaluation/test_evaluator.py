"""Evaluation: the same episodes for everybody, whatever the chunk; adaptation shared; violations stopped."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from robustbench_meta.contracts import Attack
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.training import make_engine
from robustbench_meta.errors import BenchError, ViolationError
from robustbench_meta.evaluation import evaluator
from robustbench_meta.evaluation.evaluator import Outcome, chunks_of, evaluate_cells
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.registry.registry import Origin, load_registry
from tests.helpers.grids import CPU, small
from tests.helpers.worlds import make_world, random_tasks


def outcomes(grid, chunk=4, plan=None, monkeypatch=None):
    found = {}
    if monkeypatch is not None:
        monkeypatch.setattr(evaluator, "CPU_CHUNK", chunk)
    for training in grid.trainings:
        engine, weights = make_engine(grid, training, CPU, plan or Plan(chunk=chunk))
        for key, outcome in evaluate_cells(engine, weights, grid.splits.test, grid.of(training), CPU).items():
            cell = next(cell for cell in grid.cells if cell.key == key)
            found[cell.learner, cell.attack, cell.support, cell.query] = outcome
    return found


def test_all_cells_see_the_same_episodes_and_share_what_is_clean(registry):
    found = outcomes(small(registry))
    assert len(found) == 2 * (1 + 7)
    assert all(isinstance(outcome, Outcome) for outcome in found.values())
    assert len({outcome.episodes_digest for outcome in found.values()}) == 1
    for learner in ("maml", "protonet"):
        clean = found[learner, "none", "clean", "clean"]
        assert clean.clean.shape == (10, 15)
        assert np.array_equal(clean.clean, clean.robust)
        for scenario in (("clean", "adv"), ("adv", "clean"), ("adv", "adv")):
            assert np.array_equal(found[learner, "fgsm", *scenario].clean, clean.clean)


@pytest.mark.parametrize("attack", ["fgsm", "pgd:steps=3"])
def test_chunks_change_nothing(registry, attack, monkeypatch):
    """Not even the random starts of an attack: its draws belong to the episode, not to the batch."""
    grid = small(registry, attacks=("none", attack), learners=("maml",))
    one, all_at_once = outcomes(grid, 1, monkeypatch=monkeypatch), outcomes(grid, 10, monkeypatch=monkeypatch)
    for key, outcome in one.items():
        assert outcome.episodes_digest == all_at_once[key].episodes_digest
        assert (outcome.robust == all_at_once[key].robust).mean() > 0.99, key  # ties of float32 rounding


@pytest.mark.parametrize("count", [2, 3, 10, 32, 33, 600])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_are_all_episodes_once_and_those_that_are_checked_are_alone(count, device):
    chunks = chunks_of(count, device)
    assert [place for places in chunks for place in places] == list(range(count))
    checked = {2: 2, 3: 3, 10: 10, 32: 16, 33: 16, 600: 50}[count]  # a twelfth, at least 16
    assert all(places.stop <= checked or places.start >= checked for places in chunks)


def test_more_episodes_begin_with_the_same_ones(registry):
    few = outcomes(small(registry, learners=("maml",), episodes=6))["maml", "fgsm", "clean", "adv"]
    many = outcomes(small(registry, learners=("maml",), episodes=10))["maml", "fgsm", "clean", "adv"]
    assert np.array_equal(many.robust[:6], few.robust)


def test_scenarios_are_what_they_say(registry):
    """By hand, with plain calls: which set is attacked, through which weights, and what is adapted on."""
    grid = small(registry, learners=("maml",))
    training = grid.trainings[0]
    engine, weights = make_engine(grid, training, CPU, Plan("loop", "loop", 10))
    spec = training.spec
    from robustbench_meta.runtime.seeds import seed_from

    tasks = grid.splits.test.sample(
        [seed_from("episodes", "test", i) for i in range(10)], spec.way, spec.shot, spec.query
    )
    found, module = outcomes(grid), engine.network.module

    def logits(weights, x):
        return torch.func.functional_call(module, weights, (x,))

    def fgsm(weights, x, y):
        x = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(logits(weights, x), y, reduction="sum").backward()
        return (x + 0.1 * x.grad.sign()).clamp(0, 1).detach()

    def adapt(x, y):
        theta = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        torch.nn.functional.cross_entropy(logits(theta, x), y).backward()
        return {name: (weight - 0.4 * weight.grad).detach() for name, weight in theta.items()}

    theta = {name: weight.detach() for name, weight in weights.items()}
    for support, query in [("clean", "adv"), ("adv", "clean"), ("adv", "adv")]:
        for i in range(10):
            xs, ys, xq, yq = tasks.support.x[i], tasks.support.y[i], tasks.query.x[i], tasks.query.y[i]
            adapted = adapt(fgsm(theta, xs, ys) if support == "adv" else xs, ys)
            xq = fgsm(adapted, xq, yq) if query == "adv" else xq
            expected = (logits(adapted, xq).argmax(-1) == yq).numpy()
            assert (found["maml", "fgsm", support, query].robust[i] == expected).mean() > 0.9, (support, query, i)


class _Test(Attack):
    """An attack for a test."""

    name: ClassVar[str] = "planted"


def planted(perturb, **declared):
    return type("Planted", (_Test,), {"perturb": perturb, **declared})()


BAD = {
    "farther than eps by 1 %": (lambda s, m, x, y, t, r: x.mul(0.5).add(0.25) + 1.01 * t.eps, "over by"),
    "outside the range": (lambda s, m, x, y, t, r: x - t.eps, "left the pixel range"),
    "NaN": (lambda s, m, x, y, t, r: x * float("nan"), "NaN or infinite"),
    "another shape": (lambda s, m, x, y, t, r: x[:, :-1], "expected"),
    "another dtype": (lambda s, m, x, y, t, r: x.half(), "float16"),
    "nothing": (lambda s, m, x, y, t, r: None, "is a `return` missing"),
    "an array": (lambda s, m, x, y, t, r: x.numpy(), "ndarray"),
    "labels flipped in place": (lambda s, m, x, y, t, r: (y.add_(1), x)[1], "the labels"),
    "images changed in place": (lambda s, m, x, y, t, r: x.add_(0.01), "its images"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_what_breaks_the_threat_model_is_refused_by_name(registry, case):
    perturb, message = BAD[case]
    engine, weights = make_world(registry, "maml", "mlp")
    tasks = random_tasks()
    if case.startswith("farther"):
        inside = type(tasks.query)(tasks.query.x * 0.5 + 0.25, tasks.query.y)
        attack = planted(lambda s, m, x, y, t, r: x + 1.01 * t.eps)
    else:
        inside = type(tasks.query)(tasks.query.x.clone(), tasks.query.y.clone())
        attack = planted(perturb)
    with pytest.raises((ViolationError, BenchError), match=message) as told:
        engine.perturb(engine.theta(weights), inside, guarded(attack, ThreatModel("linf", 0.05)))
    assert "planted" in str(told.value)


@pytest.mark.parametrize("per_task", [False, True])
def test_what_an_attack_writes_later_into_what_it_returned_changes_nothing(registry, per_task):
    returned = []

    def keep(self, model, x, y, threat, rng):
        for earlier in returned:
            earlier.fill_(0.5)
        returned.append(x.clone())
        return returned[-1]

    engine, weights = make_world(registry, "maml", "mlp")
    first, second = random_tasks().query, random_tasks().query
    attack, before = guarded(planted(keep, per_task=per_task), ThreatModel("linf", 0.05)), first.x.clone()
    found = engine.perturb(engine.theta(weights), first, attack)
    engine.perturb(engine.theta(weights), second, attack)
    assert torch.equal(found.x, before)
    assert torch.equal(first.x, before)


def test_what_a_model_writes_into_itself_is_not_the_attacks_doing(registry):
    engine, weights = make_world(registry, "maml", "mlp")
    module = engine.network.module
    module.calls = 0
    module.register_forward_pre_hook(lambda module, inputs: setattr(module, "calls", module.calls + 1))
    asking = guarded(planted(lambda s, m, x, y, t, r: (m(x), x)[1]), ThreatModel("linf", 0.05))
    engine.perturb(engine.theta(weights), random_tasks().query, asking)
    leaving = planted(lambda s, m, x, y, t, r: (m(x), [setattr(each, "mine", 1) for each in m.modules()], x)[2])
    with pytest.raises(ViolationError, match=r"left something on the model: \w+ #\d+\.mine"):
        engine.perturb(engine.theta(weights), random_tasks().query, guarded(leaving, ThreatModel("linf", 0.05)))
    assert not any(hasattr(each, "mine") for each in module.modules())


def test_an_attack_leaves_no_trace_in_the_random_states(registry):
    import random

    def draw(self, model, x, y, threat, rng):
        np.random.seed(1), random.seed(1)
        torch.rand(3)
        return x

    engine, weights = make_world(registry, "maml", "mlp")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    engine.perturb(
        engine.theta(weights), random_tasks().query, guarded(planted(draw, per_task=True), ThreatModel("linf", 0.05))
    )
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_an_attack_that_draws_without_asking_is_reproducible_all_the_same(registry):
    engine, weights = make_world(registry, "maml", "mlp")
    attack = guarded(
        planted(lambda s, m, x, y, t, r: (x + (torch.rand_like(x) - 0.5) * t.eps).clamp(0, 1), per_task=True),
        ThreatModel("linf", 0.05),
    )
    query = random_tasks().query
    engine.set_task_seeds(range(5))
    first = engine.perturb(engine.theta(weights), query, attack).x
    torch.rand(7)
    engine.set_task_seeds(range(5))
    assert torch.equal(engine.perturb(engine.theta(weights), query, attack).x, first)
    assert not torch.equal(first, query.x)


def test_a_violation_ends_its_cell_only():
    registry = load_registry(local=False)

    class Cheat(_Test):
        """Goes too far."""

        name: ClassVar[str] = "cheat"

        def perturb(self, model, x, y, threat, random):
            return 1 - x

    class Module:
        from robustbench_meta.hookspecs import hookimpl

        @staticmethod
        @hookimpl
        def register_attacks(register):
            register(Cheat)

    registry.add(Module, Origin("local", "test", "test"))
    found = outcomes(small(registry, attacks=("none", "cheat", "fgsm"), learners=("maml",), scenarios=("clean/adv",)))
    assert "linf distance" in str(found["maml", "cheat", "clean", "adv"])
    assert isinstance(found["maml", "fgsm", "clean", "adv"], Outcome)


def test_two_attacks_on_one_batch_draw_differently(registry):
    engine, weights = make_world(registry, "maml", "mlp")
    noise = guarded(
        planted(lambda s, m, x, y, t, r: t.clip(x + t.eps * (r.uniform(x) - 0.5))), ThreatModel("linf", 0.05)
    )
    query = random_tasks().query
    engine.set_task_seeds(range(5))
    first, second = (engine.perturb(engine.theta(weights), query, noise).x for _ in range(2))
    assert not torch.equal(first, second)


def test_an_attack_out_of_memory_ends_its_cell_only():
    registry = load_registry(local=False)

    class Hungry(_Test):
        """Takes too much."""

        name: ClassVar[str] = "hungry"

        def perturb(self, model, x, y, threat, random):
            raise torch.OutOfMemoryError("CUDA out of memory")

    class Module:
        from robustbench_meta.hookspecs import hookimpl

        @staticmethod
        @hookimpl
        def register_attacks(register):
            register(Hungry)

    registry.add(Module, Origin("local", "test", "test"))
    found = outcomes(small(registry, attacks=("fgsm", "hungry"), learners=("maml",), scenarios=("clean/adv",)))
    assert "memory" in str(found["maml", "hungry", "clean", "adv"])
    assert isinstance(found["maml", "fgsm", "clean", "adv"], Outcome)


def _spoil_images(self, model, x, y, threat, rng):
    x.data.copy_(1 - x)
    return x


def _spoil_weights(self, model, x, y, threat, rng):
    for tensor in model.tensors():
        tensor.data.mul_(0)
    return x.clone()


def _spoil_and_fail(self, model, x, y, threat, rng):
    x.numpy()[:] = 0.5
    _spoil_weights(self, model, x, y, threat, rng)
    raise RuntimeError("and away")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_images, "changed its images in place"),
        (_spoil_weights, "changed the model's weights in place"),
        (_spoil_and_fail, "changed the model's weights in place"),
    ],
)
@pytest.mark.parametrize("scenario", ["clean/adv", "adv/adv", "poisoned/clean"])
def test_what_an_attack_spoils_behind_autograds_back_is_noticed_and_costs_no_other_row(
    registry, spoil, message, scenario
):
    from dataclasses import replace

    grid = small(registry, learners=("maml",), attacks=("none", "fgsm", "pgd:steps=2"), scenarios=(scenario,))
    honest = outcomes(grid)
    spoiler = planted(spoil, loss_only=property(lambda self: True))
    first = next(cell for cell in grid.cells if cell.attack == "fgsm")
    grid.cells.remove(first)
    bad = replace(first, key="spoiled", threat=replace(first.threat, attack=spoiler, label="spoiler"))
    grid.cells[:] = [bad, *grid.cells]
    found = outcomes(grid, plan=Plan("loop", "loop", 4))
    told = found.pop(("maml", "spoiler", first.support, first.query))
    assert isinstance(told, BenchError)
    assert message in str(told)
    for key, outcome in found.items():
        assert np.array_equal(outcome.clean, honest[key].clean)
        assert (outcome.robust == honest[key].robust).mean() > 0.97, key  # plans differ in rounding


def test_an_attack_whose_stronger_raises_fails_its_cell_alone(registry):
    from dataclasses import replace

    def stronger(self):
        raise ValueError("oops")

    grid = build_grid(
        RunSpec.read(profile="smoke", learners=("maml",), attacks=("fgsm", "pgd:steps=2")), registry, None
    )
    poor = planted(lambda s, m, x, y, t, r: x.clone(), stronger=stronger)
    first = grid.cells[0]
    grid.cells[0] = replace(first, key="poor", threat=replace(first.threat, attack=poor))
    engine, weights = make_engine(grid, grid.trainings[0], CPU, Plan(chunk=4))
    found = evaluate_cells(engine, weights, grid.splits.test, grid.cells, CPU, probe_plan=grid.probe_plan)
    assert "oops" in str(found["poor"])
    assert isinstance(found[grid.cells[1].key], Outcome)
