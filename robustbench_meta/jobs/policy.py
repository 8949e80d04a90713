"""How a run is done, and what another process needs to know to work on it. Plain data, and no import of torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.options import Jobs

RECIPE = "recipe.json"
"""In the folder of a run: how its workers make the grids again."""


@dataclass(frozen=True)
class Policy:
    """How a run is done: nothing that changes a number."""

    executor: str = "local"
    """A launcher by name, with options, see `robustbench_meta.jobs.launchers`."""
    jobs: Jobs = 1
    """How many workers there are."""
    cell_timeout: float | None = None
    """The seconds that a cell's evaluation may take, or a meta-step; None: any."""
    fresh: bool = False
    """Whether to forget what is kept of the run's cells and trainings, and begin anew."""
    retry_failed: bool = False
    """Whether to try again what failed in an earlier run."""
    exit_when_waiting: bool = False
    """Whether to end when other runs are at work on all that is left."""


class Recipe(BaseModel):
    """All that another process needs to work on a run. It may be on another machine that sees the same folders."""

    model_config = ConfigDict(frozen=True)
    runs: tuple[RunSpec, ...]
    """The parts."""
    cells: tuple[str, ...]
    """The keys of those that are to be done."""
    results: Path
    device: str
    plugins: Path | None = None
    data_root: Path | None = None
    local_plugins: bool = True
    cell_timeout: float | None = None
    exit_when_waiting: bool = False
    folder: Path = Path()
    """From which the run was started."""
    environment: dict[str, str] = {}
    log_level: int = 30

    @classmethod
    def settings(cls) -> dict[str, str]:
        """Of the environment, what is to be the same for all workers."""
        return {name: value for name, value in os.environ.items() if name.startswith("ROBUSTBENCH_META_")}
