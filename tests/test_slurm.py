"""Jobs of submitit: the same rows as here, and what time limits, lost nodes, deaths and Ctrl-C leave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_meta import hookimpl, keeping, leaderboard, runner
from robustbench_meta.desk import MOST_LOSSES
from robustbench_meta.errors import BenchError
from robustbench_meta.executors import Policy, Recipe, Task
from robustbench_meta.executors.remote import installed
from robustbench_meta.executors.slurm import Slurm
from robustbench_meta.executors.slurm.clusters import read_states
from robustbench_meta.executors.slurm.job import Heart, Order, PlanFolder, Spool, Tail, _check_versions
from robustbench_meta.executors.slurm.office import Errand
from robustbench_meta.executors.slurm.request import Request
from robustbench_meta.grid import prepare
from robustbench_meta.registry import load_registry
from robustbench_meta.spec import RunSpec
from robustbench_meta.stopping import Stop, Stopped
from robustbench_meta.store import Store

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'robustbench_meta[slurm]'")

CPU = torch.device("cpu")
TINY = {"profile": "smoke", "dataset": "toy", "meta_steps": 4, "episodes": 6, "attacks": ("none", "fgsm")}


class Ears:
    """Hears all events."""

    def __init__(self):
        self.heard = []

    @hookimpl
    def training_progress(self, training, step, steps):
        self.heard.append((training, step, steps))

    @hookimpl
    def cell_finished(self, record):
        self.heard.append(record["key"])


def run(folder, executor="slurm:cluster=local,cpus=1", plugins=None, jobs=2, stop=None, timeout=None, **given):
    registry, ears = load_registry(plugins), Ears()
    registry.manager.register(ears)
    store, grid = Store(folder), prepare(RunSpec.read(**{**TINY, **given}), registry, None)
    policy = Policy(executor=executor, jobs=jobs, cell_timeout=timeout)
    summary = runner.run(grid, registry, store, CPU, policy, plugins=plugins, stop=stop)
    return summary, store, ears.heard


def rows(store):
    return leaderboard.build(store).drop(columns=leaderboard.COSTS)


def wait(condition, seconds=240.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def processes(folder):
    """The jobs' processes of runs in a results folder, by their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in command and "submitit" in command:
                found[int(path.parent.name)] = command
    return found


# -- the same rows, whatever happens ---------------------------------------------------------------

SLOW = '''
import os, signal, time
from pathlib import Path
from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML

class Slow(MAML):
    """Takes its time."""
    name = "slow"
    def objective(self, ops, theta, tasks):
        with (Path(__file__).parent / "steps").open("a") as file:
            file.write(f"{os.getpid()} {os.getppid()}\\n")
        time.sleep(float((Path(__file__).parent / "seconds").read_text()))
        return super().objective(ops, theta, tasks)

class Killed(MAML):
    """Killed."""
    name = "killed"
    def objective(self, ops, theta, tasks):
        os.kill(os.getpid(), signal.SIGKILL)

class Stuck(MAML):
    """Hangs."""
    name = "stuck"
    def objective(self, ops, theta, tasks):
        time.sleep(600)

@hookimpl
def register_learners(register):
    for learner in (Slow, Killed, Stuck):
        register(learner)
'''


@pytest.fixture
def slow(tmp_path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "slow.py").write_text(SLOW)
    (tmp_path / "plugins" / "seconds").write_text("0.0")
    return tmp_path / "plugins"


def steps(folder):
    """The process, and the one that started it, of each task's gradient so far."""
    with contextlib.suppress(FileNotFoundError):
        return [tuple(map(int, line.split())) for line in (folder / "steps").read_text().splitlines()]
    return []


def test_a_lost_node_a_time_limit_and_a_death_cost_no_row_of_others(tmp_path, slow, caplog, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_KEEP_SECONDS", "0")
    grid = {"learners": ("slow",), "meta_steps": 9, "plugins": slow, "jobs": 1}
    alone, expected, first = run(tmp_path / "1", "local", **grid)
    whole = len(steps(slow))
    (slow / "steps").unlink()
    (slow / "seconds").write_text("0.1")

    def trouble():
        wait(lambda: len(steps(slow)) >= whole / 3)
        process, starter = steps(slow)[-1]
        os.kill(starter, signal.SIGKILL)
        os.kill(process, signal.SIGKILL)
        wait(lambda: steps(slow)[-1][0] != process and len(steps(slow)) >= 2 * whole / 3)
        os.kill(steps(slow)[-1][0], signal.SIGUSR2)  # as Slurm does before the time is up

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        together, store, second = run(tmp_path / "2", **{**grid, "learners": ("slow", "killed"), "jobs": 2})
    finally:
        thread.join()
    assert (together.finished, alone.finished, alone.failed) == (2, 2, [])
    pd.testing.assert_frame_equal(rows(expected), rows(store), check_exact=True)
    assert len({process for process, _ in steps(slow)}) == 4, "lost, out of time, done, and one that evaluates"
    assert len(steps(slow)) < 1.8 * whole, "they went on, and did not begin anew"
    assert "was lost (NODE_FAIL); going on with what was kept" in caplog.text
    assert {event for event in second if isinstance(event, str)} == {event for event in first if isinstance(event, str)}
    assert {("slow (seed 0)", 0, 9), ("slow (seed 0)", 9, 9)} <= set(second), "progress is told first and last"
    for cell, reason in together.failed:
        assert cell.learner == "killed"
        assert "at work on killed (seed 0) ended before it was done (FAILED" in reason
        assert Path(reason.rpartition("its log is ")[2]).is_file()
    assert len(together.failed) == 2


def test_a_task_whose_jobs_come_no_further_is_given_up():
    errand = Errand("it", Task("a", "maml (seed 0)"))
    assert [errand.goes_on(), errand.goes_on()] == [True, False], "not even a step, twice"
    errand = Errand("it", Task("a", "maml (seed 0)"))
    for errand.far, expected in ((0, True), (500, True), (900, True), (900, False)):
        assert errand.goes_on() == expected
    errand = Errand("it", Task("a", "maml (seed 0)"))
    for errand.far in range(100):
        assert errand.goes_on_lost(), "it gets on, however often its node is taken away"
    assert [errand.goes_on_lost() for _ in range(MOST_LOSSES)] == [True] * (MOST_LOSSES - 1) + [False]


def test_a_job_that_hangs_is_ended(tmp_path, slow):
    summary, _, _ = run(tmp_path / "r", timeout=3.0, learners=("stuck",), attacks=("none",), plugins=slow, jobs=1)
    [(_, reason)] = summary.failed
    assert "meta-training made no step for" in reason
    wait(lambda: not processes(tmp_path / "r"), 10)


def test_ctrl_c_keeps_what_is_under_way_and_no_job_outlives_its_driver(tmp_path, slow):
    (slow / "seconds").write_text("0.05")
    command = [
        sys.executable, "-c", "from robustbench_meta.cli import main; main()", "run", "--profile", "smoke",
        "--meta-steps", "100000", "--dataset", "toy", "--learner", "slow", "--attack", "none", "--device", "cpu",
        "--executor", "slurm:cluster=local,cpus=1", "--plugins", slow, "--results", tmp_path / "r",
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, keeping.SECONDS: "2"},
    ) as driver:
        try:
            wait(lambda: list((tmp_path / "r" / "progress").glob("*.safetensors")))
            [state] = (tmp_path / "r" / "progress").glob("*.safetensors")
            before, began = state.read_bytes(), time.monotonic()
            os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the driver and all that it started
            _, err = driver.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
    assert time.monotonic() - began < 20
    assert driver.returncode == 130
    assert "Traceback" not in err
    assert state.read_bytes() != before, "what was under way was kept once more"
    wait(lambda: not processes(tmp_path / "r"), 10)


def test_a_job_ends_when_its_driver_is_heard_of_no_more(tmp_path):
    path, ended, stop = tmp_path / "heart", threading.Event(), Stop()
    heart = Heart(path, ended.set)
    assert not heart.beats(stop, seconds=0.3), "nobody is there"
    path.touch()
    assert heart.beats(stop, seconds=5)
    with heart.watched(seconds=1.0):
        for _ in range(5):
            time.sleep(0.4)
            os.utime(path, ns=(0, time.monotonic_ns()))  # that it changes counts, not what its clock says
            assert not ended.is_set()
        assert ended.wait(5)
    stop.signal = signal.SIGTERM
    with pytest.raises(Stopped):
        heart.beats(stop)


# -- what jobs tell --------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_events_arrive_whole_and_in_order_however_the_file_grows(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("spool")
    told = data.draw(st.lists(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text())))
    spool = Spool(folder / "whole.jsonl", Stop())
    for facts in told:
        spool.tell("cell_finished", record=facts)
    whole = (folder / "whole.jsonl").read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    tail, heard = Tail(folder / "partial.jsonl"), []
    for cut in cuts:
        # a network file system may know the length before what is written there
        (folder / "partial.jsonl").write_bytes(whole[:cut] + bytes(data.draw(st.integers(0, 3))))
        heard += tail.events()
    (folder / "partial.jsonl").write_bytes(whole)
    heard += tail.events()
    assert heard == [("cell_finished", {"record": facts}) for facts in told]
    assert list(tail.events()) == []


def test_of_progress_no_more_is_told_than_anyone_wants_to_see(tmp_path):
    now = [0.0]
    spool, tail = Spool(tmp_path / "a.jsonl", Stop(), lambda: now[0]), Tail(tmp_path / "a.jsonl")
    for step in range(11):
        spool.tell("training_progress", training="it", step=step, steps=10, metrics={"loss": torch.tensor(0.5)})
        now[0] += 0.3
    heard = [(facts["step"], facts["metrics"]["loss"]) for _, facts in tail.events()]
    assert heard == [(0, 0.5), (4, 0.5), (8, 0.5), (10, 0.5)]


def test_an_order_survives_its_journey_as_text(tmp_path):
    recipe = Recipe(RunSpec.read(**TINY, learners=("maml",)), None, tmp_path, tmp_path / "r", "cpu", False)
    task = Task("a", "maml (seed 0)", ("b", "c"), ("a",), 7)
    order = Order(recipe, task, tmp_path / "s", tmp_path / "h", tmp_path / "p", 3, 30, {"torch": "2"})
    assert Order.read(order.text()) == order
    json.loads(order.text())


def test_a_node_with_other_versions_is_refused():
    _check_versions(installed())
    words = r"has other versions than the machine where bench was started: torch: .* there, 0\.4 here; use the same"
    with pytest.raises(BenchError, match=words):
        _check_versions({**installed(), "torch": "0.4"})


def test_the_first_plan_that_is_settled_is_that_of_all(tmp_path):
    one, two = PlanFolder(tmp_path / "plans"), PlanFolder(tmp_path / "plans")
    assert one.read("a") is None
    assert one.settle("a", "first").strip() == two.settle("a", "second").strip() == "first"
    assert (one.names(), [path.name for path in one.folder.iterdir()]) == (["a"], ["a.json"])


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "device", "words"),
    [
        ({"partitoin": "gpu"}, "cpu", "unknown option of the executor 'slurm' 'partitoin': did you mean 'partition'?"),
        ({"gpus": "one"}, "cpu", "slurm:gpus=one cannot be; expected a whole number, 0 or more"),
        ({"cpus": "0"}, "cpu", "slurm:cpus=0 cannot be; expected a whole number, 1 or more"),
        ({"jobs": "²"}, "cpu", "slurm:jobs=² cannot be"),
        ({"minutes": "-5"}, "cpu", "slurm:minutes=-5 cannot be; expected a number above 0"),
        ({"memory": "16GB"}, "cpu", "slurm:memory=16GB cannot be; expected a number above 0"),
        ({"minutes": "nan"}, "cpu", "slurm:minutes=nan cannot be"),
        ({"cluster": "pbs"}, "cpu", "slurm:cluster=pbs cannot be; expected slurm, or local"),
        ({"gpus": "0"}, "cuda:0", "slurm:gpus=0 does not go with --device cuda"),
    ],
)
def test_options_that_cannot_be(options, device, words):
    with pytest.raises(BenchError) as told:
        Request.read(options, Policy(), device)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("options", "jobs", "device", "expected"),
    [
        ({}, "auto", "cpu", (100, 0, 4, 60.0)),
        ({}, 7, "cuda:0", (7, 1, 4, 60.0)),
        ({"jobs": "3", "gpus": "2", "cpus": "8", "minutes": "600"}, 7, "cuda", (3, 2, 8, 600.0)),
    ],
)
def test_what_is_asked_for(options, jobs, device, expected):
    request = Request.read(options, Policy(jobs=jobs), device)
    assert (request.jobs, request.gpus, request.cpus, request.minutes) == expected


def test_without_slurm_the_way_to_try_it_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe = Recipe(RunSpec.read(**TINY), None, None, tmp_path, "cpu")
    with pytest.raises(BenchError, match=r"there is no Slurm here .*slurm:cluster=local"):
        Slurm({}, Policy(), recipe)


def test_without_submitit_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    recipe = Recipe(RunSpec.read(**TINY), None, None, tmp_path, "cpu")
    with pytest.raises(BenchError, match=r"pip install 'robustbench_meta\[slurm\]'"):
        Slurm({"cluster": "local"}, Policy(), recipe)


def test_states_are_read_as_squeue_and_sacct_print_them():
    # printed by squeue --format=%i|%T and sacct --parsable2 of Slurm 22.05
    assert read_states("12|RUNNING\n13|PENDING\n") == {"12": "RUNNING", "13": "PENDING"}
    assert read_states("7|CANCELLED by 0\n8|OUT_OF_MEMORY\n9|COMPLETED\n") == {
        "7": "CANCELLED", "8": "OUT_OF_MEMORY", "9": "COMPLETED"
    }  # fmt: skip
    assert read_states("slurm_load_jobs error: Unable to contact slurm controller\n") == {}
