"""Jobs side by side, each in a worker process of this machine; the CPU's cores are shared out among them.

Workers are started afresh (spawn), never forked: neither the threads of torch nor CUDA survive a fork. Each worker
has a pipe of its own and no lock is shared, so that one that is killed holds up no other.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import multiprocessing
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from robustbench_meta import errors
from robustbench_meta.deaths import how_it_ended
from robustbench_meta.errors import BenchError
from robustbench_meta.executors import Hear, Job, Recipe
from robustbench_meta.executors.worker import serve

_log = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")
GRACE_SECONDS = 3.0
"""How long a worker has to end when it is told to, before it is killed."""


class Processes:
    """Does the longest job first, in worker processes that are replaced when they die."""

    def __init__(self, recipe: Recipe, workers: int, cores: int) -> None:
        self._recipe, self._workers, self._cores = recipe, workers, cores

    def run(self, jobs: Sequence[Job], hear: Hear) -> None:
        """See `Executor.run`."""
        staff = _Staff(self._recipe, self._cores, jobs, hear)
        try:
            staff.work(self._workers)
        finally:
            staff.dismiss()


class _Worker:
    """A worker process as its driver sees it."""

    def __init__(self, recipe: Recipe, lanes: Any) -> None:
        self.pipe, self._theirs = _SPAWN.Pipe()
        level = logging.getLogger("robustbench_meta").getEffectiveLevel()
        # not a daemon: those may not start processes, and a plugin may want to
        self.process: SpawnProcess = _SPAWN.Process(target=serve, args=(self._theirs, recipe, lanes, level))
        self.ready = False
        self.job: Job | None = None
        self.open: set[str] = set()
        """The cells of its job that nothing has been heard of yet."""

    def start(self) -> None:
        with self._theirs, _deaf_to_interrupts():
            self.process.start()

    def terminate(self) -> None:
        if self.process.pid is not None:
            self.process.terminate()

    def end(self) -> int:
        """Wait a moment for the process to end, or kill it; its exit code."""
        if self.process.pid is not None:
            self.process.join(GRACE_SECONDS)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
        self.pipe.close()
        return self.process.exitcode or 0


class _Staff:
    """The workers of one run, and the jobs that nobody has begun."""

    def __init__(self, recipe: Recipe, cores: int, jobs: Sequence[Job], hear: Hear) -> None:
        self._recipe, self._cores, self._hear = recipe, cores, hear
        self._waiting = deque(sorted(jobs, key=lambda job: -job.cost))
        self._workers: list[_Worker] = []
        self._lanes = _SPAWN.RawValue("i", 1)  # needs no lock: only this process writes it
        self._shown: dict[str, dict[Any, Any]] = {}
        """What the module warnings keeps of the warnings that were shown, by file."""

    def work(self, count: int) -> None:
        """Start workers, and return when all jobs are over."""
        for _ in range(min(count, len(self._waiting))):
            self._hire()
        while self._workers:
            ends = [end for each in self._workers for end in (each.pipe, each.process.sentinel)]
            ready = connection.wait(ends)
            for worker in list(self._workers):
                if worker.pipe in ready:
                    self._listen(worker)
                elif worker.process.sentinel in ready:
                    self._bury(worker)

    def dismiss(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.end()

    def _hire(self) -> None:
        worker = _Worker(self._recipe, self._lanes)
        self._workers.append(worker)
        self._share_cores()
        worker.start()

    def _share_cores(self) -> None:
        self._lanes.value = max(1, self._cores // max(1, len(self._workers)))

    def _listen(self, worker: _Worker) -> None:
        try:
            kind, facts = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if kind == "idle":
            self._give_job(worker)
        elif kind == "error":
            raise _error(**facts)
        elif kind == "log":
            _log_here(facts["record"])
        elif kind == "warning":
            self._warn(**facts)
        elif kind == "print":
            getattr(sys, facts["stream"]).write(facts["text"])
        else:
            worker.open.discard(facts.get("key") or facts.get("record", {}).get("key"))
            self._hear(kind, **facts)

    def _give_job(self, worker: _Worker) -> None:
        """The next job; if there is none, the worker ends, and the others have its cores."""
        worker.ready = True
        worker.job = self._waiting.popleft() if self._waiting else None
        worker.open = set(worker.job.cells if worker.job else ())
        with contextlib.suppress(OSError):  # it has just died, as will be heard
            worker.pipe.send(worker.job)
        if worker.job is None:
            self._workers.remove(worker)
            self._share_cores()
            worker.end()

    def _bury(self, worker: _Worker) -> None:
        """A worker has died: its job failed, and somebody else does the others."""
        self._workers.remove(worker)
        code = worker.end()
        death = how_it_ended(code)
        if worker.job is not None:
            reason = f"the process at work on {worker.job.title} {death}: {_advice(code)}"
            for key in [key for key in worker.job.cells if key in worker.open]:
                self._hear("cell_failed", key=key, reason=reason)
            if len(self._waiting) > sum(not each.ready for each in self._workers):
                self._hire()
        elif self._workers:
            _log.warning("a worker process %s while it was starting; going on with %d", death, len(self._workers))
        elif self._waiting:
            raise BenchError(f"no worker process could start, and the last one {death}: use --jobs 1")
        self._share_cores()

    def _warn(self, text: str, category: str, filename: str, lineno: int) -> None:
        """Warn as the worker did; the same warning of several workers is shown once."""
        known = getattr(builtins, category, UserWarning)
        warnings.warn_explicit(text, known, filename, lineno, registry=self._shown.setdefault(filename, {}))


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that is started inside ignores Ctrl-C from its first moment, even before it runs code of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _log_here(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _error(kind: str, message: str, trace: str) -> Exception:
    """What was raised in a worker: ours as it was, anything else as a bug."""
    ours = getattr(errors, kind, None)
    error: Exception = RuntimeError(f"{kind}: {message}")
    if isinstance(ours, type) and issubclass(ours, BenchError):
        error = ours(message)
    error.add_note(f"In a worker process:\n{trace}")
    return error


def _advice(code: int) -> str:
    """What to do about a process that ended so."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "if for want of memory, use fewer --jobs, or lower --tasks-per-step, --query or the width"
    if code < 0:
        return "if nobody sent that, compiled code of a plugin or library crashed"
    return "a plugin must not (sys.exit, os._exit)"
