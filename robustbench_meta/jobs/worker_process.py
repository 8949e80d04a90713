"""A worker as a process of its own, which makes the grids again from the run's recipe: on this machine, or for Ray."""

from __future__ import annotations

import os
import signal
import socket
import threading
import traceback
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

from robustbench_meta.engine.parallel import Cores
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.grid import Grid, build_grids
from robustbench_meta.jobs.context import WorkerContext
from robustbench_meta.jobs.events import EventLog
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.output import as_events, muted
from robustbench_meta.jobs.policy import RECIPE, STOP, Recipe
from robustbench_meta.jobs.processes import ProcessGroup, Spawned, exit_code
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.jobs.worker import Worker, failure_as_event
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.cpu import computing_alone
from robustbench_meta.runtime.devices import choose_device
from robustbench_meta.runtime.interrupts import Stop, Stopped

NODE_POLL_SECONDS = 0.5
"""Between two looks at a worker of Ray, on a file system that others use, too."""


def main(folder: Path, name: str) -> int:
    """The whole life of a worker process of a run with that folder; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the process that was started, which ends its workers
    stop, cores = Stop(), _CoresOnInput()
    log = EventLog(folder / f"{name}.jsonl", stop)
    threading.Thread(target=cores.read, name="read the number of cores", daemon=True).start()
    try:
        with failure_as_event(log), stop.listening(signals=(signal.SIGTERM,)):
            recipe = Recipe.model_validate_json((folder / RECIPE).read_bytes())
            with muted(), stop.at_once():  # the process that was started has said what there is to say
                grids = _grids(recipe)
                device = choose_device(cores.device or recipe.device)
                context = WorkerContext(Store(recipe.results), device, cores.cores, stop)
            with as_events(log, recipe.log_level), computing_alone(device):
                queue = Queue(grids, context.store, recipe.cells, device.type, log)
                monitor = Monitor(folder, recipe.cell_timeout)
                Worker(context, queue, monitor, exit_when_waiting=recipe.exit_when_waiting).work()
        return 0
    except BaseException as error:
        return exit_code(error)


def run_on_node(name: str, folder: str, cpus: int, device: str) -> dict[str, Any]:
    """In a task of Ray, have a worker process with so many cores, until nothing is left for it.

    So the death of a worker differs from that of its node, and a cell that takes too long is ended there.

    Returns:
        Nothing; or `unfit`: why nothing can be done on this node; or `failed`: the facts of a `WorkerFailed`.
    """
    run = Path(folder)
    recipe = Recipe.model_validate_json((run / RECIPE).read_bytes())
    os.environ.update(recipe.environment)
    if not recipe.folder.is_dir():
        return {"unfit": f"it does not see the folder {recipe.folder}, from which the run was started"}
    os.chdir(recipe.folder)
    try:
        chosen = choose_device(device)
    except BenchError as error:
        return {"unfit": str(error)}
    log, monitor = EventLog(run / f"{name}.jsonl"), Monitor(run, recipe.cell_timeout)

    @cache
    def queue() -> Queue:
        with muted():
            return Queue(_grids(recipe), Store(recipe.results), recipe.cells, chosen.type, log)

    def start(worker: str) -> Spawned:
        return Spawned(run, worker, cpus, str(chosen))

    try:
        ProcessGroup(start, name, queue, monitor, Stop(), (run / STOP).exists).run(1, pause=NODE_POLL_SECONDS)
    except Stopped:
        return {}
    except Exception as error:
        if not any(each.startswith(f"{name}.") for each in monitor.started):  # it could not even begin
            return {"unfit": str(error)}
        return {"failed": {"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}}
    finally:
        log.close()
    return {}


def _grids(recipe: Recipe) -> list[Grid]:
    """The parts of a run, made again.

    Raises:
        BenchError: they cannot be made, or differ from those of the run.
    """
    registry = load_registry(recipe.plugins, local=recipe.local_plugins)
    grids = build_grids(recipe.runs, registry, recipe.data_root)
    if not set(recipe.cells) <= {cell.key for grid in grids for cell in grid.cells}:
        raise BenchError(
            "a worker makes other cells of this run: code, data or plugins changed during the run, or are not "
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
