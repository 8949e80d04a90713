"""Plans: remembered, chosen with a margin; compiled ones are checked and give the plain gradient."""

from __future__ import annotations

import json

import pytest
import torch

import robustbench_meta.engine as engine_module
from robustbench_meta import tuning
from robustbench_meta.engine import Plan
from robustbench_meta.jobs.runner import run
from robustbench_meta.store import Store
from tests.test_evaluation import small
from tests.worlds import flat, make_world, random_tasks

CPU = torch.device("cpu")


@pytest.fixture
def quick_compiler(monkeypatch):
    """torch.compile without code generation: the same graphs, run by torch."""
    monkeypatch.setattr(engine_module, "COMPILER", "aot_eager")
    torch._dynamo.reset()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path)
    return tmp_path / "plans"


@pytest.mark.parametrize(
    ("shared", "own", "learner"), [("vmap", "loop", "adml"), ("loop", "loop", "protonet"), ("vmap", "vmap", "maml")]
)
@pytest.mark.usefixtures("quick_compiler")
def test_compiled_gradients_are_the_plain_ones(registry, learner, shared, own):
    engine, weights = make_world(registry, learner, ("conv4", {"width": "4", "groups": "2"}))
    tasks, found, limit = random_tasks(), {}, torch._dynamo.config.recompile_limit
    for compiled in (False, True):
        engine.plan = Plan(shared, own, 5, compiled)
        for _ in range(2):  # the first step of a compiled plan looks at what the learner hands through
            found[compiled] = flat(engine.meta_gradients(weights, tasks)[0][0])
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=1e-9)
    assert engine.compiled
    assert torch._dynamo.config.recompile_limit == limit, "others may compile in this process, too"


def test_a_compiler_that_fails_or_errs_is_warned_of_and_left_out(caplog):
    def broken(plan):
        if plan.compiled:
            raise RuntimeError("No C++ compiler found\nand more")
        return torch.ones(3)

    assert not tuning.compiles(Plan(), broken)
    assert "does not work here (RuntimeError: No C++ compiler found): going on without" in caplog.text
    assert not tuning.compiles(Plan(), lambda plan: torch.ones(3) * (1.01 if plan.compiled else 1))
    assert "another gradient here (0.01 of its length away)" in caplog.text
    assert not tuning.compiles(Plan(), lambda plan: torch.ones(3) * (torch.nan if plan.compiled else 1))
    assert tuning.compiles(Plan(), lambda plan: torch.ones(3) * (1 + 1e-6 * plan.compiled))


@pytest.mark.parametrize(
    ("steps", "times", "compiled"), [(10, (9.0, 1.0), False), (1000, (9.0, 1.0), True), (1000, (9.0, 8.5), False)]
)
def test_a_run_is_compiled_if_it_is_long_and_wins_by_the_margin(monkeypatch, cache, steps, times, compiled):
    monkeypatch.setattr(tuning, "_time", lambda device, plan, work, best=0: times[plan.compiled])
    args = ({"operation": "x"}, CPU, 8, Plan(), lambda plan: torch.ones(1), steps, tuning.CacheBook())
    assert tuning.compiled_plan(*args).compiled is compiled
    monkeypatch.setattr(tuning, "_time", lambda device, plan, work, best=0: 9.0)
    # whatever it measures now, it remembers
    assert tuning.compiled_plan(*args).compiled is compiled


@pytest.mark.parametrize(
    ("faster", "factor", "expected"),
    [
        (Plan(chunk=4), 0.9, Plan(chunk=8)),
        (Plan(chunk=4), 0.8, Plan(chunk=4)),
        (Plan("loop", "loop"), 0.8, Plan("loop", "loop")),
        (Plan(chunk=16), 0.7, Plan(chunk=8)),  # all at once leaves nothing to share out
        (Plan(chunk=16), 0.5, Plan(chunk=16)),
    ],
)
def test_the_default_stays_unless_another_plan_is_faster_by_the_margin(monkeypatch, cache, faster, factor, expected):
    monkeypatch.setattr(tuning, "_time", lambda device, plan, work, best=0: factor if plan == faster else 1.0)
    assert tuning.measured_plan({}, CPU, 16, lambda plan: None, tuning.CacheBook()) == expected
    (told,) = [json.loads(path.read_text()) for path in cache.glob("*.json")]
    assert Plan(**told["plan"]) == expected
    monkeypatch.setattr(tuning, "_time", None)
    assert tuning.measured_plan({}, CPU, 16, lambda plan: None, tuning.CacheBook()) == expected, "it is remembered"


def test_a_larger_chunk_is_held_against_the_best_mapping_not_against_the_default(monkeypatch, cache):
    times = {
        ("loop", 8): 1.0,
        ("vmap", 8): 0.5,
        ("vmap", 16): 0.4,
    }  # 16: 60 % faster than the default, 20 % than its own
    monkeypatch.setattr(tuning, "_time", lambda device, plan, work, best=0: times.get((plan.own, plan.chunk), 9.0))
    assert tuning.measured_plan({}, CPU, 16, lambda plan: None, tuning.CacheBook()) == Plan("vmap", "vmap", 8)


@pytest.mark.parametrize(("tasks", "chunk"), [(1, 1), (2, 1), (3, 2), (8, 4), (32, 8)])
def test_the_default_leaves_something_for_two_lanes(tasks, chunk):
    assert tuning.default_plan(CPU, tasks).chunk == chunk


@pytest.mark.usefixtures("quick_compiler")
def test_a_run_can_be_compiled_and_its_record_says_so(registry, tmp_path):
    rows = {}
    for compile in ("on", "off"):
        grid = small(registry, learners=("maml",), attacks=("none", "fgsm"), scenarios=("clean/adv",), compile=compile)
        store = Store(tmp_path / compile)
        assert run(grid, registry, store, CPU).finished == 2
        rows[compile] = store.records()
    for compiled, plain in zip(rows["on"], rows["off"], strict=True):
        assert (compiled["plans"]["train"]["compiled"], plain["plans"]["train"]["compiled"]) == (True, False)
        assert compiled["key"] == plain["key"], "it is the same cell"
        assert abs(sum(compiled["accuracies"]) - sum(plain["accuracies"])) < 1
