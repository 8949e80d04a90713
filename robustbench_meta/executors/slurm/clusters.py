"""Where jobs run, as submitit sends them: in Slurm's queue, or on this machine in its stead."""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from robustbench_meta.executors.slurm.job import Order, work
from robustbench_meta.executors.slurm.request import Request

_log = logging.getLogger(__name__)
MOST_REFUSALS = 20
"""In a row, until it is no longer thought to be a moment's trouble."""
PENDING, CANCELLED, GONE = "PENDING", "CANCELLED", "GONE"
TIME_UP = {"TIMEOUT", "DEADLINE"}
TAKEN = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED", GONE}
"""The work is not to blame."""
ENDED = {*TIME_UP, *TAKEN, CANCELLED, "COMPLETED", "FAILED", "OUT_OF_MEMORY"}


class RefusedError(Exception):
    """A job was not taken."""


class Cluster(Protocol):
    """Where jobs run."""

    look_seconds: float
    """Between two questions about the states of jobs."""
    late_seconds: float
    """How long after its end what a job wrote may still be on its way here."""

    def submit(self, order: Order, title: str) -> str:
        """Send a job, and give its name.

        Raises:
            RefusedError: it is not taken.
        """
        ...

    def started(self, job: str, host: str, pid: int) -> None:
        """Take note of where a job runs."""
        ...

    def states(self, jobs: Collection[str]) -> dict[str, str] | None:
        """What Slurm calls the state of each job that it knows; None if it does not answer."""
        ...

    def reasons(self, jobs: Collection[str]) -> str:
        """Why jobs wait."""
        ...

    def ask(self, jobs: Collection[str]) -> None:
        """Tell jobs to keep what is under way, and end; those that have not begun are cancelled."""
        ...

    def kill(self, jobs: Collection[str]) -> None:
        """End jobs."""
        ...

    def log(self, job: str) -> tuple[Path | None, str]:
        """The file of what a job said beside its events, and its last line."""
        ...


class _Jobs:
    """What all jobs of submitit have in common."""

    def __init__(self, submitit: ModuleType, executor: Any) -> None:
        self._submitit, self._executor = submitit, executor
        self._jobs: dict[str, Any] = {}

    def submit(self, order: Order, title: str) -> str:
        """See `Cluster.submit`."""
        self._executor.update_parameters(**self._named(title))
        with _out_of_ctrl_c(), self._submitit.helpers.clean_env(), open(os.devnull, "w", encoding="utf-8") as nowhere:
            try:
                with contextlib.redirect_stderr(nowhere):  # it prints there what it raises
                    job = self._executor.submit(work, order.text())
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                said = str(error).strip().splitlines() or [repr(error)]
                raise RefusedError(said[-1]) from error
        self._jobs[job.job_id] = job
        return str(job.job_id)

    def log(self, job: str) -> tuple[Path | None, str]:
        """See `Cluster.log`."""
        path = Path(self._jobs[job].paths.stderr)
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
            return path, next((line for line in reversed(lines) if line), "")
        return None, ""

    def _named(self, title: str) -> dict[str, Any]:
        return {}


class Queue(_Jobs):
    """Slurm's."""

    look_seconds, late_seconds = 5.0, 20.0

    def __init__(self, submitit: ModuleType, folder: Path, request: Request) -> None:
        super().__init__(submitit, submitit.SlurmExecutor(folder))
        asked = {name: getattr(request, name) for name in ("partition", "account", "qos")}
        self._executor.update_parameters(
            time=math.ceil(request.minutes), nodes=1, ntasks_per_node=1, cpus_per_task=request.cpus,
            srun_args=["--cpus-per-task", str(request.cpus)],  # not handed on by itself from Slurm 22.05 on
            signal_delay_s=request.warning_seconds, additional_parameters={"no-requeue": True},
            **{name: value for name, value in asked.items() if value is not None},
            **({"mem": f"{math.ceil(request.memory * 1024)}M"} if request.memory else {}),
            **({"gpus_per_node": request.gpus} if request.gpus else {}),
        )  # fmt: skip
        self._silent = 0

    def started(self, job: str, host: str, pid: int) -> None:
        """See `Cluster.started`."""

    def states(self, jobs: Collection[str]) -> dict[str, str] | None:
        """See `Cluster.states`. Of jobs that have left the queue the accounting is asked, where there is any."""
        listed = _ask(["squeue", "--noheader", "--states=all", f"--user={getpass.getuser()}", "--format=%i|%T"])
        if listed is None:
            self._silent += 1
            if self._silent == MOST_REFUSALS:
                _log.warning("Slurm does not say what has become of the jobs: squeue fails; asking on")
            return None
        self._silent = 0
        states = {job: state for job, state in read_states(listed).items() if job in jobs}
        gone = sorted(set(jobs) - set(states))
        if gone:
            kept = _ask(["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "-j",
                         ",".join(gone)])  # fmt: skip
            states |= {job: state for job, state in read_states(kept or "").items() if job in gone}
        return states

    def reasons(self, jobs: Collection[str]) -> str:
        """See `Cluster.reasons`."""
        listed = _ask(["squeue", "--noheader", f"--jobs={','.join(sorted(jobs))}", "--format=%r"]) or ""
        return ", ".join(sorted(set(filter(None, listed.splitlines()))))

    def ask(self, jobs: Collection[str]) -> None:
        """See `Cluster.ask`."""
        _ask(["scancel", "--state=PENDING", *sorted(jobs)])
        _ask(["scancel", "--state=RUNNING", "--signal=USR2", *sorted(jobs)])

    def kill(self, jobs: Collection[str]) -> None:
        """See `Cluster.kill`."""
        if jobs:
            _ask(["scancel", *sorted(jobs)])

    def _named(self, title: str) -> dict[str, Any]:
        return {"job_name": f"bench {title}"}


def _ask(command: list[str]) -> str | None:
    """What a command of Slurm's says; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        _log.debug("%s: %s", " ".join(command), error)
        return None
    return done.stdout


def read_states(listed: str) -> dict[str, str]:
    """States by job, from lines of `JOB|STATE`; what follows the state, as in CANCELLED by 1000, is left out."""
    rows = [line.split("|") for line in listed.splitlines() if line.count("|") == 1]
    return {job.strip(): state.split()[0].rstrip("+") for job, state in rows if state.strip()}


class Here(_Jobs):
    """This machine in Slurm's stead: each job is a process of submitit's that starts ours."""

    look_seconds, late_seconds = 0.5, 1.0

    def __init__(self, submitit: ModuleType, folder: Path, request: Request) -> None:
        super().__init__(submitit, submitit.LocalExecutor(folder))
        self._seconds = request.minutes * 60
        self._executor.update_parameters(
            timeout_min=request.minutes, gpus_per_node=request.gpus, signal_delay_s=request.warning_seconds
        )
        self._processes: dict[str, int] = {}
        self._sent: dict[str, float] = {}

    def submit(self, order: Order, title: str) -> str:
        """See `Cluster.submit`."""
        job = super().submit(order, title)
        self._sent[job] = time.monotonic()
        return job

    def started(self, job: str, host: str, pid: int) -> None:
        """See `Cluster.started`."""
        self._processes[job] = pid

    def states(self, jobs: Collection[str]) -> dict[str, str] | None:
        """See `Cluster.states`."""
        return {job: self._state(job) for job in jobs}

    def reasons(self, jobs: Collection[str]) -> str:
        """See `Cluster.reasons`."""
        return ""

    def ask(self, jobs: Collection[str]) -> None:
        """See `Cluster.ask`."""
        self._send(jobs, signal.SIGTERM)

    def kill(self, jobs: Collection[str]) -> None:
        """See `Cluster.kill`."""
        for job in jobs:
            if job in self._processes and self._state(job) not in ENDED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._processes[job], signal.SIGKILL)
        self._send(jobs, signal.SIGTERM)

    def _send(self, jobs: Collection[str], number: int) -> None:
        """To the process that started ours, which hands it on."""
        for job in jobs:
            if self._state(job) not in ENDED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job), number)

    def _state(self, job: str) -> str:
        told = str(self._jobs[job].state)
        if told == "INTERRUPTED":
            return "NODE_FAIL"
        if told == "RUNNING":
            return told
        return "TIMEOUT" if time.monotonic() - self._sent[job] >= self._seconds else "FAILED"


@contextlib.contextmanager
def _out_of_ctrl_c() -> Iterator[None]:
    """A process that is started inside does not hear Ctrl-C; this one hears it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
