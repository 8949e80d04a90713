"""The monitor: what workers' events say of them, of what takes too long, and of who is to blame."""

from __future__ import annotations

import pytest

from robustbench_meta.errors import BenchError
from robustbench_meta.jobs.events import (
    PACE_SECONDS,
    CellEntered,
    CellLeft,
    EventLog,
    EventReader,
    Idle,
    JobFinished,
    JobStarted,
    Logged,
    TrainingProgress,
    WorkerStarted,
)
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.processes import MOST_LOSSES, ExitHandler


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Failing:
    """A queue that notes what fails."""

    def __init__(self):
        self.failed = {}

    def fail(self, cells, reason):
        for cell in cells:
            self.failed.setdefault(cell, reason)

    def fail_training(self, key, reason):
        self.failed[key] = reason


@pytest.fixture
def watched(tmp_path):
    """A monitor, its clock, what fails, and a way for workers to speak."""
    clock, queue, logs = Clock(), Failing(), {}
    monitor = Monitor(tmp_path, 60.0, clock=clock)

    def say(worker, *events):
        logs.setdefault(worker, EventLog(tmp_path / f"{worker}.jsonl", clock=lambda: 1e9 * len(logs) + clock()))
        for event in events:
            logs[worker].emit(event)
        monitor.poll()

    return monitor, clock, queue, say


EVALUATES = JobStarted("evaluate", "t", "maml (seed 0)", 0, 8, ("slow", "other"))
TRAINS = JobStarted("train", "t", "maml (seed 0)")


def step(number):
    return TrainingProgress("maml (seed 0)", "t", number, 1000, {})


def test_events_come_back_whole_and_in_order(tmp_path):
    log, reader = EventLog(tmp_path / "a.jsonl"), EventReader(tmp_path)
    first = [WorkerStarted("host", 7), Logged("x", 30, 'two\nlines "é"'), EVALUATES]
    for event in first:
        log.emit(event)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"event": "CellLeft", "cel')
    told = [{name: list(each) if name == "cells" else each for name, each in vars(event).items()} for event in first]
    assert [vars(event) for _, event in reader.new()] == told
    assert list(reader.new()) == [], "half a line is waited for"
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('l": "c", "seconds": 1.5}\n{"event": "Unknown"}\nno JSON\n')
    [(worker, event)] = reader.new()
    assert (worker, event.cell, event.seconds) == ("a", "c", 1.5)


def test_progress_is_told_first_last_with_news_and_now_and_then(tmp_path):
    clock = Clock()
    log = EventLog(tmp_path / "a.jsonl", clock=clock)
    for number in range(1001):
        clock.now += PACE_SECONDS / 10
        log.emit(TrainingProgress("maml", "t", number, 1000, {"loss": 1.0} if number >= 503 else {}))
    steps = [event.step for _, event in EventReader(tmp_path).new()]
    assert (steps[0], steps[-1]) == (0, 1000)
    assert 503 in steps
    assert 90 <= len(steps) <= 120


def test_a_cell_that_takes_too_long_is_overdue_over_all_its_chunks_and_workers(watched):
    monitor, clock, _, say = watched
    say("a", EVALUATES, CellEntered("slow"))
    clock.now += 30
    say("a", CellLeft("slow", 30.0), CellEntered("other"))
    clock.now += 40
    assert monitor.overdue("a") is None, "40 s at this cell, and 30 s at another"
    say("a", CellLeft("other", 40.0), CellEntered("slow"))
    say("b", EVALUATES, CellEntered("slow"))
    clock.now += 14
    assert monitor.overdue("a") is None, "30 s before, and twice 14 s now"
    clock.now += 2
    assert monitor.overdue("a") == monitor.overdue("b") == "it took longer than --cell-timeout 60 s"


def test_a_training_that_goes_on_is_not_too_slow_however_long_it_is(watched):
    monitor, clock, _, say = watched
    say("a", TRAINS)
    for number in range(100):
        clock.now += 59
        say("a", step(number))
        assert monitor.overdue("a") is None
    clock.now += 61
    assert monitor.overdue("a") == "meta-training made no step for 61 s, longer than --cell-timeout 60"
    assert monitor.overdue("b") is None
    say("a", JobFinished(), Idle())
    clock.now += 1000
    assert monitor.overdue("a") is None, "it waits"


@pytest.mark.parametrize(
    ("events", "guilty"),
    [
        ((EVALUATES, CellEntered("other"), CellLeft("other", 1.0), CellEntered("slow")), "slow"),
        ((TRAINS, step(5)), "t"),
    ],
    ids=["cell", "training"],
)
def test_what_a_worker_was_at_is_to_blame(watched, events, guilty):
    monitor, _, queue, say = watched
    say("a", *events)
    ExitHandler(lambda: queue, monitor)("a", "was ended by SIGKILL")
    assert queue.failed == {guilty: "the process at work on maml (seed 0) was ended by SIGKILL"}


@pytest.mark.parametrize("job", [TRAINS, EVALUATES], ids=lambda job: job.kind)
@pytest.mark.parametrize("guilty", [True, False])
def test_a_lost_machine_costs_nothing_until_it_is_lost_too_often(watched, caplog, job, guilty):
    monitor, _, queue, say = watched
    exited = ExitHandler(lambda: queue, monitor)
    if guilty and job is TRAINS:
        pytest.skip("then the training is to blame")
    for number in range(MOST_LOSSES + 1):
        assert queue.failed == {}
        say(f"w{number}", job)
        exited(f"w{number}", "is gone with node 7", guilty=guilty)
    assert caplog.text.count("is gone with node 7; beginning again with what was saved") == MOST_LOSSES
    expected = {"t"} if job is TRAINS else {"slow", "other"}
    assert set(queue.failed) == expected
    assert all("for the 6th time without getting any further" in reason for reason in queue.failed.values())


def test_a_training_that_gets_further_may_be_lost_any_number_of_times(watched):
    """As a long training on machines that are taken away again and again."""
    monitor, clock, queue, say = watched
    exited = ExitHandler(lambda: queue, monitor)
    for number in range(4 * MOST_LOSSES):
        say(f"w{number}", TRAINS, step(10 * number))
        clock.now += 1
        say(f"w{number}", step(10 * number + 10))
        exited(f"w{number}", "was taken away", guilty=False)
    assert queue.failed == {}


def test_workers_that_die_again_and_again_without_a_job_end_the_run(watched):
    monitor, _, queue, say = watched
    exited = ExitHandler(lambda: queue, monitor)
    for number in range(MOST_LOSSES + 1):
        say(f"w{number}", WorkerStarted("host", number))
    for number in range(MOST_LOSSES):
        exited(f"w{number}", "was ended by SIGSEGV")
    with pytest.raises(BenchError, match="a worker process was ended by SIGSEGV, for the 6th time"):
        exited(f"w{MOST_LOSSES}", "was ended by SIGSEGV")


def test_forks_of_a_worker_that_is_gone_are_gone_too(watched):
    monitor, _, _, say = watched
    say("a.1", EVALUATES)
    say("a.1.0", EVALUATES, CellEntered("slow"))
    say("a.10", EVALUATES)
    monitor.gone("a.1")
    assert set(monitor.workers) == {"a.10"}
