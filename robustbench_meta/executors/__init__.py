"""Where the work of a run is done: in this process, side by side in others, or on other machines.

An executor brings workers. What there is to do, and what becomes of it, is at the desk (`robustbench_meta.desk`), in
the process that was started by the user: it alone writes records and calls hooks, whatever the executor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from robustbench_meta.options import Jobs
from robustbench_meta.spec import RunSpec

if TYPE_CHECKING:
    from robustbench_meta.desk import Desk

Hear = Callable[..., None]
"""Is told an event by its name, and plain data by keyword: those of `robustbench_meta.desk.Desk.hear`."""


@dataclass(frozen=True)
class Task:
    """What one worker does at a time: one meta-training, or the evaluation of some cells. Plain data."""

    training: str
    """The key of the training, or of that whose cells are evaluated."""
    title: str
    """Its name in messages."""
    cells: tuple[str, ...] = ()
    """The keys of the cells to evaluate; none: to meta-train."""
    needs: tuple[str, ...] = ()
    """The keys of the trainings whose checkpoints an evaluation reads."""
    cost: int = 0
    """A guess of how much work it is, and what waits for it, to be compared with that of other tasks only."""


@dataclass(frozen=True)
class Recipe:
    """All that another process needs to make the grid of a run again. Plain data."""

    run: RunSpec
    plugins: Path | None
    data_root: Path | None
    results: Path
    """The results folder; also a path on other machines only where they share a file system."""
    device: str
    local_plugins: bool = True


@dataclass(frozen=True)
class Policy:
    """How a run is done: nothing that changes a number."""

    executor: str = "local"
    """A name with options, see `robustbench_meta.executors.choice`."""
    jobs: Jobs = 1
    """How many trainings are done side by side. More than one go to processes of their own, which make the grid
    again; a script that asks for this needs `if __name__ == "__main__":`."""
    cell_timeout: float | None = None
    """The seconds that a cell's evaluation may take, or a meta-step; None: any."""
    fresh: bool = False
    """Whether to forget what is kept of the run's cells and trainings, and begin anew."""
    retry_failed: bool = False
    """Whether to try again what failed in an earlier run."""


class Executor(Protocol):
    """Brings workers for one run."""

    @property
    def slots(self) -> int:
        """How many tasks it would like to do at a time."""
        ...

    def run(self, desk: Desk) -> None:
        """Do what the desk gives until it has no more; leave nothing behind however this ends.

        Each worker, named by anything hashable, is given a task by `desk.next`; what it tells goes to `desk.hear`,
        and `desk.over`, `desk.died` or `desk.expired` says how it ended. All of it in the thread of the caller.

        Raises:
            Stopped: the desk's `stop` was told, and the work under way has been kept.
            StorageError: something cannot be written.
            BenchError: no worker can be started.
        """
        ...
