"""Where the trainings of a run are done: in this process, or side by side in others.

An executor is given jobs, which are plain data, and tells what becomes of them. It writes no records and calls no
hooks: its caller does, in one place, whatever the executor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from robustbench_meta.spec import RunSpec

Hear = Callable[..., None]
"""Is told an event by its name, and plain data by keyword."""


@dataclass(frozen=True)
class Job:
    """One training with those of its cells that are still to do: what one worker does at a time. Plain data."""

    training: str
    """Its key."""
    title: str
    """Its name in messages."""
    cells: tuple[str, ...]
    """Their keys."""
    cost: int
    """A guess of how much work it is, to be compared with that of other jobs only."""


@dataclass(frozen=True)
class Recipe:
    """All that another process needs to make the grid of a run again. Plain data."""

    run: RunSpec
    plugins: Path | None
    data_root: Path | None
    results: Path
    """The folder of the checkpoints, which all workers must see."""
    device: str


class Executor(Protocol):
    """Does the jobs of one run."""

    def run(self, jobs: Sequence[Job], hear: Hear) -> None:
        """Do all jobs; return when the last one is over, and leave nothing behind however it ends.

        Args:
            jobs: what there is to do, in the order of the grid.
            hear: is told, in this process and one at a time, `training_progress` and
                `evaluation_progress` as the hooks of that name, and of each cell either
                `cell_finished(record)` or `cell_failed(key, reason)`.

        Raises:
            StorageError: a checkpoint cannot be written.
            BenchError: no worker can be started.
        """
        ...
