"""The queue: which job comes next, and two workers of two runs on one results folder."""

from __future__ import annotations

import json

import pytest
import torch

from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.experiment.checkpoints import Trained, checkpoint_bytes, checkpoint_name
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import CellSpec, RunSpec
from robustbench_meta.hookspecs import hookimpl
from robustbench_meta.jobs.context import WorkerContext
from robustbench_meta.jobs.events import CellFailed, EventLog, EventReader, JobStarted
from robustbench_meta.jobs.monitor import Monitor, Reporter, Summary
from robustbench_meta.jobs.planner import WORTH_STARTING, evaluation_groups, required_trainings, work_of, workers_for
from robustbench_meta.jobs.queue import Assemble, Evaluate, Queue
from robustbench_meta.jobs.worker import Worker
from robustbench_meta.results.store import Store

CPU = torch.device("cpu")
SPEC = {"profile": "smoke", "dataset": "toy", "meta_steps": 2, "episodes": 20, "attacks": ("none", "fgsm")}


@pytest.fixture(scope="module")
def grid(registry):
    return build_grid(RunSpec.read(**SPEC, learners=("maml", "adml")), registry, None)


@pytest.fixture
def opened(grid, tmp_path):
    """Opens queues on one folder, each as a process of its own would."""
    (tmp_path / "events").mkdir()
    count = iter(range(99))

    def open_queue(cells=None, of=grid):
        keys = [cell.key for cell in of.cells] if cells is None else cells
        return Queue([of], Store(tmp_path), keys, "cpu", EventLog(tmp_path / "events" / f"{next(count)}.jsonl"))

    return open_queue


def run(queue, job):
    """Run a job that was claimed."""
    place = WorkerContext(queue.store, CPU, Cores())
    Worker(place, queue, Monitor(queue.store.root / "events"))._run(job)


@pytest.fixture
def trained(opened):
    """Both learners are trained."""
    for _ in range(2):
        queue = opened()
        run(queue, queue.claim())


def failures(tmp_path):
    return {path.stem: json.loads(path.read_text())["reason"] for path in (tmp_path / "failures").iterdir()}


def test_the_costliest_training_first_then_what_the_worker_has_trained(opened):
    one, two = opened(), opened()
    first, second = one.claim(), two.claim()
    assert (first.target.title, second.target.title) == ("adml (seed 0)", "maml (seed 0)"), "adml attacks its tasks"
    assert opened().claim() is None, "evaluations wait for their checkpoints"
    one.release(first)
    first = one.claim()
    assert first.target.title == "adml (seed 0)", "free again"
    run(two, second)
    run(one, first)
    assert (two.claim().target.title, one.claim().target.title) == ("maml (seed 0)", "adml (seed 0)")


def test_chunks_of_one_training_are_shared_out_and_then_assembled(opened, trained):
    one, two = opened(), opened()
    jobs = [one.claim(), two.claim(), one.claim()]
    assert [job.episodes for job in jobs] == [range(8), range(8, 16), range(16, 20)]
    assert len({job.target.key for job in jobs}) == 1
    for queue, job in zip((one, two, one), jobs, strict=True):
        assert [cell.training.key for cell in job.cells] == 2 * [job.target.key]
        run(queue, job)
    last = one.claim()
    assert isinstance(last, Assemble)
    run(one, last)
    assert {record["training"] for record in Store(one.store.root).records()} == {last.target.key}
    assert one.store.parts(last.target.key) == []
    assert not list((one.store.root / ".locks").glob("evaluate-*"))


def test_a_larger_grid_evaluates_only_what_is_new(opened, trained, registry):
    small = opened()
    while isinstance(job := small.claim(), Evaluate):
        run(small, job)
    spec = {**SPEC, "attacks": ("none", "fgsm", "pgd:steps=2"), "learners": ("maml", "adml")}
    job = opened(of=build_grid(RunSpec.read(**spec), registry, None)).claim()
    assert isinstance(job, Evaluate)
    assert [cell.attack for cell in job.cells] == ["pgd:steps=2"]


def test_a_second_attack_costs_no_meta_step_and_no_adaptation(opened, registry, tmp_path, monkeypatch):
    adapted, real = [], Engine.adapt

    def adapt(engine, theta, support, **settings):
        if not engine.training:
            adapted.append(support.x.shape[0])
        return real(engine, theta, support, **settings)

    def work(*attacks):
        adapted.clear()
        queue = opened(of=build_grid(RunSpec.read(**{**SPEC, "attacks": attacks}), registry, None))
        Worker(WorkerContext(queue.store, CPU), queue, Monitor(tmp_path / "events")).work()
        new = [event.kind for _, event in reader.new() if isinstance(event, JobStarted)]
        return sum(adapted), new.count("train")

    monkeypatch.setattr(Engine, "adapt", adapt)
    reader = EventReader(tmp_path / "events")
    alone, trained = work("fgsm")
    assert trained == 2
    assert work("fgsm", "pgd:steps=2")[1] == 0
    for path in (*tmp_path.glob("*/*.json"), *tmp_path.glob("checkpoints/*")):
        path.unlink()
    assert work("fgsm", "pgd:steps=2") == (alone, 2), "one adaptation serves both"


def test_parts_of_other_weights_are_not_put_together(opened, trained):
    """As when a checkpoint was damaged, and trained again on another machine."""
    queue = opened()
    job = queue.claim()
    run(queue, job)
    assert queue.claim().episodes == range(8, 16)
    path = queue.store.root / checkpoint_name(job.target.key)
    spec = job.target.training.spec.model_dump(mode="json")
    path.write_bytes(checkpoint_bytes(Trained({"other": torch.ones(1)}), spec))
    assert opened().claim(job.target.key).episodes == range(8)


def test_a_damaged_part_is_told_and_its_episodes_are_evaluated_again(opened, trained, caplog):
    queue = opened()
    while isinstance(job := queue.claim(), Evaluate):
        run(queue, job)
    path = queue.store.parts(job.target.key)[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    run(queue, job)
    assert "these episodes are evaluated again" in caplog.text
    again = queue.claim()
    assert (again.kind, again.target.key) == ("evaluate", job.target.key)


def test_a_training_that_fails_costs_its_own_cells(opened, tmp_path):
    queue = opened()
    adml = queue.claim()
    queue.fail_training(adml.target.key, "it diverged")
    assert set(failures(tmp_path).values()) == {"it diverged"}
    assert len(failures(tmp_path)) == 2
    queue.release(adml)
    maml = queue.claim()
    assert maml.target.title == "maml (seed 0)"
    run(queue, maml)
    assert queue.claim().target.title == "maml (seed 0)"


def test_a_cell_that_fails_is_left_out_of_the_chunks_that_follow(opened, trained, tmp_path):
    queue = opened()
    job = queue.claim()
    queue.fail([job.cells[1].key], "no luck")
    queue.fail([job.cells[1].key], "once more")
    assert failures(tmp_path) == {job.cells[1].key: "no luck"}
    queue.release(job)
    assert [cell.key for cell in queue.claim().cells] == [job.cells[0].key]


def test_listeners_are_told_which_cell_failed_as_the_leaderboard_would(opened, grid, registry, tmp_path):
    events = []

    class Listener:
        @hookimpl
        def cell_failed(self, cell, labels, training, reason):
            events.append((cell, labels, training, reason))

    queue, failed = opened(), grid.cells[-1]
    summary = Summary()
    reporter = Reporter(registry, queue.store, queue.cells, summary)
    registry.listen(Listener(), "heard")
    try:
        queue.fail([failed.key], "no luck")
        for _, event in EventReader(tmp_path / "events").new():
            assert isinstance(event, CellFailed)
            reporter(event)
            reporter(event)
    finally:
        registry.manager.unregister(name="heard")
    [(cell, labels, training, reason)] = events
    assert summary.failed == [(failed, "no luck")]
    assert CellSpec.model_validate(cell).digest() == labels["spec_hash"] == failed.key
    named = {"learner": training.removesuffix(" (seed 0)"), "attack": failed.attack, "eps": failed.eps, "seed": 0}
    assert {name: labels[name] for name in named} == named
    assert (labels["support"], labels["query"]) == (cell["support"], cell["query"])
    assert reason == "no luck"


def test_work_counts_what_is_not_there_yet(grid):
    keys = {cell.key for cell in grid.cells}
    needed = required_trainings([grid], keys)
    maml = next(key for key, each in needed.items() if each.title == "maml (seed 0)")
    work = work_of(evaluation_groups([grid], keys, "cpu"), needed, {maml}.__contains__)
    told = {each["training"]: (each["cells"], each["train"], each["test"], each["checked"]) for each in work}
    # smoke: 4 tasks a step; adml attacks them too. 20 episodes: adapted to once, attacked once; 16 are checked.
    assert told == {"maml (seed 0)": (2, 0, 40, 32), "adml (seed 0)": (2, 16, 40, 32)}


@pytest.mark.parametrize(
    ("wanted", "device", "cost", "trainings", "cores", "expected"),
    [
        (3, "cpu", 1, 5, 2, 3),
        (3, "cpu", 1, 2, 8, 2),
        ("auto", "cpu", WORTH_STARTING - 1, 4, 8, 1),
        ("auto", "cpu", WORTH_STARTING, 4, 8, 4),
        ("auto", "cpu", WORTH_STARTING, 4, 2, 2),
        ("auto", "cuda:0", 10**6, 4, 8, 1),
        ("auto", "cuda", 1, 4, 8, 3),
    ],
)
def test_as_many_workers_as_pay(wanted, device, cost, trainings, cores, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    work = [{"train": cost if each == 0 else 0, "test": 0} for each in range(trainings)]
    assert workers_for(wanted, work, torch.device(device), cores) == expected


def test_a_worker_that_is_not_to_wait_ends_when_others_are_at_all_that_is_left(opened):
    one, two = opened(), opened()
    assert [one.claim().kind, one.claim().kind] == ["train", "train"]
    worker = Worker(WorkerContext(two.store, CPU), two, Monitor(two.store.root / "events"), exit_when_waiting=True)
    worker.work()
    assert not two.over()
