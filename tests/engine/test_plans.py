"""Plans: a fixed rule; compiled ones are checked and give the plain gradient."""

from __future__ import annotations

import pytest
import torch

import robustbench_meta.engine.engine as engine_module
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.plans import compiled, plan_for
from robustbench_meta.jobs.runner import run
from robustbench_meta.results.store import Store
from tests.helpers.grids import small
from tests.helpers.worlds import flat, make_world, random_tasks

CPU = torch.device("cpu")


@pytest.fixture
def quick_compiler(monkeypatch):
    """torch.compile without code generation: the same graphs, run by torch."""
    monkeypatch.setattr(engine_module, "COMPILER", "aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize(("shared", "own", "learner"), [("vmap", "loop", "adml"), ("loop", "loop", "protonet")])
@pytest.mark.usefixtures("quick_compiler")
def test_compiled_gradients_are_the_plain_ones(registry, learner, shared, own):
    engine, weights = make_world(registry, learner, ("conv4", {"width": "4", "groups": "2"}))
    tasks, found, limit = random_tasks(), {}, torch._dynamo.config.recompile_limit
    for through in (False, True):
        engine.plan = Plan(shared, own, 5, through)
        for _ in range(2):  # the first step of a compiled plan looks at what the learner hands through
            found[through] = flat(engine.meta_gradients(weights, tasks)[0][0])
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=1e-9)
    assert engine.compiled
    assert torch._dynamo.config.recompile_limit == limit, "others may compile in this process, too"


def test_a_compiler_that_fails_or_errs_is_warned_of_and_left_out(caplog):
    def broken(plan):
        if plan.compiled:
            raise RuntimeError("No C++ compiler found\nand more")
        return torch.ones(3)

    plan = Plan()
    assert compiled(plan, broken) == plan
    assert "does not work here (RuntimeError: No C++ compiler found): training without it" in caplog.text
    assert compiled(plan, lambda plan: torch.ones(3) * (1.01 if plan.compiled else 1)) == plan
    assert "another gradient here (0.01 of its length away)" in caplog.text
    assert compiled(plan, lambda plan: torch.ones(3) * (torch.nan if plan.compiled else 1)) == plan
    assert compiled(plan, lambda plan: torch.ones(3) * (1 + 1e-6 * plan.compiled)).compiled


@pytest.mark.parametrize(("tasks", "chunk"), [(1, 1), (2, 1), (3, 2), (8, 4), (32, 8)])
@pytest.mark.parametrize("vmap", [True, False])
def test_on_a_cpu_two_cores_share_the_tasks_out_and_own_weights_are_looped_over(tasks, chunk, vmap):
    assert plan_for(CPU, tasks, vmap=vmap) == Plan("vmap" if vmap else "loop", "loop", chunk)


def test_a_gpu_maps_all_tasks_at_once_unless_told_otherwise():
    cuda = torch.device("cuda")
    assert plan_for(cuda, 32) == Plan("vmap", "vmap", 32)
    assert plan_for(cuda, 32, chunk=5, few=8) == Plan("vmap", "vmap", 5, few=8)


def test_what_vmap_cannot_map_is_looped_over():
    assert plan_for(CPU, 32, vmap=False, chunk=3) == Plan("loop", "loop", 3)


@pytest.mark.usefixtures("quick_compiler")
def test_a_run_can_be_compiled_and_its_record_says_so(registry, tmp_path):
    rows = {}
    for compile in ("on", "off"):
        grid = small(registry, learners=("maml",), attacks=("none", "fgsm"), scenarios=("clean/adv",), compile=compile)
        store = Store(tmp_path / compile)
        assert run(grid, registry, store, CPU).finished == 2
        rows[compile] = store.records()
    for through, plain in zip(rows["on"], rows["off"], strict=True):
        assert (through["plans"]["train"]["compiled"], plain["plans"]["train"]["compiled"]) == (True, False)
        assert through["key"] == plain["key"], "it is the same cell"
        assert abs(sum(through["accuracies"]) - sum(plain["accuracies"])) < 1
