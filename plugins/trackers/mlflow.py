"""Trainings and cells as runs of MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any, ClassVar

from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts.tracker import Tracker
from robustbench_meta.errors import BenchError
from robustbench_meta.results.tracker_helpers import cell_key, cell_title, results_of, settings_of

TRAINING, CELL = "robustbench_meta.training", "robustbench_meta.cell"
"""The tags that say what a run is; their values are keys."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}  # fmt: skip
"""Unless the user's environment says otherwise: tell nobody, and do not hold up a run for minutes."""
_LONGEST = 5000
"""Characters of a tag's value."""


class MLflow(Tracker):
    """A run for each training, with its learning curve, and below it one for each cell, with its numbers and flags."""

    name: ClassVar[str] = "mlflow"
    source: ClassVar[str] = "https://mlflow.org"

    uri: str | None = Field(None, description="the tracking URI, as MLflow's; none: files in mlflow/ of the results")
    experiment: str = Field("robustbench_meta", min_length=1, description="the experiment of its runs")

    def listener(self) -> object:
        """An experiment."""
        if find_spec("mlflow") is None:
            raise BenchError(
                "--track mlflow needs the package mlflow-skinny (or mlflow), which is not installed: "
                "python -m pip install mlflow-skinny; docs/trackers.md says what pip says then"
            )
        return Experiment(self.uri, self.experiment)


class Experiment:
    """An experiment of MLflow: the events of a training go to one run, from whichever process and however often."""

    def __init__(self, uri: str | None, name: str) -> None:
        self._uri, self._name = uri, name
        self._client: Any = None
        self._id = ""
        """Of the experiment; none if it could not be opened, and then there is nothing to be done."""
        self._trainings: Mapping[str, Mapping[str, Any]] = {}
        self._runs: dict[str, str] = {}
        """MLflow's name of each training's run."""
        self._told: dict[str, set[float]] = {}
        """Of each training the steps whose numbers are logged."""
        self._lent: dict[str, str] = {}
        """What the environment has of us until the run is over."""

    @hookimpl
    def run_started(self, results: str, trainings: Mapping[str, Mapping[str, Any]]) -> None:
        """Open the experiment, or make it."""
        uri, wanted = self._uri, dict(_QUIET)
        if uri is None:
            wanted["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow would rather have a database
            uri = (Path(results) / "mlflow").resolve().as_uri()
        self._lent = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(self._lent)
        from mlflow import MlflowClient  # noqa: PLC0415  # takes seconds

        self._client = MlflowClient(uri)
        found = self._client.get_experiment_by_name(self._name)
        self._id = found.experiment_id if found is not None else self._client.create_experiment(self._name)
        self._trainings = trainings

    @hookimpl
    def training_progress(self, key: str, metrics: Mapping[str, float]) -> None:
        """Log the numbers of a validation, once."""
        if metrics and self._id:
            self._points(key, [metrics])

    @hookimpl
    def cell_finished(self, record: Mapping[str, Any]) -> None:
        """Log what of its training's curve was told to nobody, or to another run; and the cell, as a run of its own."""
        if not self._id:
            return
        self._points(record["training"], record["history"])
        spec, labels = record["spec"], record["labels"]
        title = cell_title(spec, labels["attack"], labels["eps"])
        tags = {"flags": " ".join(record["flags"])}
        run = self._cell(record["training"], record["key"], title, _scenario(spec) | labels, tags)
        self._log(run, results_of(record), 0)
        self._client.set_terminated(run, "FINISHED")

    @hookimpl
    def cell_failed(self, cell: Mapping[str, Any], labels: Mapping[str, Any], reason: str) -> None:
        """Log the cell as a run that failed, and why."""
        if not self._id:
            return
        title = cell_title(cell, labels["attack"], labels["eps"])
        params = _scenario(cell) | {name: labels[name] for name in ("learner", "attack", "eps")}
        tags = {"reason": reason[:_LONGEST]}
        run = self._cell(cell_key(cell["training"]), labels["spec_hash"], title, params, tags)
        self._client.set_terminated(run, "FAILED")

    @hookimpl
    def run_finished(self) -> None:
        """End the runs of trainings, those that did not get to their end as killed; the environment is as it was."""
        try:
            for key, run in self._runs.items():
                over = self._trainings[key]["spec"]["meta_steps"] in self._told[key] | {0}
                self._client.set_terminated(run, "FINISHED" if over else "KILLED")
        finally:
            for name in self._lent:
                os.environ.pop(name, None)

    def _points(self, key: str, entries: list[Mapping[str, float]]) -> None:
        run = self._training(key)
        for entry in entries:
            if entry["step"] not in self._told[key]:
                self._told[key].add(entry["step"])
                self._log(run, {name: value for name, value in entry.items() if name != "step"}, int(entry["step"]))

    def _training(self, key: str) -> str:
        """The run of a training: that of an earlier time goes on."""
        if key not in self._runs:
            about = self._trainings[key]
            found = self._find(TRAINING, key)
            if found is None:
                run = self._new(about["title"], {TRAINING: key}, settings_of(about["spec"]))
                self._told[key] = set()
            else:
                run = found
                self._client.update_run(run, status="RUNNING")
                self._told[key] = {float(each.step) for each in self._client.get_metric_history(run, "validation_loss")}
            self._runs[key] = run
        return self._runs[key]

    def _cell(
        self, training: str, key: str, title: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str:  # fmt: skip
        """A new run for a cell, below that of its training; an older one of the same cell is removed."""
        earlier = self._find(CELL, key)
        if earlier is not None:
            self._client.delete_run(earlier)
        return self._new(title, {CELL: key, "mlflow.parentRunId": self._training(training), **tags}, params)

    def _find(self, tag: str, key: str) -> str | None:
        found = self._client.search_runs([self._id], f"tags.`{tag}` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _new(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        from mlflow.entities import Param  # noqa: PLC0415  # takes seconds

        run = self._client.create_run(self._id, tags=dict(tags), run_name=name).info.run_id
        self._client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])
        return str(run)

    def _log(self, run: str, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415  # takes seconds

        now = int(1000 * time())
        self._client.log_batch(run, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])


def _scenario(spec: Mapping[str, Any]) -> dict[str, Any]:
    training = {name: spec["training"][name] for name in ("way", "shot", "seed")}
    return {**training, "scenario": f"{spec['support']}/{spec['query']}", "episodes": spec["episodes"]}


@hookimpl
def register_trackers(register: Callable[[type[Tracker]], None]) -> None:
    """Bring `mlflow`."""
    register(MLflow)
