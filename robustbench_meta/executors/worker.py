"""A worker process: makes the grid from its recipe, then does tasks until there are none.

It speaks with its driver over a pipe. It sends (kind, facts): `idle` when it wants a task, the events of the
work, and `log`, `warning` and `print` for what it has to say, so that this looks as if nothing ran elsewhere. It
gets a task, or None for the end. At SIGTERM it keeps what is under way and ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from robustbench_meta.cores import computing_alone
from robustbench_meta.devices import choose_device
from robustbench_meta.errors import DeviceLostError
from robustbench_meta.executors import Recipe
from robustbench_meta.executors.speech import Line, Paced, muted, speaking_through
from robustbench_meta.grid import prepare
from robustbench_meta.lanes import Lanes
from robustbench_meta.registry import load_registry
from robustbench_meta.shelf import Folder
from robustbench_meta.stopping import Stop, Stopped
from robustbench_meta.work import Workplace, do_task

SAFE_PATH, OURS = "PYTHONSAFEPATH", "robustbench_meta"
"""Python's variable that keeps the working folder out of imports, and what it is set to where only a start needs it."""


def serve(pipe: Connection, recipe: Recipe, lanes: Any, level: int) -> None:
    """The whole life of a worker.

    Args:
        pipe: to the driver.
        recipe: of the run.
        lanes: a shared value: how many threads this worker may use at the moment.
        level: of the log messages that the driver wants.
    """
    if os.environ.get(SAFE_PATH) == OURS:
        del os.environ[SAFE_PATH]  # of no concern to what a plugin starts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver, which ends its workers
    _end_with_parent()
    stop = Stop()
    line = Line(pipe, stop)
    try:
        with stop.listening(signals=(signal.SIGTERM,)):
            with muted(), stop.at_once():  # the driver has made the same grid, and said what there is to say about it
                place = _workplace(recipe, Lanes(lambda: int(lanes.value)), stop)
            with speaking_through(line.tell, level), computing_alone(place.device):
                line.tell("idle")
                while (task := line.next()) is not None:
                    do_task(place, task, Paced(line.tell))
                    line.tell("idle")
    except Stopped:
        line.tell("stopped")
    except DeviceLostError:
        line.tell("stopped", why="could not compute on its device any more")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver is gone
    except Exception as error:  # whatever it is, the driver tells it
        line.tell("error", kind=type(error).__name__, message=str(error), trace=traceback.format_exc())


def _workplace(recipe: Recipe, lanes: Lanes, stop: Stop) -> Workplace:
    grid = prepare(recipe.run, load_registry(recipe.plugins, local=recipe.local_plugins), recipe.data_root)
    return Workplace(grid, Folder(recipe.results), choose_device(recipe.device), lanes, stop=stop, watches=True)


def _end_with_parent() -> None:
    """End this process at once when the driver is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watch the driver", daemon=True).start()
