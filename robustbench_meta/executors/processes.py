"""Tasks side by side, each in a worker process of this machine; the CPU's cores are shared out among them.

Workers are started afresh (spawn), never forked: neither the threads of torch nor CUDA survive a fork. Each worker
has a pipe of its own and no lock is shared, so that one that is killed holds up no other.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from robustbench_meta.deaths import how_it_ended
from robustbench_meta.desk import Desk
from robustbench_meta.errors import BenchError
from robustbench_meta.executors import Recipe
from robustbench_meta.executors.speech import Voice, raised
from robustbench_meta.executors.worker import OURS, SAFE_PATH, serve

_log = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")
GRACE_SECONDS = 10.0
"""How long a worker has to keep what is under way when it is told to end, before it is killed."""
POLL_SECONDS = 0.5
"""How often what other runs do, and what takes too long, is looked at."""


class Processes:
    """Worker processes that are replaced when they die."""

    def __init__(self, recipe: Recipe, workers: int, cores: int) -> None:
        self._recipe, self.slots, self._cores = recipe, workers, cores

    def run(self, desk: Desk) -> None:
        """See `Executor.run`."""
        staff = _Staff(self._recipe, self._cores, desk)
        try:
            staff.work(self.slots)
        finally:
            staff.dismiss()


class _Worker:
    """A worker process as its driver sees it."""

    def __init__(self, recipe: Recipe, lanes: Any) -> None:
        self.pipe, self._theirs = _SPAWN.Pipe()
        level = logging.getLogger("robustbench_meta").getEffectiveLevel()
        # not a daemon: those may not start processes, and a plugin may want to
        self.device, self.title = recipe.device, ""
        self.process: SpawnProcess = _SPAWN.Process(target=serve, args=(self._theirs, recipe, lanes, level))
        self.ready = False
        """Whether it has been heard of."""
        self.busy = False
        """Whether it has a task."""
        self.stopped = ""
        """Why it ends in good order, in the middle of its task."""

    def start(self) -> None:
        with self._theirs, _deaf_to_interrupts(), _away_from_here():
            self.process.start()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def terminate(self) -> None:
        if self.process.pid is not None:
            self.process.terminate()

    def end(self) -> int:
        """Wait a moment for the process to end, or kill it; its exit code, or minus the signal."""
        if self.process.pid is not None:
            self.process.join(1.0)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
        self.pipe.close()
        return self.process.exitcode or 0


class _Staff:
    """The workers of one run."""

    def __init__(self, recipe: Recipe, cores: int, desk: Desk) -> None:
        self._recipe, self._cores, self._desk = recipe, cores, desk
        self._workers: list[_Worker] = []
        self._lanes = _SPAWN.RawValue("i", 1)  # needs no lock: only this process writes it
        self._devices = _devices(recipe.device)
        self._stillborn = 0
        self._voice = Voice()

    def work(self, count: int) -> None:
        """Start workers, and return when nothing is left to do."""
        while self._desk.open:
            self._desk.stop.check()
            self._hire(count)
            ends = [end for each in self._workers for end in (each.pipe, each.process.sentinel)]
            ready = connection.wait(ends, POLL_SECONDS)
            for worker in list(self._workers):
                if worker.pipe in ready:
                    self._listen(worker)
                elif worker.process.sentinel in ready:
                    self._bury(worker)
                elif (reason := self._desk.overdue(worker)) is not None:
                    self._expel(worker, reason)
            for worker in self._workers:
                if worker.ready and not worker.busy:
                    self._give_task(worker)

    def dismiss(self) -> None:
        """End all workers; those at work have a moment to keep what they have."""
        for worker in self._workers:
            worker.terminate()
        until = time.monotonic() + GRACE_SECONDS
        talking = {worker.pipe: worker for worker in self._workers}
        while talking and (left := until - time.monotonic()) > 0:
            ready = connection.wait(list(talking), left)
            for pipe, worker in [(pipe, worker) for pipe, worker in talking.items() if pipe in ready]:
                try:
                    self._take_note(worker, *pipe.recv())
                except (EOFError, OSError):
                    del talking[pipe]
                except Exception as error:  # what ended this run has been said, and the others are to be heard too
                    _log.debug("while ending: %s", error)
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _hire(self, count: int) -> None:
        """Workers for what can be begun, up to so many."""
        idle = sum(not each.busy for each in self._workers)
        for _ in range(min(count - self._stillborn - len(self._workers), len(self._desk.waiting) - idle)):
            used = [each.device for each in self._workers]
            device = min(self._devices, key=used.count)
            worker = _Worker(replace(self._recipe, device=device), self._lanes)
            self._workers.append(worker)
            self._share_cores()
            worker.start()

    def _share_cores(self) -> None:
        self._lanes.value = max(1, self._cores // max(1, sum(each.busy or not each.ready for each in self._workers)))

    def _listen(self, worker: _Worker) -> None:
        try:
            kind, facts = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        self._take_note(worker, kind, facts)

    def _take_note(self, worker: _Worker, kind: str, facts: dict[str, Any]) -> None:
        if kind == "idle":
            if worker.busy:
                worker.busy = False
                self._desk.over(worker)
                self._share_cores()
            worker.ready = True
        elif kind == "stopped":
            worker.stopped = facts.get("why", "was told to stop")
        elif kind == "error":
            raise raised(**facts)
        elif not self._voice.says(kind, facts):
            self._desk.hear(worker, kind, **facts)

    def _give_task(self, worker: _Worker) -> None:
        """The next task, if there is one now; the others have the cores of a worker that has none."""
        task = self._desk.next(worker)
        if task is None:
            return
        worker.busy = True
        worker.title = task.title
        self._share_cores()
        with contextlib.suppress(OSError):  # it has just died, as will be heard
            worker.pipe.send(task)

    def _bury(self, worker: _Worker) -> None:
        """A worker has died: what it was at failed, and somebody else does the rest."""
        self._workers.remove(worker)
        code = worker.end()
        death = how_it_ended(code)
        if worker.stopped:
            self._desk.died(worker, f"the process at work on {worker.title} {worker.stopped}", guilty=False)
        elif worker.busy:
            self._desk.died(worker, f"the process at work on {worker.title} {death}: {_advice(code)}")
        elif not worker.ready and self._workers:
            self._stillborn += 1
            _log.warning("a worker process %s while it was starting; going on with %d", death, len(self._workers))
        elif not worker.ready:
            raise BenchError(f"no worker process could start, and the last one {death}: use --jobs 1")
        self._share_cores()

    def _expel(self, worker: _Worker, reason: str) -> None:
        """A worker's cell takes too long."""
        self._workers.remove(worker)
        worker.kill()
        self._desk.expired(worker, reason)
        self._share_cores()


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


@contextlib.contextmanager
def _away_from_here() -> Iterator[None]:
    """A Python that is started inside imports nothing of the working folder, where a select.py may lie."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = before or OURS
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]


def _devices(device: str) -> list[str]:
    """The devices that workers are shared out to: all CUDA devices where none is named."""
    if device == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [device]


def _advice(code: int) -> str:
    """What to do about a process that ended so."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "if for want of memory, use fewer --jobs, or lower --tasks-per-step, --query or the width"
    if code < 0:
        return "if nobody sent that, compiled code of a plugin or library crashed"
    return "a plugin must not (sys.exit, os._exit)"
