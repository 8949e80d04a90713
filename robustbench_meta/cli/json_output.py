"""What the commands print for programs: one JSON document; of `bench run` a stream, an object a line."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import typer

from robustbench_meta import __version__
from robustbench_meta.hookspecs import hookimpl

FORMAT = 1
"""Version of what is printed: raised when a field goes or changes its meaning; new fields may come without."""
PROGRESS_SECONDS = 1.0
"""Between two lines about the same work; the first and the last one always come."""


def as_json(value: Any) -> Any:
    """As JSON has it: null for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if hasattr(value, "item"):  # a number of NumPy's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float | None) else str(value)


def print_document(stream: TextIO, **told: Any) -> None:
    """Write one document."""
    document = {"format": FORMAT, "robustbench_meta": __version__, **as_json(told)}
    stream.write(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


@contextlib.contextmanager
def alone_on_stdout() -> Iterator[TextIO]:
    """Stdout for the one who is given it; what anything else prints inside, such as a plugin, goes to stderr."""
    ours = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield ours


class Events:
    """The stream of `bench run --json`: a listener to the events that any plugin can hear.

    Args:
        stream: where lines go.
        progress: False for a stream without the lines about progress.
        clock: gives seconds.
    """

    def __init__(
        self, stream: TextIO, *, progress: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._stream, self._progress, self._clock = stream, progress, clock
        self._began = clock()
        self._last: dict[tuple[str, str], float] = {}

    def emit(self, event: str, /, **facts: Any) -> None:
        """Write one line, at once."""
        seconds = round(self._clock() - self._began, 3)
        line = json.dumps({"format": FORMAT, "event": event, "seconds": seconds, **as_json(facts)}, allow_nan=False)
        self._stream.write(line + "\n")
        self._stream.flush()

    @hookimpl
    def run_started(self, run: Mapping[str, Any], cells: int, work: Sequence[Mapping[str, Any]]) -> None:
        """What is to do."""
        self.emit("started", robustbench_meta=__version__, cells=cells, work=work, run=run)

    @hookimpl
    def training_progress(self, training: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """How far a training is."""
        if self._due("train", training, step in {0, steps}):
            self.emit("training_progress", training=training, step=step, steps=steps, metrics=metrics)

    @hookimpl
    def evaluation_progress(self, training: str, done: int, total: int) -> None:
        """How far an evaluation is."""
        if self._due("test", training, done in {0, total}):
            self.emit("evaluation_progress", training=training, done=done, total=total)

    @hookimpl
    def cell_finished(self, record: Mapping[str, Any]) -> None:
        """Which cell is done; its numbers are among the rows of `finished`."""
        spec, labels = record["spec"], record["labels"]
        self.emit(
            "cell_finished", spec_hash=record["key"], learner=labels["learner"], attack=labels["attack"],
            eps=labels["eps"], support=spec["support"], query=spec["query"], seed=spec["training"]["seed"],
        )  # fmt: skip

    @hookimpl
    def cell_failed(self, labels: Mapping[str, Any], training: str, reason: str) -> None:
        """Which cell failed, and why."""
        self.emit("cell_failed", **labels, training=training, reason=reason)

    def _due(self, stage: str, training: str, always: bool) -> bool:
        now = self._clock()
        if not self._progress or (not always and now - self._last.get((stage, training), -math.inf) < PROGRESS_SECONDS):
            return False
        self._last[stage, training] = now
        return True


@contextlib.contextmanager
def streaming(wanted: bool, *, progress: bool = True) -> Iterator[Events | None]:
    """The stream of a run, if it is wanted; what goes wrong inside is its last line."""
    if not wanted:
        yield None
        return
    from robustbench_meta.cli import explain

    with alone_on_stdout() as stream:
        events = Events(stream, progress=progress)
        try:
            yield events
        except Exception as error:
            if not isinstance(error, typer.Exit):
                message, code = explain(error)
                events.emit("error", message=message, exit_code=code)
            raise
