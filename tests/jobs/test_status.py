"""`bench status`: what event files say of runs that are under way, over, or were killed."""

from __future__ import annotations

import json

import pytest

from robustbench_meta.cli import main
from robustbench_meta.errors import BenchError
from robustbench_meta.jobs.events import (
    CellFailed,
    CellFinished,
    EvaluationProgress,
    EventLog,
    Idle,
    JobStarted,
    RunFinished,
    RunStarted,
    TrainingProgress,
    WorkerStarted,
)
from robustbench_meta.jobs.status import Folder, run_lock
from robustbench_meta.runtime.locks import Locks

WORK = [{"training": "maml (seed 0)", "cells": 2, "train": 100, "test": 20, "checked": 0}]
LABELS = {"attack": "fgsm", "eps": "0.1", "support": "clean", "query": "adv"}
BEGIN = [RunStarted({}, 2, WORK, "results", {})]
END = [CellFinished("a"), CellFailed("b", LABELS, "maml (seed 0)", "no luck")]


@pytest.fixture
def told(tmp_path):
    """A run of that name that says this, by workers."""

    def emit(name, **logs):
        (tmp_path / "events" / name).mkdir(parents=True, exist_ok=True)
        for worker, events in logs.items():
            log = EventLog(tmp_path / "events" / name / f"{worker}.jsonl")
            for event in events:
                log.emit(event)
        return tmp_path

    return emit


def plain(folder, capsys, *options):
    with pytest.raises(SystemExit, match="0"):
        main(["status", str(folder), "--json", *options])
    return json.loads(capsys.readouterr().out)["runs"]


def shown(folder, capsys, *options):
    with pytest.raises(SystemExit, match="0"):
        main(["status", str(folder), *options])
    return capsys.readouterr().out


def test_a_running_run_shows_what_its_workers_are_at(told, capsys):
    folder = told(
        "1", driver=BEGIN,
        worker=[
            WorkerStarted("node7", 42), JobStarted("train", "k", "maml (seed 0)"),
            TrainingProgress("maml (seed 0)", "k", 25, 100, {"loss": 0.5}),
        ],
        other=[WorkerStarted("node8", 43), Idle()],
    )  # fmt: skip
    locks = Locks(folder / ".locks")
    assert locks.take(run_lock(folder / "events" / "1"))
    [run] = plain(folder, capsys)
    assert (run["state"], run["cells"], run["cells_over"]) == ("running", 2, 0)
    assert run["running"] == [{"stage": "train", "training": "maml (seed 0)", "done": 25, "total": 100}]
    assert run["share_done"] == pytest.approx(25 / 120)
    doing = {worker["name"]: (worker["place"], worker["doing"]) for worker in run["workers"]}
    assert doing == {"worker": ("node7:42", "train maml (seed 0)"), "other": ("node8:43", "waits for others")}
    text = shown(folder, capsys)
    assert "running" in text
    assert "node7:42" in text
    assert "25/100" in text


def test_a_run_that_is_over_tells_what_failed(told, capsys):
    folder = told("1", driver=[*BEGIN, RunFinished()], worker=[EvaluationProgress("maml (seed 0)", 20, 20), *END])
    [run] = plain(folder, capsys)
    assert (run["state"], run["cells_over"]) == ("finished", 2)
    [failed] = run["failed"]
    assert failed == {"cell": "fgsm eps=0.1 clean/adv on maml (seed 0)", "reason": "no luck"}
    assert "no luck" in shown(folder, capsys, "--follow")


@pytest.mark.parametrize("events", [BEGIN, [*BEGIN, RunFinished()]], ids=["killed", "stopped"])
def test_a_run_that_did_not_come_to_its_end_was_interrupted(told, capsys, events):
    assert plain(told("1", driver=events), capsys)[0]["state"] == "interrupted"


def test_of_runs_that_are_over_only_the_last_is_shown_unless_all_are_asked_for(told, capsys):
    for name in ("1", "2", "3"):
        folder = told(name, driver=[*BEGIN, RunFinished()])
    locks = Locks(folder / ".locks")
    assert locks.take(run_lock(folder / "events" / "1"))
    assert [run["name"] for run in plain(folder, capsys)] == ["1", "3"]
    assert [run["name"] for run in plain(folder, capsys, "--all")] == ["1", "2", "3"]


def test_a_folder_without_runs_and_one_that_is_not_there(tmp_path, capsys):
    assert shown(tmp_path, capsys) == "no run has left events here\n"
    with pytest.raises(BenchError, match="no such folder"):
        Folder(tmp_path / "nowhere")


def test_a_look_reads_only_what_is_new(told):
    folder = told("1", driver=BEGIN)
    runs = Folder(folder)
    assert runs.look()[0].progress.cells_over == 0
    told("1", worker=END)
    [run] = runs.look()
    assert run.progress.cells_over == 2
    assert runs.look()[0].progress.cells_over == 2
