"""Worker processes of one machine: started, replaced when they die, killed when a cell takes too long."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from robustbench_meta import errors
from robustbench_meta.errors import BenchError, DeviceLostError, StorageError
from robustbench_meta.jobs.events import WorkerFailed
from robustbench_meta.jobs.monitor import Monitor, WorkerState
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.runtime.interrupts import Stop, Stopped, begin_fork, handling, how_it_ended

_log = logging.getLogger(__name__)
GRACE_SECONDS = 10.0
"""How long a worker has to save its work when it is asked to stop, before it is killed."""
POLL_SECONDS = 0.02
"""Between two looks at workers."""
MOST_LOSSES = 5
"""How often in a row a job is begun again whose worker was lost, or died at no cell, before it got any further."""
CODES = {"failed": 70, "stopped": 75, "device": 76}
"""The exit codes of a worker: an error that is no cell's; it was asked to stop; its device is lost."""
_STOPPED = {CODES["stopped"]: "was told to stop", CODES["device"]: "could not compute on its device any more"}
_CODE = "import sys; from pathlib import Path; from robustbench_meta.jobs.worker_process import main; " + (
    "sys.exit(main(Path(sys.argv[1]), sys.argv[2]))"
)


def exit_code(error: BaseException) -> int:
    """With which code a worker ends because of an error."""
    if isinstance(error, Stopped | KeyboardInterrupt):
        return CODES["stopped"]
    return CODES["device" if isinstance(error, DeviceLostError) else "failed"]


class Fork:
    """A copy of this process that does some work on one core; it ends with this process, and only by it."""

    def __init__(self, work: Callable[[], None]) -> None:
        signals, parent = {signal.SIGINT, signal.SIGTERM}, os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until the copy ignores them
        self._code: int | None = None
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _child(work, parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        """End it at once."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    terminate = kill  # a chunk is saved as a whole: there is nothing to wait for

    def use(self, cores: int) -> None:
        """It has one core."""


def _child(work: Callable[[], None], parent: int) -> None:
    code = 1
    try:
        begin_fork(parent)
        work()
        code = 0
    except BaseException as error:
        code = exit_code(error)
    finally:
        os._exit(code)


class Spawned:
    """A new Python that is a worker of a run, see `worker_process.main`; neither torch's threads nor CUDA can fork.

    Its standard input says how many cores it may use; it ends when that does, so never later than this process.
    """

    def __init__(self, folder: Path, name: str, cores: int, device: str) -> None:
        paths = os.pathsep.join(os.getcwd() if path == "" else path for path in sys.path)
        command = [sys.executable, "-P", "-c", _CODE, str(folder), name]
        with handling({signal.SIGINT: signal.SIG_IGN}):  # the new process inherits this, before it runs code of ours
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
            )
        self.kill, self.terminate = self._process.kill, self._process.terminate
        self._write(f"{cores} {device}")
        self.cores = cores

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        return code

    def use(self, cores: int) -> None:
        """Say how many cores it may use."""
        if cores != self.cores:
            self.cores = cores
            self._write(str(cores))

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has just died, as will be seen
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()


Process = Fork | Spawned


class ExitHandler:
    """When a worker ends before its time, the cell that it was computing fails, or its job is done again."""

    def __init__(self, queue: Callable[[], Queue], monitor: Monitor) -> None:
        self._queue, self._monitor = queue, monitor
        self._losses: dict[object, int] = {}

    def __call__(self, worker: str, how: str, *, guilty: bool = True) -> None:
        """Handle a worker that ended; `guilty`: its work is to blame, and not a machine that was lost.

        Raises:
            BenchError: workers without a job end again and again.
        """
        state = self._monitor.gone(worker)
        job = state.job if state is not None else None
        reason = f"the process at work on {job.training} {how}" if job is not None else how
        if guilty and state is not None and self.blame(state, reason):
            return
        what = (job.kind, job.key, job.start) if job is not None else None
        self._losses[what] = 1 if state is not None and state.advanced else self._losses.get(what, 0) + 1
        if self._losses[what] <= MOST_LOSSES:
            _log.warning("%s; beginning again with what was saved", reason)
            return
        reason = f"{reason}, for the {self._losses[what]}th time without getting any further"
        if job is None:
            raise BenchError(f"a worker process {reason}")
        if job.kind == "train":
            self._queue().fail_training(job.key, reason)
        else:
            self._queue().fail(job.cells, reason)

    def blame(self, state: WorkerState, reason: str) -> bool:
        """Fail the cell or training that a worker was computing; False: that is not known."""
        if state.cell is not None:
            self._queue().fail([state.cell], reason)
            return True
        if state.job is not None and state.job.kind == "train":
            self._queue().fail_training(state.job.key, reason)
            return True
        return False


class ProcessGroup:
    """Some workers of a run, with names that begin alike; `start` starts one, `queue` is called when a cell failed."""

    def __init__(
        self, start: Callable[[str], Process], name: str, queue: Callable[[], Queue], monitor: Monitor, stop: Stop,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._start, self._name, self._queue, self._monitor = start, name, queue, monitor
        self._stop, self._stopped = stop, stopped
        self._exited = ExitHandler(queue, monitor)
        self._alive: dict[str, Process] = {}
        self._started = 0

    def run(
        self, count: int, *, cores: int | None = None, grace: float = GRACE_SECONDS, pause: float = POLL_SECONDS
    ) -> None:
        """Have so many workers until they end because nothing is left for them; leave none behind.

        Args:
            count: how many.
            cores: to be shared by those that have a job; None: each keeps those that it has.
            grace: the seconds that workers have to save their work on a stop.
            pause: the seconds between two looks at them.

        Raises:
            Stopped: it was asked to stop.
            BenchError: a worker ended by an error that is no cell's, or none could be started.
        """
        try:
            for _ in range(count):
                self._add()
            while self._alive:
                self._stop.check()
                if self._stopped():
                    raise Stopped
                time.sleep(pause)
                self._monitor.poll()
                for name, process in list(self._alive.items()):
                    self._look(name, process)
                if cores is not None:
                    self._share(cores)
        finally:
            self._end(grace)

    def _add(self) -> None:
        name = f"{self._name}.{self._started}"
        self._started += 1
        self._alive[name] = self._start(name)

    def _look(self, name: str, process: Process) -> None:
        code = process.poll()
        if code is not None:
            del self._alive[name]
            self._on_exit(name, code)
        elif (reason := self._monitor.overdue(name)) is not None:
            process.kill()
            _wait([process], GRACE_SECONDS)
            del self._alive[name]
            state = self._monitor.gone(name)
            if state is not None and not self._exited.blame(state, reason) and state.job is not None:
                self._queue().fail(state.job.cells, reason)
            self._add()

    def _on_exit(self, name: str, code: int) -> None:
        self._monitor.poll()
        if code == 0:
            self._monitor.gone(name)
        elif code == CODES["failed"]:
            if name in self._monitor.failures:
                raise as_exception(self._monitor.failures[name])
            raise StorageError(
                f"a worker process could not write to {self._monitor.folder}: free some space, and see its output"
            )
        elif code in _STOPPED:
            self._exited(name, _STOPPED[code], guilty=False)
            self._add()
        elif name in self._monitor.workers:
            self._exited(name, f"{how_it_ended(code)}: {_advice(code)}")
            self._add()
        elif self._alive:
            _log.warning("a worker process %s while it was starting; going on with %d", how_it_ended(code),
                         len(self._alive))  # fmt: skip
        else:
            raise BenchError(f"no worker process could start, and the last one {how_it_ended(code)}: use --jobs 1")

    def _share(self, cores: int) -> None:
        """Workers that have nothing to do leave their cores to the others."""
        states = [self._monitor.workers.get(name) for name in self._alive]
        busy = sum(state is None or not state.idle for state in states)
        for process in self._alive.values():
            process.use(max(1, cores // max(1, busy)))

    def _end(self, grace: float) -> None:
        processes = list(self._alive.values())
        for process in processes:
            process.terminate()
        _wait(processes, grace)
        for process in processes:
            process.kill()
        _wait(processes, GRACE_SECONDS)
        with contextlib.suppress(BenchError):  # the error that ends this run has been raised
            self._monitor.poll()


def _wait(processes: Sequence[Process], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.005)


def as_exception(failure: WorkerFailed) -> Exception:
    """An error of a worker: ours as it was raised there, any other as a bug."""
    ours = getattr(errors, failure.kind, None)
    error: Exception = RuntimeError(f"{failure.kind}: {failure.message}")
    if isinstance(ours, type) and issubclass(ours, BenchError):
        error = ours(failure.message)
    error.add_note(f"In a worker:\n{failure.trace}")
    return error


def _advice(code: int) -> str:
    """What to do about a process that ended so."""
    if code == -signal.SIGKILL:
        return "if for want of memory, use fewer --jobs, or lower --tasks-per-step, --query or the width"
    if code < 0:
        return "if nobody sent that, compiled code of a plugin or library crashed"
    return "a plugin must not (sys.exit, os._exit)"
