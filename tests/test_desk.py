"""The desk: who is given what, what becomes of it, and two desks on one results folder."""

from __future__ import annotations

import json

import pytest

from robustbench_meta.desk import AGAIN_SECONDS, MOST_LOSSES, Desk
from robustbench_meta.executors import schedule
from robustbench_meta.executors.schedule import tasks_of
from robustbench_meta.grid import prepare
from robustbench_meta.hookspecs import hookimpl
from robustbench_meta.spec import CellSpec, RunSpec
from robustbench_meta.store import Store

SPEC = {"profile": "smoke", "dataset": "toy", "meta_steps": 2, "episodes": 4, "attacks": ("none", "fgsm")}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def grid(registry):
    return prepare(RunSpec.read(**SPEC, learners=("maml", "adml")), registry, None)


@pytest.fixture
def opened(grid, registry, tmp_path):
    """Opens desks on one folder, each with a clock of its own."""

    def open_desk(cells=None, **given):
        keys = {cell.key for cell in grid.cells} if cells is None else cells
        store, clock = Store(tmp_path), Clock()
        tasks = tasks_of(grid, keys, store.has_checkpoint)
        return Desk(grid, registry, store, tasks, clock=clock, **given), clock

    return open_desk


@pytest.fixture
def trained(monkeypatch):
    """Checkpoints are there as soon as somebody says so."""
    there = set()
    monkeypatch.setattr(Store, "has_checkpoint", lambda _, key: key in there)
    return there


def finish_training(desk, worker, task, there):
    there.add(task.training)
    desk.hear(worker, "trained", key=task.training)
    desk.over(worker)


def attack_of(grid, key):
    return next(cell.attack for cell in grid.cells if cell.key == key)


def failures(tmp_path):
    return {path.stem: json.loads(path.read_text())["reason"] for path in (tmp_path / "failures").iterdir()}


def test_the_costliest_first_then_what_the_worker_has_trained(opened, trained):
    desk, _ = opened()
    first, second = desk.next("a"), desk.next("b")
    assert (first.title, first.cells) == ("adml (seed 0)", ())
    assert (second.title, second.cells) == ("maml (seed 0)", ())
    assert desk.next("c") is None, "evaluations wait for their checkpoints"
    assert desk.open
    finish_training(desk, "b", second, trained)
    finish_training(desk, "a", first, trained)
    assert desk.next("b").title == "maml (seed 0)"
    assert desk.next("a").title == "adml (seed 0)"
    assert desk.next("c") is None


def test_a_training_that_fails_costs_its_own_cells(opened, trained, tmp_path):
    desk, _ = opened()
    adml, maml = desk.next("a"), desk.next("b")
    desk.hear("a", "training_failed", key=adml.training, reason="it diverged")
    desk.over("a")
    assert [(cell.learner, reason) for cell, reason in desk.summary.failed] == [("adml", "it diverged")] * 2
    assert set(failures(tmp_path).values()) == {"it diverged"}
    finish_training(desk, "b", maml, trained)
    assert len(desk.next("b").cells) == 2
    assert desk.next("a") is None


def test_the_one_cell_under_way_is_to_blame(opened, grid, trained, tmp_path):
    desk, _ = opened()
    train = desk.next("a")
    finish_training(desk, "a", train, trained)
    task = desk.next("a")
    desk.hear("a", "at", cells={task.cells[1]: 3.0})
    desk.died("a", "was ended by SIGKILL")
    assert failures(tmp_path) == {task.cells[1]: "was ended by SIGKILL"}
    again = desk.next("b")
    while again.training != task.training:
        again = desk.next(again)
    assert again.cells == task.cells[:1], "somebody does the rest"


def test_when_several_may_be_to_blame_each_is_tried_alone(opened, trained, tmp_path):
    desk, _ = opened()
    finish_training(desk, "a", desk.next("a"), trained)
    task = desk.next("a")
    desk.died("a", "was ended by SIGSEGV")
    assert failures(tmp_path) == {}
    alone = [desk.next(f"w{index}") for index in range(3)]
    singles = [each for each in alone if each.cells]
    assert sorted(key for each in singles for key in each.cells) == sorted(task.cells)
    assert all(len(each.cells) == 1 for each in singles)
    worker = f"w{alone.index(singles[0])}"
    desk.died(worker, "was ended by SIGSEGV")
    assert failures(tmp_path) == {singles[0].cells[0]: "was ended by SIGSEGV"}


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_lost_machine_costs_nothing_until_it_is_lost_too_often(opened, trained, tmp_path, caplog, evaluates):
    desk, _ = opened()
    if evaluates:
        finish_training(desk, 0, desk.next(0), trained)
    task = desk.next(0)
    for _ in range(MOST_LOSSES):
        desk.died(0, "node 7 is gone", guilty=False)
        assert failures(tmp_path) == {}
        assert desk.next(0) == task
    assert caplog.text.count("node 7 is gone; beginning again with what was kept") == MOST_LOSSES
    desk.died(0, "node 7 is gone", guilty=False)
    assert set(failures(tmp_path).values()) == {"node 7 is gone, for the 6th time without getting any further"}
    assert len(failures(tmp_path)) == 2


def test_a_task_that_gets_further_may_be_lost_any_number_of_times(opened, tmp_path):
    """As a long training on machines that are taken away again and again."""
    desk, _ = opened()
    for step in range(0, 40 * MOST_LOSSES, 10):
        task = desk.next(0)
        for reached in (step, step + 10):
            desk.hear(0, "training_progress", training=task.title, step=reached, steps=1000, metrics={})
        desk.died(0, "it was taken away", guilty=False)
    assert failures(tmp_path) == {}


def test_one_machine_with_many_tasks_is_one_loss_of_each(grid, registry, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(schedule, "WORTH_STARTING", 1)
    trained.update(training.key for training in grid.trainings)
    tasks = tasks_of(grid, {cell.key for cell in grid.cells}, trained.__contains__, bundles=2)
    desk = Desk(grid, registry, Store(tmp_path), tasks)
    for _ in range(MOST_LOSSES):
        for worker in range(len(tasks)):
            assert desk.next(worker) is not None
        for worker in range(len(tasks)):
            desk.died(worker, "the machine is gone", guilty=False)
    assert failures(tmp_path) == {}


def test_a_worker_that_dies_when_all_was_told_costs_nothing(opened, trained, tmp_path):
    desk, _ = opened()
    finish_training(desk, "a", desk.next("a"), trained)
    task = desk.next("a")
    for key in task.cells:
        desk.hear("a", "cell_failed", key=key, reason="of its own")
    desk.died("a", "was ended by SIGKILL")
    assert set(failures(tmp_path).values()) == {"of its own"}
    assert all(task.training != each.training for each in desk.waiting)


def test_listeners_are_told_which_cell_failed_as_the_leaderboard_would(opened, trained, grid, registry):
    heard = []

    class Listener:
        @hookimpl
        def cell_failed(self, cell, labels, training, reason):
            heard.append((cell, labels, training, reason))

    desk, _ = opened()
    finish_training(desk, "a", desk.next("a"), trained)
    task = desk.next("a")
    registry.listen(Listener(), "heard")
    try:
        desk.hear("a", "cell_failed", key=task.cells[-1], reason="no luck")
    finally:
        registry.manager.unregister(name="heard")
    [(cell, labels, training, reason)] = heard
    (failed,) = [each for each in grid.cells if each.key == task.cells[-1]]
    assert CellSpec.model_validate(cell).digest() == labels["spec_hash"] == failed.key
    assert json.loads(json.dumps(labels)) == labels, "it is plain data"
    named = {"learner": training.removesuffix(" (seed 0)"), "attack": failed.attack, "eps": failed.eps, "seed": 0}
    assert {name: labels[name] for name in named} == named
    assert (labels["support"], labels["query"]) == (cell["support"], cell["query"])
    assert reason == "no luck"


def test_a_cell_that_takes_too_long_is_told_and_fails_alone(opened, trained, tmp_path):
    desk, clock = opened(cell_timeout=60.0)
    finish_training(desk, "a", desk.next("a"), trained)
    task = desk.next("a")
    slow, other = task.cells
    desk.hear("a", "at", cells={slow: 50.0})
    clock.now += 9
    assert desk.overdue("a") is None
    clock.now += 2
    assert desk.overdue("a") == "it took longer than --cell-timeout 60 s"
    desk.expired("a", "too long")
    assert failures(tmp_path) == {slow: "too long"}
    assert other in {key for index in range(3) for each in [desk.next(index)] if each for key in each.cells}


def test_a_training_that_goes_on_is_not_too_slow_however_long_it_is(opened):
    desk, clock = opened(cell_timeout=60.0)
    task = desk.next("a")
    for step in range(100):
        clock.now += 59
        desk.hear("a", "training_progress", training=task.title, step=step, steps=1000, metrics={})
        assert desk.overdue("a") is None
    clock.now += 61
    assert desk.overdue("a") == "meta-training made no step for 61 s, longer than --cell-timeout 60"
    assert desk.overdue("b") is None


def test_two_desks_share_the_work(opened, trained, grid, tmp_path):
    (one, _), (two, clock) = opened(), opened()
    first, second = one.next("a"), two.next("x")
    assert first.training != second.training, "each trains another learner"
    assert one.next("b") is None
    finish_training(one, "a", first, trained)
    clock.now += AGAIN_SECONDS
    assert two.next("y").cells, "the other may evaluate what this one has trained"
    assert one.next("a") is None
    assert one.open


def test_a_cell_of_two_desks_is_done_by_one(opened, trained, grid):
    trained.update(training.key for training in grid.trainings)
    one, _ = opened()
    two, other_clock = opened({grid.cells[0].key})
    mine = one.next("a")
    while grid.cells[0].key not in mine.cells:
        mine = one.next(mine.title)
    assert two.next("x") is None, "it is locked"
    assert two.open
    assert two.next("x") is None
    one.hear("a", "cell_failed", key=grid.cells[0].key, reason="no luck")
    for worker in ("a", mine.title):
        if worker in one._busy:
            one.over(worker)
    other_clock.now += AGAIN_SECONDS
    assert two.next("x") is None
    assert not two.open
    assert [reason for _, reason in two.summary.failed_before] == ["no luck"]


def test_locks_are_free_when_a_task_is_over(opened, trained):
    one, _ = opened()
    task = one.next("a")
    one.died("a", "gone", guilty=False)
    two, _ = opened()
    assert two.next("x") == task


def test_a_worker_that_says_nothing_of_a_cell_is_a_bug_that_is_told(opened, trained):
    desk, _ = opened()
    finish_training(desk, "a", desk.next("a"), trained)
    desk.next("a")
    desk.over("a")
    assert all("this is a bug" in reason for _, reason in desk.summary.failed)
    assert len(desk.summary.failed) == 2


def test_what_is_told_of_an_evaluation_that_is_split_is_the_sum(grid, registry, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(schedule, "MOST_CELLS", 1)
    trained.update(training.key for training in grid.trainings)
    cells = {cell.key for cell in grid.cells if cell.learner == "maml"}
    desk, heard = Desk(grid, registry, Store(tmp_path), tasks_of(grid, cells, trained.__contains__)), []
    monkeypatch.setattr(registry, "tell", lambda event, **facts: heard.append((facts["done"], facts["total"])))
    first, second = desk.next("a"), desk.next("b")
    assert len(first.cells) == len(second.cells) == 1
    for worker, task, done in (("a", first, 0), ("b", second, 0), ("a", first, 4), ("b", second, 3)):
        desk.hear(worker, "evaluation_progress", training=task.title, done=done, total=4)
    # two evaluations of 4 pairs; before the second told anything, both were counted as begun by the desk alone
    assert heard == [(0, 4), (0, 8), (4, 8), (7, 8)]
