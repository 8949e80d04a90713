"""How a run is done, and what another process needs to know to work on it. Plain data, and no import of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.options import Jobs

RECIPE = "recipe.json"
"""In the folder of a run: how its workers make the grids again."""
STOP = "stop"
"""The same: workers on other machines are to stop."""


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
    """Whether to remove the results of the run's cells and trainings first."""
    retry_failed: bool = False
    """Whether to try again what failed in an earlier run."""
    exit_when_waiting: bool = False
    """Whether to end when other runs are at work on all that is left."""


class Recipe(BaseModel):
    """All that another process needs to work on a run, perhaps on another machine that sees the same folders."""

    model_config = ConfigDict(frozen=True)
    runs: tuple[RunSpec, ...]
    """The parts."""
    cells: tuple[str, ...]
    """The keys of the pending ones."""
    results: Path
    device: str
    plugins: Path | None
    data_root: Path | None
    local_plugins: bool
    cell_timeout: float | None
    exit_when_waiting: bool
    folder: Path
    """From which the run was started."""
    environment: dict[str, str]
    """The variables that are to be the same for all workers."""
    log_level: int
