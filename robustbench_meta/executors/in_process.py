"""One job after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from robustbench_meta.cores import computing_alone
from robustbench_meta.executors import Hear, Job
from robustbench_meta.grid import Grid
from robustbench_meta.lanes import Lanes
from robustbench_meta.store import Store
from robustbench_meta.work import Workplace, do_job


class InProcess:
    """Does jobs in the order of the grid; a training has all cores."""

    def __init__(self, grid: Grid, store: Store, device: torch.device, cores: int) -> None:
        self._place = Workplace(grid, store, device, Lanes(lambda: cores))

    def run(self, jobs: Sequence[Job], hear: Hear) -> None:
        """See `Executor.run`."""
        with computing_alone(self._place.device):
            for job in jobs:
                do_job(self._place, job, hear)
