"""What each job of Slurm asks for: the options of the executor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from robustbench_meta.cores import available_cores
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.executors import Policy

JOBS = 100
"""The most jobs at a time if nothing else is asked for."""
CPUS = 4
MINUTES = 60.0
OPTIONS = {
    "partition": "where to run",
    "account": "who pays",
    "qos": "quality of service",
    "gpus": "GPUs of a job",
    "cpus": "CPU cores of a job",
    "memory": "GB of memory of a job",
    "minutes": "the time limit of a job; longer work goes on in the next one",
    "jobs": "most jobs at a time",
    "cluster": "slurm, or local to try this out without Slurm",
}
"""What can be asked for, in a line each."""


@dataclass(frozen=True)
class Request:
    """What each job asks for, and how many there may be at a time."""

    jobs: int
    gpus: int
    cpus: int
    minutes: float
    memory: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    local: bool = False

    @property
    def warning_seconds(self) -> int:
        """How long before its end a job is told to keep what is under way."""
        return max(1, min(120, int(self.minutes * 60 / 4)))

    @classmethod
    def read(cls, options: Mapping[str, str], policy: Policy, device: str) -> Request:
        """Read the options of the executor.

        Raises:
            BenchError: there is no such option, or its value cannot be.
        """
        for name in options:
            if name not in OPTIONS:
                raise BenchError(unknown("option of the executor 'slurm'", name, OPTIONS))
        cluster = options.get("cluster", "slurm")
        if cluster not in {"slurm", "local"}:
            raise BenchError(f"slurm:cluster={cluster} cannot be; expected slurm, or local to try it out without Slurm")
        local, cuda = cluster == "local", device.startswith("cuda")
        gpus = _whole(options, "gpus", 0)
        if cuda and gpus == 0:
            raise BenchError("slurm:gpus=0 does not go with --device cuda: ask for a GPU, or use --device cpu")
        cores = available_cores()
        jobs = _whole(options, "jobs", 1)
        if jobs is None:
            jobs = policy.jobs if isinstance(policy.jobs, int) else cores if local else JOBS
        return cls(
            jobs,
            int(cuda) if gpus is None else gpus,
            _whole(options, "cpus", 1) or (max(1, cores // jobs) if local else CPUS),
            _amount(options, "minutes") or MINUTES,
            _amount(options, "memory"),
            options.get("partition"),
            options.get("account"),
            options.get("qos"),
            local,
        )


def _whole(options: Mapping[str, str], name: str, least: int) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise BenchError(f"slurm:{name}={text} cannot be; expected a whole number, {least} or more")
    return int(text)


def _amount(options: Mapping[str, str], name: str) -> float | None:
    text = options.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BenchError(f"slurm:{name}={text} cannot be; expected a number above 0")
    return value
