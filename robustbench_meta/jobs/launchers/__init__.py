"""What starts the workers of a run, by a name with options: this process, processes of this machine, or Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from robustbench_meta.engine.parallel import Cores
from robustbench_meta.errors import BenchError, DeviceLostError, unknown
from robustbench_meta.experiment.grid import Grid
from robustbench_meta.jobs.context import WorkerContext
from robustbench_meta.jobs.events import EventLog
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.jobs.processes import ProcessGroup, Spawned
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.jobs.worker import Worker
from robustbench_meta.options import parse_choice
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.cpu import computing_alone
from robustbench_meta.runtime.interrupts import Stop

LAUNCHERS = {
    "local": "this process, or as many others as --jobs says",
    "processes": "other processes, also for one job: what kills its process costs one cell",
    "ray": "tasks of a Ray cluster: ray:address=auto,gpus=1,cpus=2",
}
"""A line for each."""


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


Launcher = Callable[[Run], None]
"""Has workers at a run until nothing is left for them, and leaves none behind however this ends.

Raises:
    Stopped: `run.stop` was asked, and the work is saved.
    StorageError: something cannot be written.
    BenchError: no worker can be started, or one ended by an error that is no cell's.
"""


def check_executor(text: str, device: str) -> None:
    """Raise BenchError unless there is a launcher of that name that can have these options, before anything is read."""
    choice = parse_choice(text)
    if choice.name == "slurm":
        raise BenchError(
            "there is no executor 'slurm': submit a job array of plain bench run on a shared --results folder, as in "
            "examples/slurm.sbatch"
        )
    if choice.name not in LAUNCHERS:
        raise BenchError(unknown("executor", choice.name, LAUNCHERS))
    if choice.name == "ray":
        from robustbench_meta.jobs.launchers.ray import Request, check_address  # noqa: PLC0415  # optional

        check_address(Request.read(choice.options, device).address)
    elif choice.options:
        options = ", ".join(choice.options)
        raise BenchError(f"the executor '{choice.name}' takes no options; it was given {options}: leave that out")


def computes_here(text: str) -> bool:
    """Whether this machine computes."""
    return parse_choice(text).name in {"local", "processes"}


def launcher_for(policy: Policy, workers: int, device: torch.device) -> Launcher:
    """The launcher of a run, with so many workers if they are on this machine.

    Raises:
        BenchError: what it needs is not installed, or does not answer.
    """
    choice = parse_choice(policy.executor)
    if choice.name == "ray":
        from robustbench_meta.jobs.launchers.ray import RayCluster  # noqa: PLC0415  # optional

        return RayCluster(choice.options, str(device)).launch
    if workers > 1 or choice.name == "processes" or policy.cell_timeout is not None:
        return partial(_in_processes, workers)
    return _in_this_process


def _in_this_process(run: Run) -> None:
    log = EventLog(run.folder / "worker.jsonl", run.stop, after=run.monitor.poll)
    queue = Queue(run.grids, run.store, run.queue.cells, run.device.type, log)
    context = WorkerContext(run.store, run.device, Cores(lambda: run.cores), run.stop)
    try:
        with computing_alone(run.device):
            Worker(context, queue, run.monitor, exit_when_waiting=run.policy.exit_when_waiting).work()
    except DeviceLostError as lost:
        raise BenchError(
            f"{lost}. Nothing more can be computed on {run.device} by this process: rerun the same command to "
            "resume, or add --executor processes, which begins a new one by itself"
        ) from lost
    finally:
        log.close()


def _in_processes(workers: int, run: Run) -> None:
    """Processes that share the cores, or all CUDA devices where none is named, and are replaced when they die."""
    devices = [str(run.device)]
    if devices == ["cuda"]:
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    used = dict.fromkeys(devices, 0)

    def start(name: str) -> Spawned:
        device = min(devices, key=used.__getitem__)
        used[device] += 1
        return Spawned(run.folder, name, max(1, run.cores // workers), device)

    ProcessGroup(start, "worker", lambda: run.queue, run.monitor, run.stop).run(workers, cores=run.cores)
