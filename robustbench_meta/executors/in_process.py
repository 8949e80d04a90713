"""One task after the other, in this process."""

from __future__ import annotations

import time
from functools import partial

import torch

from robustbench_meta.cores import computing_alone
from robustbench_meta.desk import Desk
from robustbench_meta.errors import BenchError, DeviceLostError
from robustbench_meta.grid import Grid
from robustbench_meta.lanes import Lanes
from robustbench_meta.shelf import Shelf
from robustbench_meta.work import Workplace, do_task

_ME = "this process"
_POLL_SECONDS = 0.2


class InProcess:
    """A task has all cores."""

    slots = 1

    def __init__(self, grid: Grid, shelf: Shelf, device: torch.device, cores: int) -> None:
        self._grid, self._shelf, self._device, self._cores = grid, shelf, device, cores

    def run(self, desk: Desk) -> None:
        """See `Executor.run`."""
        place = Workplace(self._grid, self._shelf, self._device, Lanes(lambda: self._cores), stop=desk.stop)
        with computing_alone(self._device):
            while desk.open:
                desk.stop.check()
                task = desk.next(_ME)
                if task is None:
                    time.sleep(_POLL_SECONDS)
                    continue
                try:
                    do_task(place, task, partial(desk.hear, _ME))
                except DeviceLostError as lost:
                    raise BenchError(
                        f"{lost}. Nothing more can be computed on {self._device} by this process: give the same "
                        "command again, or add --executor processes, which begins a new one by itself"
                    ) from lost
                desk.over(_ME)
