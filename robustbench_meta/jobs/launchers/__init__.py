"""What starts the workers of a run: a name with options that travel in the name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.experiment.grid import Grid
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.options import parse_choice
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.interrupts import Stop

LAUNCHERS = {
    "local": "this process, or as many others as --jobs says",
    "processes": "other processes, also for one job: what kills its process costs one cell",
    "ray": "tasks of a Ray cluster: ray:address=auto,gpus=1,cpus=2",
}
"""What there is, in a line each."""


@dataclass(frozen=True)
class Run:
    """What a launcher needs to know of a run."""

    grids: Sequence[Grid]
    store: Store
    folder: Path
    """Of the run's events, with the recipe that workers read."""
    queue: Queue
    monitor: Monitor
    device: torch.device
    stop: Stop
    cores: int
    policy: Policy


class Launcher(Protocol):
    """Starts workers, and waits until they are done."""

    def launch(self, run: Run) -> None:
        """Have workers at a run until nothing is left for them, and leave none behind however this ends.

        Raises:
            Stopped: `run.stop` was told, and the work under way has been saved.
            StorageError: something cannot be written.
            BenchError: no worker can be started, or one ended by an error that is no cell's.
        """
        ...


def check_executor(text: str) -> None:
    """Raise BenchError unless there is a launcher of that name, and none of this machine has options."""
    choice = parse_choice(text)
    if choice.name == "slurm":
        raise BenchError(
            "there is no executor 'slurm': submit a job array of plain bench run on a shared --results folder, as in "
            "examples/slurm.sbatch"
        )
    if choice.name not in LAUNCHERS:
        raise BenchError(unknown("executor", choice.name, LAUNCHERS))
    if choice.options and computes_here(text):
        given = ", ".join(choice.options)
        raise BenchError(f"the executor '{choice.name}' takes no options; it was given {given}: leave that out")


def check_request(policy: Policy, device: str) -> None:
    """Raise BenchError if what a cluster is asked for cannot be, before anything is loaded or written."""
    choice = parse_choice(policy.executor)
    if choice.name == "ray":
        from robustbench_meta.jobs.launchers.ray import Request, check_address  # noqa: PLC0415  # optional

        check_address(Request.read(choice.options, device).address)


def computes_here(text: str) -> bool:
    """Whether this machine computes."""
    return parse_choice(text).name in {"local", "processes"}


def launcher_for(policy: Policy, workers: int, device: torch.device) -> Launcher:
    """The launcher of a run.

    Args:
        policy: with its name.
        workers: how many there are to be on this machine.
        device: of the run.

    Raises:
        BenchError: there is none of that name, it has no such option, or what it needs is not installed.
    """
    check_executor(policy.executor)
    choice = parse_choice(policy.executor)
    if choice.name == "ray":
        from robustbench_meta.jobs.launchers.ray import RayCluster  # noqa: PLC0415  # optional

        return RayCluster(choice.options, str(device))
    if workers > 1 or choice.name == "processes" or policy.cell_timeout is not None:
        from robustbench_meta.jobs.launchers.processes import Processes  # noqa: PLC0415  # one of them is enough

        return Processes(workers)
    from robustbench_meta.jobs.launchers.inline import Inline  # noqa: PLC0415  # the same

    return Inline()
