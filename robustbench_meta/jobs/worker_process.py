"""A worker as a process of its own: it finds its run in a recipe, and ends with its standard input."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

from robustbench_meta.engine.parallel import Cores
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.grid import Grid, prepare_all
from robustbench_meta.jobs.context import WorkerContext
from robustbench_meta.jobs.events import (
    EventLog,
)
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.output import as_events, muted
from robustbench_meta.jobs.policy import RECIPE, Recipe
from robustbench_meta.jobs.processes import exit_code
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.jobs.worker import Worker, reporting
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.cpu import computing_alone
from robustbench_meta.runtime.devices import choose_device
from robustbench_meta.runtime.interrupts import Stop


def main(folder: Path, name: str) -> int:
    """The whole life of a worker process, which ends with its standard input; its exit code.

    Args:
        folder: of the run, with the recipe.
        name: of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the process that was started, which ends its workers
    stop, cores = Stop(), _Cores()
    log = EventLog(folder / f"{name}.jsonl", stop)
    threading.Thread(target=cores.read, name="read the number of cores", daemon=True).start()
    try:
        with reporting(log), stop.listening(signals=(signal.SIGTERM,)):
            recipe = Recipe.model_validate_json((folder / RECIPE).read_bytes())
            with muted(), stop.at_once():  # the process that was started has said what there is to say
                grids = grids_of(recipe)
                place = WorkerContext(
                    Store(recipe.results), choose_device(cores.device or recipe.device), cores.cores, stop
                )
            with as_events(log, recipe.log_level), computing_alone(place.device):
                queue = Queue(grids, place.store, recipe.cells, place.device.type, log)
                monitor = Monitor(folder, recipe.cell_timeout)
                Worker(place, queue, monitor, exit_when_waiting=recipe.exit_when_waiting).work()
        return 0
    except BaseException as error:
        return exit_code(error)


def grids_of(recipe: Recipe) -> list[Grid]:
    """The parts of a run, made again.

    Raises:
        BenchError: they cannot be made, or are not the same any more.
    """
    registry = load_registry(recipe.plugins, local=recipe.local_plugins)
    grids = prepare_all(recipe.runs, registry, recipe.data_root)
    if not set(recipe.cells) <= {cell.key for grid in grids for cell in grid.cells}:
        raise BenchError(
            "a worker makes other cells of this run: code, data or plugins changed while it was under way, or are not "
            f"the same on {socket.gethostname()}; rerun the same command"
        )
    return grids


class _Cores:
    """How many cores a worker process may use at the moment: it is told on its standard input, by lines.

    Not read through `sys.stdin`, whose lock a fork would inherit, and wait for.
    """

    def __init__(self) -> None:
        self._rest = b""
        count, self.device = (self._line() or "1 ").split(" ")
        self._count = int(count)
        self.cores = Cores(lambda: self._count)

    def read(self) -> None:
        """Read numbers; when there are no more, the process that started this one is gone: end at once."""
        while (line := self._line()) is not None:
            self._count = int(line)
        os._exit(1)

    def _line(self) -> str | None:
        while b"\n" not in self._rest:
            data = os.read(0, 4096)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()
