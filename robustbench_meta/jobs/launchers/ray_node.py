"""What a task of Ray does on its node: one worker in a process of its own, as on this machine."""

from __future__ import annotations

import os
import traceback
from functools import cache
from pathlib import Path
from typing import Any

from robustbench_meta.errors import BenchError
from robustbench_meta.jobs.events import EventLog
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.output import muted
from robustbench_meta.jobs.policy import RECIPE, Recipe
from robustbench_meta.jobs.processes import ProcessGroup, Spawned
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.jobs.worker_process import grids_of
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.devices import choose_device
from robustbench_meta.runtime.interrupts import Stop, Stopped

PAUSE_SECONDS = 0.5
"""Between two looks at the worker, on a file system that others use, too."""
STOP = "stop"
"""The file in the folder of a run that tells workers on other machines to stop."""


def run_worker(name: str, folder: str, cpus: int, device: str) -> dict[str, Any]:
    """Run a worker until nothing is left for it.

    Args:
        name: of the task.
        folder: of the run.
        cpus: the worker's cores.
        device: cpu or cuda.

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
        place = str(choose_device(device))
    except BenchError as error:
        return {"unfit": str(error)}
    log, monitor = EventLog(run / f"{name}.jsonl"), Monitor(run, recipe.cell_timeout)

    @cache
    def queue() -> Queue:
        with muted():
            return Queue(grids_of(recipe), Store(recipe.results), recipe.cells, place.partition(":")[0], log)

    def start(worker: str) -> Spawned:
        return Spawned(run, worker, cpus, place)

    try:
        ProcessGroup(start, name, queue, monitor, Stop(), (run / STOP).exists).run(1, pause=PAUSE_SECONDS)
    except Stopped:
        return {}
    except Exception as error:
        if not any(each.startswith(f"{name}.") for each in monitor.started):  # it could not even begin
            return {"unfit": str(error)}
        return {"failed": {"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}}
    finally:
        log.close()
    return {}
