"""Learning curves and cells for TensorBoard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts.tracker import Tracker
from robustbench_meta.errors import BenchError
from robustbench_meta.results.tracker_helpers import cell_key, cell_title, results_of, settings_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """Learning curves as scalars, and a row in TensorBoard's HPARAMS for each cell."""

    name: ClassVar[str] = "tensorboard"
    source: ClassVar[str] = "https://www.tensorflow.org/tensorboard"

    dir: str | None = Field(None, description="folder of the logs; none: tensorboard in the results folder")

    def listener(self) -> object:
        """A folder of logs."""
        if find_spec("tensorboard") is None:
            raise BenchError(
                "--track tensorboard needs the package tensorboard, which is not installed: "
                "python -m pip install 'robustbench_meta[tensorboard]'"
            )
        return Logs(self.dir)


class Logs:
    """A folder of logs: one for each training, and in it one for each of its cells.

    What a resumed or restarted run logs again takes the place of what was there: a log that is opened
    at a step has TensorBoard drop what earlier ones say of that step and later ones.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._root = Path()
        self._open: dict[str, SummaryWriter] = {}
        self._told: dict[str, list[float]] = {}
        """Of each training the steps whose numbers were logged."""
        self._trainings: Mapping[str, Mapping[str, Any]] = {}

    @hookimpl
    def run_started(self, results: str, trainings: Mapping[str, Mapping[str, Any]]) -> None:
        """Note where to log."""
        self._root = Path(self._folder) if self._folder is not None else Path(results) / "tensorboard"
        self._trainings = trainings

    @hookimpl
    def training_progress(self, key: str, metrics: Mapping[str, float]) -> None:
        """Log the numbers of a validation, once."""
        if metrics and metrics["step"] not in self._told.get(key, []):
            self._point(key, metrics)

    @hookimpl
    def cell_finished(self, record: Mapping[str, Any]) -> None:
        """Log the cell; and all of its training's curve, if some of it was told to nobody, or to another run."""
        key, spec, labels = record["training"], record["spec"], record["labels"]
        if self._told.get(key, []) != [entry["step"] for entry in record["history"]]:
            self._close(key)
            for entry in record["history"]:
                self._point(key, entry)
        settings = {**settings_of(spec["training"]), **{name: str(value) for name, value in labels.items()}}
        settings |= {"eps": labels["eps"], "scenario": f"{spec['support']}/{spec['query']}"}
        settings["flags"] = " ".join(record["flags"])
        title = cell_title(spec, labels["attack"], labels["eps"])
        self._cell(self._place(key, spec) / _folder(title, record["key"]), settings, results_of(record))

    @hookimpl
    def cell_failed(self, cell: Mapping[str, Any], labels: Mapping[str, Any], training: str, reason: str) -> None:
        """Log the reason, as text."""
        title = cell_title(cell, labels["attack"], labels["eps"])
        place = self._place(cell_key(cell["training"]), cell) / _folder(title, labels["spec_hash"])
        with _writer(place, 0) as writer:
            writer.add_text("failed", _quoted(f"{title} on {training}: {reason}"), 0)

    @hookimpl
    def run_finished(self) -> None:
        """Close all."""
        for key in list(self._open):
            self._close(key)

    def _point(self, key: str, entry: Mapping[str, float]) -> None:
        step = int(entry["step"])
        if key not in self._open:
            about = self._trainings[key]
            self._open[key] = _writer(self._root / _folder(about["title"], key), step)
            self._open[key].add_text("training", _quoted(json.dumps(about, indent=1)), step)
        for name, value in entry.items():
            if name != "step":
                self._open[key].add_scalar(name, value, step)
        self._open[key].flush()
        self._told.setdefault(key, []).append(entry["step"])

    def _cell(self, place: Path, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415  # takes a second

        with _writer(place, 0) as writer:
            for summary in hparams(dict(settings), dict(results)):  # type: ignore[no-untyped-call]  # torch types it not
                writer.file_writer.add_summary(summary)
            for name, value in results.items():
                writer.add_scalar(name, value, 0)

    def _place(self, key: str, spec: Mapping[str, Any]) -> Path:
        title = self._trainings[key]["title"] if key in self._trainings else spec["training"]["learner"]["name"]
        return self._root / _folder(title, key)

    def _close(self, key: str) -> None:
        self._told.pop(key, None)
        if key in self._open:
            self._open.pop(key).close()


def _writer(place: Path, step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # takes a second

    return SummaryWriter(str(place), purge_step=step)


def _folder(title: str, key: str) -> str:
    """A name that any file system takes: TensorBoard shows it as the run's."""
    return f"{re.sub(r'[^A-Za-z0-9=.,()_-]+', ' ', title).strip()[:80]} {key[:8]}"


def _quoted(text: str) -> str:
    """As code in Markdown: nothing in it is taken for a link or a picture."""
    return "".join(f"    {line}\n" for line in text.splitlines())


@hookimpl
def register_trackers(register: Callable[[type[Tracker]], None]) -> None:
    """Bring `tensorboard`."""
    register(TensorBoard)
