"""A worker as a process of its own: it makes the grids again from the run's recipe, and ends with its input."""

from __future__ import annotations

import os
import signal
import socket
import threading
from io import FileIO
from pathlib import Path

from robustbench_meta.engine.parallel import Cores
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.grid import Grid, prepare_all
from robustbench_meta.jobs.context import WorkerContext
from robustbench_meta.jobs.events import EventLog
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.output import as_events, muted
from robustbench_meta.jobs.policy import RECIPE, Recipe
from robustbench_meta.jobs.processes import exit_code
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.jobs.worker import Worker, failure_as_event
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.cpu import computing_alone
from robustbench_meta.runtime.devices import choose_device
from robustbench_meta.runtime.interrupts import Stop


def main(folder: Path, name: str) -> int:
    """The whole life of a worker process; its exit code.

    Args:
        folder: of the run, with the recipe.
        name: of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the process that was started, which ends its workers
    stop, cores = Stop(), _CoresOnInput()
    log = EventLog(folder / f"{name}.jsonl", stop)
    threading.Thread(target=cores.read, name="read the number of cores", daemon=True).start()
    try:
        with failure_as_event(log), stop.listening(signals=(signal.SIGTERM,)):
            recipe = Recipe.model_validate_json((folder / RECIPE).read_bytes())
            with muted(), stop.at_once():  # the process that was started has said what there is to say
                grids = grids_of(recipe)
                device = choose_device(cores.device or recipe.device)
                context = WorkerContext(Store(recipe.results), device, cores.cores, stop)
            with as_events(log, recipe.log_level), computing_alone(device):
                queue = Queue(grids, context.store, recipe.cells, device.type, log)
                monitor = Monitor(folder, recipe.cell_timeout)
                Worker(context, queue, monitor, exit_when_waiting=recipe.exit_when_waiting).work()
        return 0
    except BaseException as error:
        return exit_code(error)


def grids_of(recipe: Recipe) -> list[Grid]:
    """The parts of a run, made again.

    Raises:
        BenchError: they cannot be made, or differ from those of the run.
    """
    registry = load_registry(recipe.plugins, local=recipe.local_plugins)
    grids = prepare_all(recipe.runs, registry, recipe.data_root)
    if not set(recipe.cells) <= {cell.key for grid in grids for cell in grid.cells}:
        raise BenchError(
            "a worker makes other cells of this run: code, data or plugins changed while it was under way, or are not "
            f"the same on {socket.gethostname()}; rerun the same command"
        )
    return grids


class _CoresOnInput:
    """How many cores a worker process may use at the moment: the last line of its standard input.

    Without a buffer: a fork would inherit its lock, and wait for it.
    """

    def __init__(self) -> None:
        self._lines = FileIO(0, closefd=False)
        count, self.device = (self._lines.readline().decode() or "1 ").rstrip("\n").split(" ")
        self._count = int(count)
        self.cores = Cores(lambda: self._count)

    def read(self) -> None:
        """Read numbers; when there are no more, the process that started this one is gone: end at once."""
        for line in self._lines:
            self._count = int(line)
        os._exit(1)
