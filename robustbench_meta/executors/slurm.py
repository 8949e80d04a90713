"""Tasks as jobs of Slurm, sent by submitit; the results folder is on a file system that all nodes share.

A job does one task. What it has to tell it writes to a file, which is read here; what it must not lose it keeps in the
results folder. A job whose time is up, or whose node is taken away or lost, is sent again and goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import logging
import math
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from robustbench_meta.cores import available_cores
from robustbench_meta.data.cache import cache_dir
from robustbench_meta.desk import MOST_LOSSES, Desk
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.executors import Policy, Recipe, Task
from robustbench_meta.executors.remote import installed
from robustbench_meta.executors.slurm_job import BEAT_SECONDS, Order, PlanFolder, Tail, work
from robustbench_meta.executors.speech import Voice, raised
from robustbench_meta.files import cannot_write
from robustbench_meta.tuning import CacheBook

_log = logging.getLogger(__name__)
JOBS = 100
"""The most jobs at a time if nothing else is asked for."""
CPUS = 4
MINUTES = 60.0
GRACE_SECONDS = 10.0
"""How long jobs have to keep what is under way when the run is stopped, before they are cancelled."""
POLL_SECONDS = 0.5
"""How often the files of the jobs are read."""
QUEUED_SECONDS = 60.0
"""How long jobs wait in the queue before this is said."""
AGAIN_SECONDS = 30.0
"""After Slurm has refused a job, how long until it is sent again."""
MOST_REFUSALS = 20
STALE_SECONDS = 30 * 24 * 3600.0
"""How long what jobs have left is kept."""
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


class Slurm:
    """Jobs of Slurm, or of this machine in their stead.

    Args:
        options: see `OPTIONS`.
        policy: of the run.
        recipe: of the run.

    Raises:
        BenchError: an option cannot be, or submitit or Slurm is not there.
    """

    def __init__(self, options: Mapping[str, str], policy: Policy, recipe: Recipe) -> None:
        self._request = Request.read(options, policy, recipe.device)
        self._submitit = _load_submitit()
        if not self._request.local:
            _check_slurm()
        self._recipe = dataclasses.replace(
            recipe,
            results=recipe.results.resolve(),
            plugins=recipe.plugins and recipe.plugins.resolve(),
            data_root=recipe.data_root and recipe.data_root.resolve(),
            device="cuda" if self._request.gpus else "cpu",
        )

    @property
    def slots(self) -> int:
        """See `Executor.slots`."""
        return self._request.jobs

    def run(self, desk: Desk) -> None:
        """See `Executor.run`."""
        root = self._recipe.results / ".slurm"
        folder = root / uuid.uuid4().hex[:12]
        try:
            root.mkdir(exist_ok=True)
            folder.mkdir(mode=0o700)  # submitit pickles what a job is to call: nobody else may change it
        except OSError as error:
            raise cannot_write(folder, error) from error
        cluster = (_Here if self._request.local else _Queue)(self._submitit, folder / "jobs", self._request)
        _clear(root)
        plans = PlanFolder(root / "plans")
        _share_plans(plans)
        office = _Office(self._recipe, self._request, cluster, desk, folder, plans.folder)
        with _heart(folder / "heart"):
            try:
                office.work()
            finally:
                office.close()
        _keep_plans(plans)
        if not office.deaths:
            shutil.rmtree(folder, ignore_errors=True)


def _load_submitit() -> ModuleType:
    try:
        import submitit  # noqa: PLC0415  # optional
    except ImportError as error:
        raise BenchError("submitit is not installed: pip install 'robustbench_meta[slurm]'") from error
    module: ModuleType = submitit
    return module


def _check_slurm() -> None:
    missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
    if missing:
        raise BenchError(
            f"there is no Slurm here ({', '.join(missing)} not found): start bench where jobs are sent from, such as a "
            "login node; --executor slurm:cluster=local tries the same out on this machine"
        )


@contextlib.contextmanager
def _heart(path: Path) -> Iterator[None]:
    """Inside, the file is touched now and then: it tells the jobs that somebody waits for them."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                path.touch()

    try:
        path.touch()
    except OSError as error:
        raise cannot_write(path, error) from error
    thread = threading.Thread(target=beat, name="tell the jobs that this process lives", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _clear(root: Path) -> None:
    """Remove what runs have left that nobody has touched for long: logs, and what jobs told."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            if folder.name != "plans" and time.time() - max(map(_touched, [folder, *folder.iterdir()])) > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _touched(path: Path) -> float:
    return path.stat().st_mtime


def _share_plans(plans: PlanFolder) -> None:
    """All jobs use the plans of this machine, where it has any."""
    mine = CacheBook()
    for path in sorted((cache_dir() / "plans").glob("[!.]*.json")):
        text = mine.read(path.stem)
        if text is not None and plans.read(path.stem) is None:
            plans.settle(path.stem, text)


def _keep_plans(plans: PlanFolder) -> None:
    """What the jobs have measured is used on this machine from now on."""
    mine = CacheBook()
    for name in plans.names():
        text = plans.read(name)
        if text is not None and mine.read(name) is None:
            mine.settle(name, text)


# -- one task --------------------------------------------------------------------------------------


@dataclass
class _Errand:
    """A task of the desk's, and the jobs that do it, one after the other."""

    worker: str
    """Its name at the desk."""
    task: Task
    job: str = ""
    """The one at work, as Slurm calls it; empty: none yet."""
    tail: Tail | None = None
    begun: bool = False
    """Whether it is at the task."""
    stopped: int | None = None
    """The signal that ended it in good order."""
    ended: float | None = None
    """When it was first seen that Slurm has it no more."""
    far: int = 0
    """The step or the episode that it has come to."""
    far_before: int | None = None
    """The same when its time was up the last time."""
    lost: int = 0
    """How often the job was taken away since it last came any further."""
    far_lost: int = -1
    """The step or the episode that it had come to when its job was taken away the last time."""
    sent: int = 0
    """How many jobs so far."""

    def goes_on(self) -> bool:
        """Whether another job is worth it when the time of one was up: this one came further than the one before it."""
        further = self.far_before is None or self.far > self.far_before
        self.far_before = self.far
        return further

    def goes_on_lost(self) -> bool:
        """Whether another job is worth it when one was taken away: not after many in a row that came no further."""
        self.lost = self.lost + 1 if self.far <= self.far_lost else 1
        self.far_lost = self.far
        return self.lost <= MOST_LOSSES

    @property
    def what(self) -> str:
        """For messages."""
        return f"job {self.job} at work on {self.task.title}"


class _Office:
    """The jobs of one run."""

    def __init__(
        self, recipe: Recipe, request: Request, cluster: _Cluster, desk: Desk, folder: Path, plans: Path
    ) -> None:  # fmt: skip
        self._recipe, self._request, self._cluster, self._desk = recipe, request, cluster, desk
        self._folder, self._plans = folder, plans
        self._errands: list[_Errand] = []
        self._voice, self._count = Voice(), 0
        self._refused, self._refusals, self._accepted = -math.inf, 0, False
        self._looked, self._queued, self._said = -math.inf, time.monotonic(), ""
        self.deaths = 0
        """How many jobs ended as they should not; what they left is worth a look."""

    def work(self) -> None:
        """Send jobs, and return when nothing is left to do."""
        while self._desk.open:
            self._desk.stop.check()
            self._take_on()
            for errand in list(self._errands):
                self._listen(errand)
            self._look()
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End all jobs; those at work have a moment to keep what they have."""
        left = [errand for errand in self._errands if errand.job and errand.stopped is None]
        if left:
            self._cluster.ask({errand.job for errand in left})
        until, looked, states = time.monotonic() + GRACE_SECONDS, -math.inf, dict[str, str]()
        while left and (now := time.monotonic()) < until:
            if now - looked > self._cluster.look_seconds / 2:
                looked, states = now, self._cluster.states({errand.job for errand in left}) or {}
            left = [errand for errand in left if not self._has_ended(errand, states.get(errand.job, ""))]
            time.sleep(POLL_SECONDS / 2 if left else 0)
        self._cluster.kill({errand.job for errand in left})
        self._errands.clear()

    def _has_ended(self, errand: _Errand, state: str) -> bool:
        """Whether a job that is to end has; what it still has to tell is taken note of."""
        assert errand.tail is not None
        with contextlib.suppress(BenchError):  # whatever ends this run has been said
            for event, facts in errand.tail.events():
                if event in _LAST:
                    return True
                self._note(errand, event, facts)
        return state in _ENDED

    def _take_on(self) -> None:
        """A job for what can be begun, one after the other: sending takes a while, and others have things to say."""
        waiting = next((errand for errand in self._errands if not errand.job), None)
        if waiting is None and len(self._errands) < self._request.jobs:
            worker = f"job {self._count}"
            task = self._desk.next(worker)
            if task is None:
                return
            self._count += 1
            waiting = _Errand(worker, task)
            self._errands.append(waiting)
        if waiting is not None and time.monotonic() - self._refused > AGAIN_SECONDS:
            self._send(waiting)

    def _send(self, errand: _Errand) -> None:
        spool = self._folder / f"{errand.worker.replace(' ', '-')}-{errand.sent}.jsonl"
        level = logging.getLogger("robustbench_meta").getEffectiveLevel()
        order = Order(
            self._recipe, errand.task, spool, self._folder / "heart", self._plans, self._request.cpus, level,
            installed(),
        )  # fmt: skip
        try:
            errand.job = self._cluster.submit(order, errand.task.title)
        except _RefusedError as error:
            self._desk.stop.check()
            self._refused, self._refusals = time.monotonic(), self._refusals + 1
            if not self._accepted or self._refusals > MOST_REFUSALS:
                raise BenchError(f"Slurm takes no job: {error}; see --executor slurm:partition=…,account=…") from error
            _log.warning("Slurm takes no more jobs for now: %s", error)
            return
        self._accepted, self._refusals = True, 0
        errand.tail, errand.begun, errand.stopped, errand.ended = Tail(spool), False, None, None
        errand.sent += 1
        self._desk.hear(errand.worker, "at", cells={})

    def _listen(self, errand: _Errand) -> None:
        """Take note of all that a job has told."""
        if errand.tail is None or not errand.job:
            return
        for event, facts in errand.tail.events():
            if event == "over":
                self._errands.remove(errand)
                self._desk.over(errand.worker)
                return
            if event == "error":
                self.deaths += 1
                raise raised(**facts)
            self._note(errand, event, facts)
        if errand.begun and errand.stopped is None and errand.ended is None:
            reason = self._desk.overdue(errand.worker)
            if reason is not None:
                self._errands.remove(errand)
                self._cluster.kill({errand.job})
                self._desk.expired(errand.worker, reason)

    def _note(self, errand: _Errand, event: str, facts: dict[str, Any]) -> None:
        if event == "started":
            self._cluster.started(errand.job, **facts)
        elif event == "stopped":
            errand.stopped = int(facts["by"] or signal.SIGTERM)
        elif event == "log":
            self._voice.says("log", {"record": logging.makeLogRecord(facts)})
        elif not self._voice.says(event, facts):
            errand.begun = True
            if event in {"training_progress", "evaluation_progress"}:
                errand.far = max(errand.far, int(facts.get("step", facts.get("done", 0))))
            self._desk.hear(errand.worker, event, **facts)

    def _look(self) -> None:
        """Ask now and then what has become of the jobs."""
        now = time.monotonic()
        sent = [errand for errand in self._errands if errand.job]
        if not sent or now - self._looked < self._cluster.look_seconds:
            return
        self._looked = now
        states = self._cluster.states({errand.job for errand in sent})
        if states is None:
            return
        for errand in sent:
            state = states.get(errand.job, _GONE)
            if state not in _ENDED:
                errand.ended = None
                continue
            errand.ended = errand.ended or now
            if errand.stopped is not None or now - errand.ended >= self._cluster.late_seconds:
                self._listen(errand)  # what it told at the very end
                if errand in self._errands:
                    self._buried(errand, state)
        self._say_what_waits(sent, states)

    def _say_what_waits(self, sent: list[_Errand], states: Mapping[str, str]) -> None:
        """Nothing seems to happen while all jobs are in the queue: say so."""
        if any(states.get(errand.job) != _PENDING for errand in sent):
            self._queued = time.monotonic()
        elif time.monotonic() - self._queued > QUEUED_SECONDS:
            why = self._cluster.reasons({errand.job for errand in sent})
            if why != self._said:
                self._said = why
                _log.warning("%d job(s) wait in Slurm's queue%s", len(sent), f" ({why})" if why else "")

    def _buried(self, errand: _Errand, state: str) -> None:
        """A job has ended before its task was done."""
        time_up = state in _TIME_UP or (state != _CANCELLED and errand.stopped == signal.SIGUSR2)
        if time_up:
            if not errand.goes_on():
                self._die(
                    errand,
                    f"{errand.what} ran out of its {self._request.minutes:g} minutes, as the one before it had, and "
                    "came no further: give jobs more time with --executor slurm:minutes=…",
                )
                return
        elif state in _TAKEN or (state != _CANCELLED and errand.stopped is not None):
            if not errand.goes_on_lost():
                self._die(errand, f"{errand.what} was taken away ({state}) {errand.lost} times, and came no further")
                return
            if errand.stopped is None:
                _log.warning("%s was lost (%s); going on with what was kept", errand.what, state)
        else:
            log, told = self._cluster.log(errand.job)
            self._die(errand, f"{errand.what} {_how(state, told, self._request)}{f'; its log is {log}' if log else ''}")
            return
        errand.job, errand.tail = "", None

    def _die(self, errand: _Errand, reason: str) -> None:
        self.deaths += 1
        self._errands.remove(errand)
        self._desk.died(errand.worker, reason)


_LAST = {"over", "stopped", "error"}
"""The events after which a job has no more to tell."""
_PENDING, _CANCELLED, _GONE = "PENDING", "CANCELLED", "GONE"
_TIME_UP = {"TIMEOUT", "DEADLINE"}
_TAKEN = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED", _GONE}
"""The work is not to blame."""
_ENDED = {*_TIME_UP, *_TAKEN, _CANCELLED, "COMPLETED", "FAILED", "OUT_OF_MEMORY"}


def _how(state: str, told: str, request: Request) -> str:
    """How a job ended that was to blame."""
    if state == "OUT_OF_MEMORY":
        asked = f" of {request.memory:g} GB" if request.memory else ""
        return (
            f"ran out of memory{asked}: ask for more with --executor slurm:memory=…, or lower --tasks-per-step, "
            "--query or the width"
        )
    if state == _CANCELLED:
        return "was cancelled"
    return f"ended before it was done ({state}{f': {told}' if told else ''})"


# -- where jobs run --------------------------------------------------------------------------------


class _RefusedError(Exception):
    """A job was not taken."""


class _Cluster(Protocol):
    """Where jobs run."""

    look_seconds: float
    """Between two questions about the states of jobs."""
    late_seconds: float
    """How long after its end what a job wrote may still be on its way here."""

    def submit(self, order: Order, title: str) -> str:
        """Send a job, and give its name.

        Raises:
            _RefusedError: it is not taken.
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
        """See `_Cluster.submit`."""
        self._executor.update_parameters(**self._named(title))
        with _out_of_ctrl_c(), self._submitit.helpers.clean_env(), open(os.devnull, "w", encoding="utf-8") as nowhere:
            try:
                with contextlib.redirect_stderr(nowhere):  # it prints there what it raises
                    job = self._executor.submit(work, order.text())
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                said = str(error).strip().splitlines() or [repr(error)]
                raise _RefusedError(said[-1]) from error
        self._jobs[job.job_id] = job
        return str(job.job_id)

    def log(self, job: str) -> tuple[Path | None, str]:
        """See `_Cluster.log`."""
        path = Path(self._jobs[job].paths.stderr)
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
            return path, next((line for line in reversed(lines) if line), "")
        return None, ""

    def _named(self, title: str) -> dict[str, Any]:
        return {}


class _Queue(_Jobs):
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
        """See `_Cluster.started`."""

    def states(self, jobs: Collection[str]) -> dict[str, str] | None:
        """See `_Cluster.states`. Of jobs that have left the queue the accounting is asked, where there is any."""
        listed = _ask(["squeue", "--noheader", "--states=all", f"--user={getpass.getuser()}", "--format=%i|%T"])
        if listed is None:
            self._silent += 1
            if self._silent == MOST_REFUSALS:
                _log.warning("Slurm does not say what has become of the jobs: squeue fails; asking on")
            return None
        self._silent = 0
        states = {job: state for job, state in _read_states(listed).items() if job in jobs}
        gone = sorted(set(jobs) - set(states))
        if gone:
            kept = _ask(["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "-j",
                         ",".join(gone)])  # fmt: skip
            states |= {job: state for job, state in _read_states(kept or "").items() if job in gone}
        return states

    def reasons(self, jobs: Collection[str]) -> str:
        """See `_Cluster.reasons`."""
        listed = _ask(["squeue", "--noheader", f"--jobs={','.join(sorted(jobs))}", "--format=%r"]) or ""
        return ", ".join(sorted(set(filter(None, listed.splitlines()))))

    def ask(self, jobs: Collection[str]) -> None:
        """See `_Cluster.ask`."""
        _ask(["scancel", "--state=PENDING", *sorted(jobs)])
        _ask(["scancel", "--state=RUNNING", "--signal=USR2", *sorted(jobs)])

    def kill(self, jobs: Collection[str]) -> None:
        """See `_Cluster.kill`."""
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


def _read_states(listed: str) -> dict[str, str]:
    """States by job, from lines of `JOB|STATE`; what follows the state, as in CANCELLED by 1000, is left out."""
    rows = [line.split("|") for line in listed.splitlines() if line.count("|") == 1]
    return {job.strip(): state.split()[0].rstrip("+") for job, state in rows if state.strip()}


class _Here(_Jobs):
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
        """See `_Cluster.submit`."""
        job = super().submit(order, title)
        self._sent[job] = time.monotonic()
        return job

    def started(self, job: str, host: str, pid: int) -> None:
        """See `_Cluster.started`."""
        self._processes[job] = pid

    def states(self, jobs: Collection[str]) -> dict[str, str] | None:
        """See `_Cluster.states`."""
        return {job: self._state(job) for job in jobs}

    def reasons(self, jobs: Collection[str]) -> str:
        """See `_Cluster.reasons`."""
        return ""

    def ask(self, jobs: Collection[str]) -> None:
        """See `_Cluster.ask`."""
        self._send(jobs, signal.SIGTERM)

    def kill(self, jobs: Collection[str]) -> None:
        """See `_Cluster.kill`."""
        for job in jobs:
            if job in self._processes and self._state(job) not in _ENDED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._processes[job], signal.SIGKILL)
        self._send(jobs, signal.SIGTERM)

    def _send(self, jobs: Collection[str], number: int) -> None:
        """To the process that started ours, which hands it on."""
        for job in jobs:
            if self._state(job) not in _ENDED:
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
