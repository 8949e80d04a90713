"""Which executor a run gets: by its name, with options that travel in the name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from robustbench_meta.cores import available_cores
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.executors import Executor, Policy, Recipe, Task
from robustbench_meta.executors.in_process import InProcess
from robustbench_meta.executors.processes import Processes
from robustbench_meta.executors.schedule import side_by_side
from robustbench_meta.grid import Grid
from robustbench_meta.options import parse_choice
from robustbench_meta.store import Store

EXECUTORS = {
    "local": "this process, or as many others as --jobs says",
    "processes": "other processes, also for one job: what kills its process costs one cell",
    "ray": "a Ray cluster: ray:address=auto,gpus=1,cpus=2",
    "slurm": "jobs of Slurm, by submitit: slurm:partition=gpu,gpus=1,minutes=600",
}
"""What there is, in a line each."""


def check_executor(text: str) -> None:
    """Raise BenchError unless there is an executor of that name, and none of this process's machine has options."""
    choice = parse_choice(text)
    if choice.name not in EXECUTORS:
        raise BenchError(unknown("executor", choice.name, EXECUTORS))
    if choice.options and computes_here(text):
        given = ", ".join(choice.options)
        raise BenchError(f"the executor '{choice.name}' takes no options; it was given {given}: leave that out")


def check_request(policy: Policy, device: str) -> None:
    """Raise BenchError if what a cluster is asked for cannot be, before anything is loaded or written."""
    choice = parse_choice(policy.executor)
    if choice.name == "ray":
        from robustbench_meta.executors.ray import Request as RayRequest  # noqa: PLC0415  # optional

        RayRequest.read(choice.options, device)
    if choice.name == "slurm":
        from robustbench_meta.executors.slurm.request import Request  # noqa: PLC0415  # optional

        Request.read(choice.options, policy, device)


def computes_here(text: str) -> bool:
    """Whether this machine computes."""
    return parse_choice(text).name in {"local", "processes"}


def choose(
    policy: Policy, recipe: Recipe, grid: Grid, store: Store, tasks: Sequence[Task], device: torch.device
) -> Executor:
    """The executor of a run.

    Raises:
        BenchError: there is none of that name, it has no such option, or what it needs is not installed.
    """
    check_executor(policy.executor)
    choice, cores = parse_choice(policy.executor), available_cores()
    if choice.name == "ray":
        from robustbench_meta.executors.ray import RayCluster  # noqa: PLC0415  # optional

        return RayCluster(choice.options, policy, recipe, grid)
    if choice.name == "slurm":
        from robustbench_meta.executors.slurm import Slurm  # noqa: PLC0415  # optional

        return Slurm(choice.options, policy, recipe)
    workers = side_by_side(policy.jobs, tasks, device, cores)
    if workers > 1 or choice.name == "processes" or policy.cell_timeout is not None:
        return Processes(recipe, workers, cores)
    return InProcess(grid, store.shelf, device, cores)
