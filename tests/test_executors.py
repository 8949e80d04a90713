"""Side by side: the same rows as one after the other; what a worker's death, Ctrl-C and the driver's death leave."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from robustbench_meta import hookimpl, leaderboard, runner
from robustbench_meta.deaths import how_it_ended
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.executors import Job, Recipe
from robustbench_meta.executors.processes import Processes
from robustbench_meta.executors.schedule import WORTH_STARTING, jobs_of, side_by_side
from robustbench_meta.executors.worker import PACE_SECONDS, Paced
from robustbench_meta.grid import prepare
from robustbench_meta.options import parse_jobs
from robustbench_meta.registry import load_registry
from robustbench_meta.spec import RunSpec
from robustbench_meta.store import Store

CPU = torch.device("cpu")
TINY = {"profile": "smoke", "meta_steps": 4, "episodes": 6, "attacks": ("none", "fgsm")}


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

    @hookimpl
    def cell_failed(self, training, reason):
        self.heard.append((training, reason))


def run(folder, jobs, plugins=None, **given):
    registry, ears = load_registry(plugins), Ears()
    registry.manager.register(ears)
    store, grid = Store(folder), prepare(RunSpec.read(**{**TINY, **given}), registry, None)
    return runner.run(grid, registry, store, CPU, jobs=jobs, plugins=plugins), store, ears.heard


# -- the same rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["toy", "glyphs"])
def test_side_by_side_gives_the_rows_of_one_after_the_other(tmp_path, monkeypatch, dataset):
    grid = {"dataset": dataset, "learners": ("maml", "adml"), "seeds": (0, 1), "scenarios": ("clean/adv", "adv/adv")}
    alone, one, first = run(tmp_path / "1", 1, **grid)
    monkeypatch.setattr(runner, "available_cores", lambda: 4)  # so that lanes differ too: two, and four at the end
    together, two, second = run(tmp_path / "2", 2, **grid)
    assert (together.finished, together.failed) == (alone.finished, []) == (12, [])
    rows = [leaderboard.build(store).drop(columns=leaderboard.COSTS) for store in (one, two)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    texts = [pd.read_csv(leaderboard.write(store), dtype=str).drop(columns=leaderboard.COSTS) for store in (one, two)]
    assert texts[0].to_csv() == texts[1].to_csv()
    assert {event for event in second if isinstance(event, str)} == {event for event in first if isinstance(event, str)}
    for title in ("maml (seed 0)", "maml (seed 1)", "adml (seed 0)", "adml (seed 1)"):
        assert {(title, 0, 4), (title, 4, 4)} <= set(second), "progress is told first and last"


def test_what_torch_was_set_to_is_given_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(tmp_path, 1, learners=("protonet",))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# -- trouble in a worker ---------------------------------------------------------------------------

TROUBLE = '''
import logging, os, signal, sys, warnings
from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML

print("imported")

class Killed(MAML):
    """Killed."""
    name = "killed"
    def objective(self, ops, theta, tasks):
        os.kill(os.getpid(), signal.SIGKILL)

class Ends(MAML):
    """Ends its process."""
    name = "ends"
    def objective(self, ops, theta, tasks):
        os._exit(7)

class Raises(MAML):
    """Raises."""
    name = "raises"
    def objective(self, ops, theta, tasks):
        raise RuntimeError("out of ideas")

class Talks(MAML):
    """Talks."""
    name = "talks"
    def objective(self, ops, theta, tasks):
        print("printed", "here")
        logging.getLogger("strange").warning("logged %d", 3)
        logging.getLogger("strange").debug("not wanted")
        warnings.warn("warned", RuntimeWarning)
        return super().objective(ops, theta, tasks)

@hookimpl
def register_learners(register):
    for learner in (Killed, Ends, Raises, Talks):
        register(learner)
'''


def test_trouble_in_one_worker_costs_only_its_own_cells(tmp_path, caplog, capfd):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "trouble.py").write_text(TROUBLE)
    with pytest.warns(RuntimeWarning) as warned, caplog.at_level(logging.WARNING):
        summary, store, heard = run(
            tmp_path / "r", 2, tmp_path / "plugins", dataset="toy",
            learners=("killed", "ends", "raises", "talks", "maml"),
        )  # fmt: skip
    reasons = {(cell.learner, cell.attack): reason for cell, reason in summary.failed}
    assert sorted(reasons) == [(name, attack) for name in ("ends", "killed", "raises") for attack in ("fgsm", "none")]
    assert "killed (seed 0) was ended by SIGKILL" in reasons["killed", "none"]
    assert "use fewer --jobs" in reasons["killed", "none"]
    assert "ends (seed 0) ended itself with exit code 7" in reasons["ends", "fgsm"]
    assert reasons["raises", "none"] == "learner 'raises (seed 0)' failed: RuntimeError: out of ideas"
    assert ("ends (seed 0)", reasons["ends", "fgsm"]) in heard
    assert {record["labels"]["learner"] for record in store.records()} == {"talks", "maml"}
    assert summary.finished == 4
    # what it says is heard here, as if it had run here
    logged = [record for record in caplog.records if record.name == "strange"]
    assert {record.getMessage() for record in logged} == {"logged 3"}
    assert [str(each.message) for each in warned if each.filename.endswith("trouble.py")] == ["warned"], "shown once"
    out, err = capfd.readouterr()
    assert "printed here\n" in out
    assert out.count("imported\n") == 1, "only the driver tells what comes of loading plugins"
    assert err == ""


def test_a_grid_that_a_worker_cannot_make_is_one_clear_error(tmp_path):
    job = Job("key", "a job", ("cell",), 1)
    recipe = Recipe(RunSpec(learners=("mamll",), **TINY), None, None, tmp_path, "cpu")
    with pytest.raises(BenchError, match="unknown learner 'mamll': did you mean 'maml'"):
        Processes(recipe, 1, 1).run([job], lambda *_, **__: None)


def test_a_worker_that_cannot_write_its_checkpoint_stops_the_run(tmp_path):
    spec = RunSpec.read(**{**TINY, "dataset": "toy", "learners": ("maml",)})
    registry = load_registry()
    Store(tmp_path)
    [job] = jobs_of(prepare(spec, registry, None), _all(prepare(spec, registry, None)), lambda _: False)
    (tmp_path / "checkpoints" / f"{job.training}.safetensors").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        Processes(Recipe(spec, None, None, tmp_path, "cpu"), 1, 1).run([job], lambda *_, **__: None)


def _all(grid):
    return {cell.key for cell in grid.cells}


def test_a_job_of_another_grid_fails_and_says_why(tmp_path):
    heard = []
    recipe = Recipe(RunSpec.read(**{**TINY, "dataset": "toy"}), None, None, tmp_path, "cpu")
    Processes(recipe, 1, 1).run([Job("key", "it", ("a", "b"), 1)], lambda event, **facts: heard.append((event, facts)))
    assert [(event, facts["key"]) for event, facts in heard] == [("cell_failed", "a"), ("cell_failed", "b")]
    assert "changed while the run was under way" in heard[0][1]["reason"]


# -- stopping --------------------------------------------------------------------------------------

ENDLESS = '''
import os
from pathlib import Path
from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML

HERE = Path(__file__).parent

class Endless(MAML):
    """Never done."""
    name = "endless"
    def objective(self, ops, theta, tasks):
        (HERE / f"training-{os.getpid()}").touch()
        return super().objective(ops, theta, tasks)

@hookimpl
def run_started(run, cells):
    (HERE / "started").touch()

@hookimpl
def register_learners(register):
    register(Endless)
'''


def _wait(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


def _alive(group):
    """The processes of a group, without those that have ended and that nobody asked about."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,command="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [row for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@pytest.fixture
def endless(tmp_path):
    """A run of two workers that would take for ever, as from a shell: a process group of its own."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "endless.py").write_text(ENDLESS)
    command = [
        sys.executable, "-c", "from robustbench_meta.cli import main; main()", "run", "--profile", "smoke",
        "--meta-steps", "1000000", "--dataset", "toy", "--learner", "endless", "--seed", "0", "--seed", "1",
        "--jobs", "2", "--device", "cpu", "--plugins", tmp_path / "plugins", "--results", tmp_path / "results",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        try:
            yield driver, tmp_path / "plugins"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)


needs_groups = pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps to see processes with")


@needs_groups
@pytest.mark.parametrize(
    ("sign", "count", "later"), [("started", 1, 0.5), ("training-*", 2, 0.0)], ids=["starting", "training"]
)
def test_ctrl_c_ends_all_at_once_and_leaves_nobody(endless, sign, count, later):
    driver, folder = endless
    _wait(lambda: len(list(folder.glob(sign))) == count)
    time.sleep(later)
    began = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the driver and to the workers
    _, err = driver.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert driver.returncode == 130
    assert "Interrupted." in err
    assert "Traceback" not in err
    _wait(lambda: not _alive(driver.pid), 2)  # multiprocessing's tracker ends a moment after us


@needs_groups
def test_workers_end_when_their_driver_is_killed(endless):
    driver, folder = endless
    _wait(lambda: len(list(folder.glob("training-*"))) == 2)
    driver.kill()
    driver.wait()
    _wait(lambda: not _alive(driver.pid), 10)


# -- how many, and which first ---------------------------------------------------------------------


def test_jobs_cost_what_is_still_to_do(registry):
    grid = prepare(RunSpec.read(**TINY, learners=("maml", "adml")), registry, None)
    maml, adml = jobs_of(grid, _all(grid), lambda _: False)
    # 4 steps of 4 tasks, twice as dear with attacks in training; 6 adaptations; 6 attacked queries under FGSM
    assert (maml.cost, adml.cost) == (16 + 6 + 6, 32 + 6 + 6)
    assert maml.title == "maml (seed 0)"
    assert [len(job.cells) for job in (maml, adml)] == [2, 2]
    [left] = jobs_of(grid, {adml.cells[0]}, lambda key: key == adml.training)
    assert (left.training, left.cells, left.cost) == (adml.training, adml.cells[:1], 6)
    assert jobs_of(grid, (), lambda _: False) == []


def _jobs(count, cost):
    return [Job(str(number), "", (), cost) for number in range(count)]


@pytest.mark.parametrize(
    ("wanted", "jobs", "device", "cores", "expected"),
    [
        ("auto", _jobs(3, WORTH_STARTING), "cpu", 2, 2),
        ("auto", _jobs(3, WORTH_STARTING), "cpu", 8, 3),
        ("auto", _jobs(3, WORTH_STARTING), "cpu", 1, 1),
        ("auto", _jobs(3, WORTH_STARTING), "cuda", 8, 1),
        ("auto", _jobs(2, WORTH_STARTING // 2 - 1), "cpu", 8, 1),
        ("auto", [], "cpu", 8, 1),
        (4, _jobs(3, 1), "cpu", 2, 3),
        (2, _jobs(3, 1), "cuda", 1, 2),
        (1, _jobs(3, WORTH_STARTING), "cpu", 8, 1),
        (5, [], "cpu", 8, 1),
    ],
)
def test_how_many_are_side_by_side(wanted, jobs, device, cores, expected):
    assert side_by_side(wanted, jobs, torch.device(device), cores) == expected


@pytest.mark.parametrize(("profile", "worth"), [("smoke", False), ("quick", True), ("paper", True)])
def test_processes_pay_for_all_profiles_but_smoke(registry, profile, worth):
    grid = prepare(RunSpec.read(profile=profile, attacks=("none", "fgsm"), dataset="toy"), registry, None)
    assert (side_by_side("auto", jobs_of(grid, _all(grid), lambda _: False), CPU, 2) == 2) == worth


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "²"])
def test_a_number_of_jobs_that_cannot_be(text):
    with pytest.raises(BenchError, match="expected auto, or a number of trainings side by side, 1 or more"):
        parse_jobs(text)


def test_progress_is_told_first_last_and_now_and_then():
    heard, now = [], [0.0]
    paced = Paced(lambda event, **facts: heard.append((event, facts.get("step", facts.get("done")))), lambda: now[0])
    for step in range(11):
        paced("training_progress", training="it", step=step, steps=10, metrics={})
        now[0] += PACE_SECONDS / 3.9
    paced("evaluation_progress", training="it", done=5, total=10)
    paced("cell_failed", key="a", reason="")
    told = [("training_progress", step) for step in (0, 4, 8, 10)]
    assert heard == [*told, ("evaluation_progress", 5), ("cell_failed", None)]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended itself with exit code 0"),
        (7, "ended itself with exit code 7"),
        (-9, "was ended by SIGKILL"),
        (-11, "was ended by SIGSEGV"),
        (-40, "was ended by signal 40"),
        (None, "does not answer any more"),
    ],
)
def test_how_a_process_ended_is_told_in_words(code, words):
    assert how_it_ended(code) == words


def test_a_signal_without_a_name_is_told_by_its_number():
    with subprocess.Popen([sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal.SIGRTMIN + 3})"]) as process:
        assert how_it_ended(process.wait()) == f"was ended by signal {signal.SIGRTMIN + 3}"


def test_an_error_of_a_worker_says_where_it_was_raised():
    from robustbench_meta.executors.processes import _error

    ours = _error("StorageError", "no space", "the trace")
    assert (type(ours), str(ours)) == (StorageError, "no space")
    assert "the trace" in ours.__notes__[0]
    assert str(_error("ZeroDivisionError", "oh", "")) == "ZeroDivisionError: oh"


def test_the_interface_is_plain_data():
    import pickle

    recipe = Recipe(RunSpec(**TINY), Path("plugins"), None, Path("results"), "cpu")
    [job] = _jobs(1, 1)
    assert pickle.loads(pickle.dumps((recipe, job))) == (recipe, job)


def test_cores_of_a_worker_that_is_done_go_to_the_others():
    from robustbench_meta.executors.processes import _Staff

    staff, shares = _Staff(Recipe(RunSpec(**TINY), None, None, Path(), "cpu"), 5, [], lambda *_, **__: None), []
    for workers in (8, 5, 2, 1):
        staff._workers = [None] * workers
        staff._share_cores()
        shares.append(staff._lanes.value)
    assert shares == [1, 1, 2, 5]
