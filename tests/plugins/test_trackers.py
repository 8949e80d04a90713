"""Trackers keep what a run tells, read back here by the tools' own libraries."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec

import pandas as pd
import pytest

import robustbench_meta as rbm
from robustbench_meta import hookimpl
from robustbench_meta.cli import main
from robustbench_meta.contracts.tracker import Tracker
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.options import parse_choice
from robustbench_meta.plugins.trackers.mlflow import Experiment
from robustbench_meta.registry.registry import load_registry

STEPS = 4
RUN = ("run", "--profile", "smoke", "-l", "maml", "-a", "none", "-a", "fgsm", "-a", "sulky", "--no-checks",
       "--meta-steps", STEPS, "--episodes", "4", "--device", "cpu")  # fmt: skip
OWN = '''
from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack
from robustbench_meta.contracts.tracker import Tracker

class Sulky(Attack):
    """It fails."""
    name = "sulky"

    def perturb(self, model, x, y, threat, random):
        raise ValueError("not [today](https://example.org)")

class Broken:
    @hookimpl
    def training_progress(self, step):
        raise OSError("the disk is full")

    @hookimpl
    def cell_finished(self, record):
        raise OSError("the disk is full")

class Raising(Tracker):
    """It raises."""
    name = "raising"

    def listener(self):
        return Broken()

class Deaf(Tracker):
    """It hears nothing."""
    name = "deaf"

    def listener(self):
        return object()

class Lazy(Tracker):
    """It does not even begin."""
    name = "lazy"

    def listener(self):
        raise ValueError("not today")

@hookimpl
def register_attacks(register):
    register(Sulky)

@hookimpl
def register_trackers(register):
    register(Raising)
    register(Deaf)
    register(Lazy)
'''


def bench(*arguments):
    out, code = io.StringIO(), 0
    warnings = logging.StreamHandler(out)
    logging.getLogger("robustbench_meta").addHandler(warnings)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    logging.getLogger("robustbench_meta").removeHandler(warnings)
    return code, out.getvalue()


def tracked(folder, *trackers, fresh=False):
    """A run with a cell that fails, and two that do not; its records by attack."""
    (folder / "plugins").mkdir(exist_ok=True)
    (folder / "plugins" / "own.py").write_text(OWN)
    with contextlib.chdir(folder):
        code, shown = bench(*RUN, *(word for each in trackers for word in ("--track", each)), *["--fresh"] * fresh)
    assert code == 1, shown
    found = [json.loads(path.read_text()) for path in (folder / "results" / "records").glob("*.json")]
    return {record["labels"]["attack"]: record for record in found}, shown


def curve(records):
    """What was validated when, by name."""
    history = records["fgsm"]["history"]
    return {
        name: [(int(entry["step"]), pytest.approx(entry[name])) for entry in history]
        for name in history[0]
        if name != "step"
    }


# -- TensorBoard -----------------------------------------------------------------------------------


def logs(root):
    """Every log below a folder by its path there, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for place in sorted({path.parent for path in root.rglob("events.out.tfevents.*")}):
        found[str(place.relative_to(root))] = EventAccumulator(str(place))
        found[str(place.relative_to(root))].Reload()
    return found


def scalars(log):
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("tensorboard")
    records, shown = tracked(folder, "tensorboard", "raising")
    return folder, records, shown


def test_tensorboard_has_the_learning_curve_and_each_cell(boards):
    folder, records, _ = boards
    found = logs(folder / "results" / "tensorboard")
    training = f"maml (seed 0) {records['fgsm']['training'][:8]}"
    assert len(found) == 4, "a training and three cells"
    assert scalars(found[training]) == curve(records)
    rows = pd.read_csv(folder / "results" / "leaderboard.csv").set_index("attack")
    for attack, eps, scenario in (("none", "0", "clean clean"), ("fgsm", "0.1", "clean adv")):
        cell = scalars(found[f"{training}/{attack} eps={eps} {scenario} {records[attack]['key'][:8]}"])
        for column in ("clean_accuracy", "clean_ci95", "robust_accuracy", "robust_ci95"):
            assert cell[column] == [(0, pytest.approx(rows.loc[attack, column], abs=1e-5))]


def test_tensorboard_has_the_settings_and_flags_of_a_cell_as_hyperparameters(boards):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    folder, records, _ = boards
    (log,) = [log for name, log in logs(folder / "results" / "tensorboard").items() if "fgsm" in name]
    content = log.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["learner"].string_value == "maml"
    assert told["learner.alpha"].number_value == 0.4
    assert told["scenario"].string_value == "clean/adv"
    assert told["flags"].string_value.split() == records["fgsm"]["flags"]


def test_tensorboard_tells_why_a_cell_failed_and_its_link_is_no_link(boards):
    (log,) = [log for name, log in logs(boards[0] / "results" / "tensorboard").items() if "sulky" in name]
    (told,) = log.Tensors("failed/text_summary")
    text = told.tensor_proto.string_val[0].decode()
    assert "not [today](https://example.org)" in text
    assert text.startswith("    "), "it is code"


def test_a_tracker_that_raises_costs_a_warning(boards):
    assert "1 failed" in boards[2]
    for event in ("training_progress", "cell_finished"):
        told = f"plugin tracker raising failed in {event}, the run goes on: OSError: the disk is full"
        assert " ".join(boards[2].split()).count(told) == 1


def test_what_is_told_again_takes_the_place_of_what_was_there(boards):
    folder, records, _ = boards
    root = folder / "results" / "tensorboard"
    before = {name: scalars(log) for name, log in logs(root).items()}
    files = len(list(root.rglob("events.out.tfevents.*")))
    tracked(folder, "tensorboard", fresh=True)
    after = {name: scalars(log) for name, log in logs(root).items()}
    assert len(list(root.rglob("events.out.tfevents.*"))) > files
    assert set(before) == set(after)
    for name, told in after.items():
        assert {tag: [step for step, _ in points] for tag, points in told.items()} == {
            tag: [step for step, _ in points] for tag, points in before[name].items()
        }
    assert after[f"maml (seed 0) {records['fgsm']['training'][:8]}"] == curve(records)


def test_a_training_that_nobody_followed_is_logged_with_its_first_cell(tmp_path):
    pytest.importorskip("tensorboard")
    tracked(tmp_path)
    with contextlib.chdir(tmp_path):
        code, _ = bench(*RUN, "--eps", "0.2", "--track", "tensorboard:dir=elsewhere")
    assert code == 1
    records, _ = tracked(tmp_path)
    (training,) = [log for name, log in logs(tmp_path / "elsewhere").items() if "/" not in name]
    assert scalars(training) == curve(records)
    assert not (tmp_path / "results" / "tensorboard").exists()


# -- MLflow ----------------------------------------------------------------------------------------


def runs(folder):
    """The runs below a results folder, by name, as MLflow reads them."""
    from mlflow import MlflowClient

    client = MlflowClient((folder / "results" / "mlflow").resolve().as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "robustbench_meta"]
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "no run twice"
    return client, {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    pytest.importorskip("mlflow", reason="mlflow-skinny cannot be installed beside torchattacks in one step")
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        records, _ = tracked(folder, "mlflow")
        first = runs(folder)[1]
        tracked(folder, "mlflow", fresh=True)
        yield folder, records, first


def test_mlflow_has_a_run_for_the_training_and_below_it_one_for_each_cell(experiment):
    folder, records, _ = experiment
    client, found = runs(folder)
    training = found["maml (seed 0)"]
    assert set(found) == {
        "maml (seed 0)",
        "none eps=0 clean/clean",
        "fgsm eps=0.1 clean/adv",
        "sulky eps=0.1 clean/adv",
    }
    assert training.info.status == "FINISHED"
    assert (training.data.params["learner.alpha"], training.data.params["meta_steps"]) == ("0.4", str(STEPS))
    for name, points in curve(records).items():
        history = client.get_metric_history(training.info.run_id, name)
        assert sorted((each.step, each.value) for each in history) == points, "once each, though it was trained twice"
    cell = found["fgsm eps=0.1 clean/adv"]
    assert cell.data.tags["mlflow.parentRunId"] == training.info.run_id
    assert cell.data.tags["flags"].split() == records["fgsm"]["flags"]
    rows = pd.read_csv(folder / "results" / "leaderboard.csv").set_index("attack")
    for column in ("clean_accuracy", "clean_ci95", "robust_accuracy", "robust_ci95"):
        assert cell.data.metrics[column] == pytest.approx(rows.loc["fgsm", column], abs=1e-5)


def test_mlflow_has_the_cell_that_failed_and_why(experiment):
    failed = runs(experiment[0])[1]["sulky eps=0.1 clean/adv"]
    assert failed.info.status == "FAILED"
    assert "not [today]" in failed.data.tags["reason"]


def test_mlflow_goes_on_with_the_run_of_the_same_training(experiment):
    folder, _, first = experiment
    again = runs(folder)[1]
    assert again["maml (seed 0)"].info.run_id == first["maml (seed 0)"].info.run_id


@pytest.mark.parametrize("started", [True, False])
def test_mlflow_leaves_the_environment_as_it_was(tmp_path, monkeypatch, started):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    before, listener = dict(os.environ), Experiment(None, "mine")
    if started:
        with contextlib.suppress(ModuleNotFoundError):  # MLflow need not be there
            listener.run_started(str(tmp_path), {})
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3", "the user's own"
    listener.run_finished()
    assert dict(os.environ) == before


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_what_is_missing_is_told_before_anything_is_done(tmp_path):
    with contextlib.chdir(tmp_path):
        code, shown = bench(*RUN[:3], "--track", "mlflow")
    assert code == 2
    assert "--track mlflow needs the package mlflow-skinny (or mlflow), which is not installed" in shown
    assert list(tmp_path.iterdir()) == []


# -- when there is none ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tensorbord", "unknown tracker 'tensorbord': did you mean 'tensorboard'?"),
        ("tensorboard:folder=x", "unknown option 'folder' of tracker 'tensorboard'"),
        ("deaf", "it implements no hook of robustbench_meta"),
        ("lazy", "tracker 'lazy' failed to begin: ValueError: not today; leave --track lazy out"),
    ],
)
def test_what_cannot_track_is_told(tmp_path, text, told):
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises((BenchError, PluginError), match=told):
        load_registry(tmp_path).attach([text])


def test_a_tracker_given_as_a_class_hears_a_run_of_several_jobs(tmp_path):
    events = []

    class Here:
        @hookimpl
        def cell_finished(self, record):
            events.append((os.getpid(), record["labels"]["attack"]))

    scope = {"Tracker": Tracker, "Here": Here, "heard": events}
    source = "class Given(Tracker):\n    name = 'given'\n    def listener(self): return Here()\n"
    exec(source, scope)  # nobody can tell what its code is, and nobody needs to
    rbm.run(
        learner="protonet", attack=["none", "fgsm"], profile="smoke", meta_steps=2, episodes=2, checks=False,
        device="cpu", track=scope["Given"], jobs=2, results=tmp_path, local_plugins=False,
    )  # fmt: skip
    assert sorted(events) == [(os.getpid(), "fgsm"), (os.getpid(), "none")]


def test_one_tracker_that_is_asked_for_twice_hears_once(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    registry = load_registry(tmp_path)
    registry.attach(["raising", " raising"])
    assert str(parse_choice(" raising")) == "raising"
    assert len(registry.manager.hook.cell_finished.get_hookimpls()) == 1


def test_trackers_cost_nothing_when_they_are_not_asked_for():
    code = (
        "import sys; from robustbench_meta.registry.registry import load_registry; "
        "registry = load_registry(local=False);"
        "print([registry.get('tracker', name).summary() for name in registry.names('tracker')]);"
        "print(*sorted({'tensorboard', 'mlflow', 'tensorflow'} & set(sys.modules)), 'loaded');"
        "print(len(registry.manager.hook.training_progress.get_hookimpls()), 'listeners')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[1:] == ["loaded", "0 listeners"]


def test_trackers_are_listed():
    code, shown = bench("list", "trackers", "--no-local-plugins")
    assert code == 0
    assert "TRACKERS (2)" in shown
    assert "uri=none, experiment=robustbench_meta" in shown
