"""Which jobs a run consists of, how much work each is, and how many are done side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from robustbench_meta.executors import Job
from robustbench_meta.grid import Grid
from robustbench_meta.options import Jobs

WORTH_STARTING = 2000
"""The tasks that a run must go through (see `Job.cost`) for worker processes to pay: about 20 s with the profile
quick's network on two cores, where starting a worker takes a few seconds."""


def jobs_of(grid: Grid, pending: Collection[str], trained: Callable[[str], bool]) -> list[Job]:
    """A job for each training that has cells to do.

    The cost counts tasks: each once for its meta-gradient (twice for a learner that attacks its training tasks),
    for each adaptation and for each attack; no attack is taken to be dearer than another.

    Args:
        grid: the run.
        pending: the keys of the cells that are still to do.
        trained: whether there is a checkpoint of that key, so that nothing is to be trained.
    """
    jobs = []
    for training in grid.trainings:
        cells = tuple(cell.key for cell in grid.of(training) if cell.key in pending)
        if cells:
            work = grid.estimate(cells)
            gradients = 0 if trained(training.key) else work.task_gradients * (2 if training.attack else 1)
            cost = gradients + work.adaptations + work.attacked_tasks
            jobs.append(Job(training.key, training.title, cells, cost))
    return jobs


def side_by_side(wanted: Jobs, jobs: Sequence[Job], device: torch.device, cores: int) -> int:
    """How many jobs to do at a time.

    `auto` is one a core on the CPU, if the run is long enough to pay for starting processes; on CUDA it is one.
    """
    if wanted == "auto":
        worth = device.type == "cpu" and sum(job.cost for job in jobs) >= WORTH_STARTING
        wanted = cores if worth else 1
    return max(1, min(wanted, len(jobs)))
