"""Side by side: the same rows as one after the other; what a worker's death, a hang and the driver's death leave."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pandas as pd
import pytest
import torch

from robustbench_meta import hookimpl
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.jobs.events import WorkerFailed
from robustbench_meta.jobs.planner import evaluation_groups, required_trainings, work_of, workers_for
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.jobs.processes import ProcessGroup, as_exception
from robustbench_meta.options import parse_jobs
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results import leaderboard
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.interrupts import Stop, how_it_ended

CPU = torch.device("cpu")
TINY = {"profile": "smoke", "meta_steps": 4, "episodes": 6, "attacks": ("none", "fgsm")}


class Ears:
    """Hears all events."""

    def __init__(self):
        self.events = []

    @hookimpl
    def training_progress(self, training, step, steps):
        self.events.append((training, step, steps))

    @hookimpl
    def cell_finished(self, record):
        self.events.append(record["key"])

    @hookimpl
    def cell_failed(self, training, reason):
        self.events.append((training, reason))


def run(folder, jobs, plugins=None, policy=None, **given):
    registry, ears = load_registry(plugins), Ears()
    registry.manager.register(ears)
    store, grid = Store(folder), build_grid(RunSpec.read(**{**TINY, **given}), registry, None)
    summary = runner.run(grid, registry, store, CPU, policy or Policy(jobs=jobs), plugins=plugins)
    return summary, store, ears.events


# -- the same rows ---------------------------------------------------------------------------------


def test_side_by_side_gives_the_rows_of_one_after_the_other(tmp_path, monkeypatch):
    grid = {"dataset": "glyphs", "backbone": "conv4:width=8", "learners": ("maml", "adml"), "checks": False}
    alone, one, first = run(tmp_path / "1", 1, **grid)
    monkeypatch.setattr(runner, "available_cores", lambda: 4)  # so that cores differ too: two, and four at the end
    together, two, second = run(tmp_path / "2", 2, **grid)
    assert (together.finished, together.failed) == (alone.finished, []) == (4, [])
    rows = [leaderboard.build(store).drop(columns=leaderboard.COSTS) for store in (one, two)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    assert {event for event in second if isinstance(event, str)} == {event for event in first if isinstance(event, str)}
    for title in ("maml (seed 0)", "adml (seed 0)"):
        assert {(title, 0, 4), (title, 4, 4)} <= set(second), "progress is told first and last"


def test_what_torch_was_set_to_is_given_back(tmp_path):
    torch.set_num_threads(2)
    try:
        run(tmp_path, 1, dataset="toy", learners=("maml",))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


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

class Quits(MAML):
    """Ends its process in good order."""
    name = "quits"
    def objective(self, ops, theta, tasks):
        sys.exit(0)

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
    for learner in (Killed, Ends, Raises, Quits, Talks):
        register(learner)
'''


def test_trouble_in_one_worker_costs_only_its_own_cells(tmp_path, caplog, capfd):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "trouble.py").write_text(TROUBLE)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.WARNING):
        warnings.simplefilter("default")
        summary, store, events = run(
            tmp_path / "r", 2, tmp_path / "plugins", dataset="toy",
            learners=("killed", "ends", "raises", "quits", "talks", "maml"),
        )  # fmt: skip
    reasons = {(cell.learner, cell.attack): reason for cell, reason in summary.failed}
    assert sorted(reasons) == [
        (name, attack) for name in ("ends", "killed", "quits", "raises") for attack in ("fgsm", "none")
    ]
    assert "killed (seed 0) was ended by SIGKILL" in reasons["killed", "none"]
    assert "use fewer --jobs" in reasons["killed", "none"]
    assert "ends (seed 0) ended itself with exit code 7" in reasons["ends", "fgsm"]
    assert reasons["raises", "none"].startswith("learner 'raises (seed 0)' failed: RuntimeError: out of ideas (line ")
    assert ("ends (seed 0)", reasons["ends", "fgsm"]) in events
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


def test_a_worker_that_makes_another_grid_stops_the_run_and_nothing_has_failed(tmp_path, monkeypatch):
    """As when somebody edits a plugin, or changes the data, while a run goes on."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(TROUBLE)
    real = runner.write_bytes

    def edited(path, data):
        (tmp_path / "plugins" / "mine.py").write_text(TROUBLE + "\n# edited\n")
        real(path, data)

    monkeypatch.setattr(runner, "write_bytes", edited)
    with pytest.raises(BenchError, match="code, data or plugins changed"):
        run(tmp_path / "r", 1, tmp_path / "plugins", Policy(executor="processes"), dataset="toy", learners=("talks",))
    assert not list((tmp_path / "r" / "failures").iterdir())


def test_a_worker_that_cannot_write_its_checkpoint_stops_the_run(tmp_path):
    class Spoils:
        """Puts a file where checkpoints go."""

        @hookimpl
        def run_started(self):
            (tmp_path / "checkpoints").rmdir()
            (tmp_path / "checkpoints").write_text("a file")

    registry = load_registry()
    registry.manager.register(Spoils())
    grid = build_grid(RunSpec.read(**{**TINY, "dataset": "toy", "learners": ("maml",)}), registry, None)
    with pytest.raises(StorageError, match="checkpoints"):
        runner.run(grid, registry, Store(tmp_path), CPU, Policy(executor="processes"))
    assert not list((tmp_path / "failures").iterdir()), "it is not the learner's fault"


# -- one cell that hangs, or kills its process -----------------------------------------------------

HURTS = '''
import os, signal, time
from pathlib import Path
from robustbench_meta import hookimpl
from robustbench_meta.plugins.attacks.fgsm import FGSM
from robustbench_meta.plugins.learners.maml import MAML

class Stuck(MAML):
    """Makes no step."""
    name = "stuck"
    def objective(self, ops, theta, tasks):
        time.sleep(600)

class Hangs(FGSM):
    """Never returns."""
    name = "hangs"
    def perturb(self, *given):
        time.sleep(600)

class Kills(FGSM):
    """Kills its process."""
    name = "kills"
    def perturb(self, *given):
        os.kill(os.getpid(), signal.SIGKILL)

class Poisons(FGSM):
    """Fails as on a GPU whose context is spoilt."""
    name = "poisons"
    def perturb(self, *given):
        raise RuntimeError("CUDA error: device-side assert triggered")

@hookimpl
def register_learners(register):
    register(Stuck)

@hookimpl
def register_attacks(register):
    for attack in (Hangs, Kills, Poisons):
        register(attack)
'''


@pytest.fixture
def hurts(tmp_path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "hurts.py").write_text(HURTS)
    return tmp_path / "plugins"


def test_what_hangs_or_kills_its_process_costs_nothing_else(tmp_path, hurts, monkeypatch):
    monkeypatch.setattr(runner, "available_cores", lambda: 2)  # two cores, one of which dies
    attacks = ("none", "kills", "fgsm", "hangs")
    grid = {"dataset": "toy", "learners": ("maml", "stuck"), "attacks": attacks, "episodes": 40}
    patient = Policy(executor="processes", cell_timeout=8.0)
    summary, store, _ = run(tmp_path / "r", 1, hurts, patient, **grid)
    reasons = {(cell.learner, cell.attack): reason for cell, reason in summary.failed}
    stuck = {reasons.pop(("stuck", attack)) for attack in attacks}
    assert len(stuck) == 1
    assert "meta-training made no step for" in stuck.pop()
    assert reasons.keys() == {("maml", "hangs"), ("maml", "kills")}
    assert "was ended by SIGKILL" in reasons["maml", "kills"]
    assert reasons["maml", "hangs"] == "it took longer than --cell-timeout 8 s"
    assert {record["labels"]["attack"] for record in store.records()} == {"none", "fgsm"}
    plain, other, _ = run(tmp_path / "plain", 1, hurts, **{**grid, "learners": ("maml",), "attacks": ("none", "fgsm")})
    assert plain.finished == 2
    rows = [leaderboard.build(each).drop(columns=leaderboard.COSTS) for each in (store, other)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    # what failed is not tried again
    again, _, _ = run(tmp_path / "r", 1, hurts, Policy(), **grid)
    assert (again.finished, again.skipped, again.failed) == (0, 2, [])
    assert len(again.failed_before) == 6


def test_an_error_that_spoils_the_device_costs_its_cell_and_its_process(tmp_path, hurts, caplog, monkeypatch):
    for name in ("select", "torch"):  # which workers must not take for libraries
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken for a library')")
    monkeypatch.chdir(tmp_path)
    grid = {"dataset": "toy", "learners": ("maml",), "attacks": ("none", "poisons", "fgsm")}
    summary, _, _ = run(tmp_path / "r", 1, hurts, Policy(executor="processes"), **grid)
    assert [cell.attack for cell, _ in summary.failed] == ["poisons"]
    assert "device-side assert" in summary.failed[0][1]
    assert summary.finished == 2
    assert "could not compute on its device any more; beginning again with what was saved" in caplog.text
    monkeypatch.setattr(runner, "available_cores", lambda: 1)
    with pytest.raises(BenchError, match="Nothing more can be computed on cpu by this process"):
        run(tmp_path / "one", 1, hurts, Policy(), **grid)


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


def _wait(condition, seconds=240.0):
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
    _, err = driver.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert driver.returncode == 130
    assert "Stopping: saving unfinished work" in err
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


# -- how many ---------------------------------------------------------------------------------------


def test_a_surrogate_of_the_run_is_trained_once_and_waited_for(registry):
    given = {"attacks": ("fgsm",), "scenarios": ("clean/transfer",), "surrogate": "maml", "learners": ("adml", "maml")}
    grid = build_grid(RunSpec.read(**{**TINY, **given}), registry, None)
    keys = {cell.key for cell in grid.cells}
    needed = required_trainings([grid], keys)
    assert sorted(each.title for each in needed.values()) == ["adml (seed 0)", "maml (seed 0)"]
    [group] = evaluation_groups([grid], keys, "cpu")
    assert group.needs == set(needed)


@pytest.mark.parametrize(("profile", "worth"), [("smoke", False), ("quick", True), ("paper", True)])
def test_processes_pay_for_all_profiles_but_smoke(registry, profile, worth):
    grid = build_grid(RunSpec.read(profile=profile, attacks=("none", "fgsm"), dataset="toy"), registry, None)
    keys = {cell.key for cell in grid.cells}
    work = work_of(evaluation_groups([grid], keys, "cpu"), required_trainings([grid], keys), lambda _: False)
    assert (workers_for("auto", work, CPU, 2) == 2) == worth


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "²"])
def test_a_number_of_jobs_that_cannot_be(text):
    with pytest.raises(BenchError, match="expected auto, or a number of trainings side by side, 1 or more"):
        parse_jobs(text)


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


def test_an_error_of_a_worker_says_where_it_was_raised():
    ours = as_exception(WorkerFailed("StorageError", "no space", "the trace"))
    assert (type(ours), str(ours)) == (StorageError, "no space")
    assert "the trace" in ours.__notes__[0]
    assert str(as_exception(WorkerFailed("ZeroDivisionError", "oh", ""))) == "ZeroDivisionError: oh"


def test_cores_of_a_worker_that_waits_go_to_the_others():
    from types import SimpleNamespace

    class Worker:
        def use(self, cores):
            self.cores = cores

    states, shares = {}, []
    group = ProcessGroup(lambda _: Worker(), "w", lambda: None, SimpleNamespace(workers=states), Stop())
    for _ in range(8):
        group._add()
    for busy in (8, 5, 2, 1):
        states |= {f"w.{number}": SimpleNamespace(idle=number >= busy) for number in range(8)}
        group._share(5)
        shares.append({worker.cores for worker in group._alive.values()})
    assert shares == [{1}, {1}, {2}, {5}]
