"""A worker: claims jobs until there are none, and runs them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from robustbench_meta.engine.training import meta_train
from robustbench_meta.engine.training_snapshots import TrainingSnapshots
from robustbench_meta.errors import BenchError, DeviceLostError, StorageError, located, traceback_of
from robustbench_meta.evaluation.evaluator import Evaluator, outcome_of
from robustbench_meta.evaluation.partial_results import PartialResult, part_bytes
from robustbench_meta.experiment.checkpoints import (
    checkpoint_bytes,
    checkpoint_name,
)
from robustbench_meta.experiment.grid import Training
from robustbench_meta.jobs.context import (
    WorkerContext,
    checkpoint_of,
    self_check,
    surrogate_engine,
    train_plan,
    trained_engine,
)
from robustbench_meta.jobs.events import (
    CellEntered,
    CellFinished,
    CellLeft,
    EvaluationProgress,
    EventLog,
    Idle,
    JobFinished,
    JobStarted,
    TrainingProgress,
    WorkerFailed,
    WorkerStarted,
)
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.output import as_events
from robustbench_meta.jobs.planner import Group
from robustbench_meta.jobs.processes import CODES, Fork, ProcessGroup, exit_code
from robustbench_meta.jobs.queue import Assemble, Evaluate, Job, Queue, Train
from robustbench_meta.jobs.record import record_of
from robustbench_meta.runtime.atomic_files import write_bytes
from robustbench_meta.runtime.devices import device_name, is_lost, peak_memory, reset_peak_memory
from robustbench_meta.runtime.interrupts import Stopped
from robustbench_meta.runtime.precision import computing_in
from robustbench_meta.runtime.seeds import seed_from, seeded

_log = logging.getLogger(__name__)
WAIT_SECONDS = 0.2
"""Between two looks at what others are at work on."""
_BROKEN = (Exception, SystemExit)
"""What a plugin may raise without costing other learners anything."""


class Worker:
    """Runs the jobs of a queue.

    Args:
        place: where.
        queue: of the run.
        monitor: of the run's events, for the copies of itself that it forks.
        exit_when_waiting: whether it ends when others are at work on all that is left.
    """

    def __init__(
        self, place: WorkerContext, queue: Queue, monitor: Monitor, *, exit_when_waiting: bool = False
    ) -> None:
        self.place, self.queue, self.monitor = place, queue, monitor
        self._exits = exit_when_waiting
        place.cores.after_fork = self._after_fork
        self._forked = 0
        """How often it has forked copies."""
        self._evaluator: tuple[tuple[str, frozenset[str]], Evaluator | None] | None = None
        """Of the training that was evaluated last."""

    @property
    def log(self) -> EventLog:
        """Of its events."""
        return self.queue.log

    def work(self) -> None:
        """Run jobs until all cells of the run are over.

        Raises:
            Stopped: it was told to stop; what can be resumed is saved.
            StorageError: something cannot be written.
            DeviceLostError: this process cannot compute on its CUDA device any more.
        """
        self.log.emit(WorkerStarted(socket.gethostname(), os.getpid()))
        idle = False
        while not self.queue.over():
            self.place.stop.check()
            job = self.queue.claim()
            if job is None and self._exits:
                return
            if job is None:
                if not idle:
                    self.log.emit(Idle())
                    idle = True
                with self.place.stop.at_once():
                    time.sleep(WAIT_SECONDS)
                continue
            idle = False
            if isinstance(job, Evaluate) and self._several(job):
                self._fork(job)
            else:
                self._run(job)
        for key in {group.key for group in self.queue.all_groups}:
            self.queue.tidy(key)

    def _after_fork(self) -> None:
        """In a process of the pool of a training: what it logs and prints are events."""
        level = logging.getLogger("robustbench_meta").getEffectiveLevel()
        self._said = contextlib.ExitStack()  # as long as the process
        self._said.enter_context(as_events(EventLog(self.log.path), level))

    def _run(self, job: Job) -> None:
        """Run a job that was claimed; a cell that fails costs no other."""
        title = job.needed.title if isinstance(job, Train) else job.group.title
        places, cells = (job.places, job.cells) if isinstance(job, Evaluate) else (range(0), ())
        keys = tuple(cell.key for cell in cells)
        try:
            self.place.stop.check()
            self.log.emit(JobStarted(job.kind, job.key, title, places.start, places.stop, keys))
            grid = job.needed.grid if isinstance(job, Train) else job.group.grid
            training = job.needed.training if isinstance(job, Train) else job.group.training
            drawing = seeded(seed_from(training.spec.seed, "job", training.key), self.place.device)
            with self._guarded(job), computing_in(grid.run.precision, self.place.device), drawing:
                if isinstance(job, Train):
                    self._train(job)
                elif isinstance(job, Evaluate):
                    self._evaluate(job)
                else:
                    self._assemble(job)
            self.log.emit(JobFinished())
        finally:
            self.queue.release(job)

    @contextlib.contextmanager
    def _guarded(self, job: Job) -> Iterator[None]:
        """What a plugin raises inside fails the cells of the job, or the one that was under way."""
        training = job.needed.training if isinstance(job, Train) else job.group.training
        try:
            yield
        except (StorageError, Stopped):
            raise
        except _BROKEN as error:  # a learner is a plugin, and may raise anything: its cells fail, the grid goes on
            reason, where = _reason(training, error), traceback_of(error)
            if isinstance(job, Train):
                self.queue.fail_training(job.key, reason, where)
            elif isinstance(error, DeviceLostError) and error.cell is not None:
                self.queue.fail([error.cell], reason, where)
            else:
                self.queue.fail([cell.key for cell in job.cells], reason, where)
            if is_lost(error):
                raise DeviceLostError(reason) from error

    # -- training --------------------------------------------------------------------------------------

    def _train(self, job: Train) -> None:
        """Meta-train, from the beginning or from where it was left, and write the checkpoint."""
        place, training, title = self.place, job.needed.training, job.needed.title
        keeper, steps = TrainingSnapshots(place.store.root, job.key, place.stop), training.spec.meta_steps
        state = keeper.state(place.device)

        def report(step: int, metrics: dict[str, float]) -> None:
            self.log.emit(TrainingProgress(title, job.key, step, steps, metrics))

        report(state.step if state is not None else 0, {})
        with place.stop.at_once():
            vmap = self_check(place, job.needed.grid, training)
            plan = state.plan if state is not None else train_plan(place, job.needed.grid, training, vmap)
        self._forget_memory()
        trained = meta_train(job.needed.grid, training, place.device, plan, report, place.cores, keeper, state)
        earlier = state.trained.peak_memory if state is not None else None
        trained.peak_memory = max(filter(None, (earlier, self._peak_memory())), default=None)
        data = checkpoint_bytes(trained, training.spec.model_dump(mode="json"))
        write_bytes(place.store.root / checkpoint_name(job.key), data)
        keeper.forget()

    # -- evaluation ------------------------------------------------------------------------------------

    def _several(self, job: Evaluate) -> bool:
        """Whether copies of this process are to share out the chunks of a training."""
        done, total = self.queue.done(job.group)
        return self.place.device.type == "cpu" and self.place.cores.count() > 1 and total - done > len(job.cells)

    def _fork(self, job: Evaluate) -> None:
        """Make copies of this process, each with one core, that evaluate what is free of a training."""
        keys = tuple(job.group.cells)
        self.log.emit(JobStarted(job.kind, job.key, job.group.title, 0, job.group.chunks[-1].stop, keys))
        try:
            precision = computing_in(job.group.grid.run.precision, self.place.device)
            with self._guarded(job), precision, self.place.stop.at_once():
                self._evaluator_for(job)
        finally:
            self.queue.release(job)

        def start(name: str) -> Fork:
            return Fork(lambda: self._copy(job, self.log.path.with_name(f"{name}.jsonl")))

        self.log.emit(JobFinished())
        name = f"{self.log.path.stem}.{self._forked}"
        group = ProcessGroup(start, name, lambda: self.queue, self.monitor, self.place.stop)
        self._forked += 1
        with self.place.stop.at_once():
            group.run(self.place.cores.count(), grace=0.0)

    def _copy(self, job: Evaluate, path: Path) -> None:
        """The life of a copy."""
        self.queue.store.locks.after_fork()
        torch.set_num_threads(1)
        self.queue.log = EventLog(path)
        level = logging.getLogger("robustbench_meta").getEffectiveLevel()
        with reporting(self.log), as_events(self.log, level):
            self.log.emit(WorkerStarted(socket.gethostname(), os.getpid()))
            while (chunk := self.queue.claim(job.key)) is not None:
                self._run(chunk)

    def _evaluate(self, job: Evaluate) -> None:
        place, group = self.place, job.group
        self._report(group)
        with place.stop.at_once():
            evaluator = self._evaluator_for(job)
            cells = [cell for cell in job.cells if cell.surrogate is None or cell.surrogate.key in evaluator.surrogates]
            if not cells:
                return
            self._forget_memory()
            chunks = evaluator.on(job.places, cells, self._at)
        failures: dict[str, tuple[str, str]] = {}
        for chunk in chunks:
            for key, tally in chunk.cells.items():
                if tally.failure:
                    failures.setdefault(key, (tally.failure, tally.traceback))
        for key, (failure, where) in failures.items():
            self.queue.fail([key], failure, where)
        keys = [cell.key for cell in cells if cell.key not in failures]
        for chunk in chunks:
            chunk.cells = {key: chunk.cells[key] for key in keys}
        if keys:
            part = PartialResult(chunks, asdict(evaluator.engine.plan), device_name(place.device), self._peak_memory())
            write_bytes(job.path, part_bytes(part, job.key, keys), sync=False)
        self._report(group)

    def _report(self, group: Group) -> None:
        done, total = self.queue.done(group)
        self.log.emit(EvaluationProgress(group.title, done, total))

    @contextlib.contextmanager
    def _at(self, cell: str) -> Iterator[None]:
        """Inside, that cell is being computed. A process that dies there stays there."""
        self.log.emit(CellEntered(cell))
        began = time.monotonic()
        try:
            yield
        finally:
            self.log.emit(CellLeft(cell, time.monotonic() - began))

    def _evaluator_for(self, job: Evaluate) -> Evaluator:
        """The evaluator of a job's training: made once, as long as this worker stays with the training.

        A surrogate that cannot be had is missing there, and fails the cells that want it.
        """
        grid, training, place = job.group.grid, job.group.training, self.place
        cells = [cell for cell in job.group.cells.values() if cell.surrogate is not None]
        surrogates = {cell.surrogate.key: cell.surrogate for cell in cells if cell.surrogate is not None}
        which = job.path.name.split(".")[2] + str(id(grid)), frozenset(surrogates)
        if self._evaluator is not None and self._evaluator[0] == which and self._evaluator[1] is not None:
            return self._evaluator[1]
        self._evaluator = None
        count = job.group.chunks[-1].stop
        engine, trained = trained_engine(place, grid, training, count)
        models = {}
        for key, surrogate in surrogates.items():
            try:
                models[key] = surrogate_engine(place, grid, surrogate, count)
            except (StorageError, Stopped):
                raise
            except _BROKEN as error:  # as of a learner
                wanting = [cell.key for cell in cells if cell.surrogate is surrogate]
                self.queue.fail(wanting, f"surrogate: {_reason(surrogate.training, error)}", traceback_of(error))
        test = grid.splits.test.to(place.device)
        evaluator = Evaluator(engine, trained.weights, test, place.device, grid.probe_plan, models)
        self._evaluator = which, evaluator
        return evaluator

    def _assemble(self, job: Assemble) -> None:
        """Write the records of cells from their parts."""
        grid, training = job.group.grid, job.group.training
        trained = checkpoint_of(self.place, training, None)
        for cell in job.cells:
            parts = self.queue.parts_of(job.group, cell)
            if parts is None:
                return  # one was damaged: it is evaluated again
            chunks = [chunk for part in parts for chunk in part.chunks]
            outcome = outcome_of(cell, chunks, grid.probe_plan, grid.splits.test.shape)
            if isinstance(outcome, BenchError):
                self.queue.fail([cell.key], str(outcome))
                continue
            self.place.store.write_record(record_of(grid, cell, outcome, trained, parts))
            self.log.emit(CellFinished(cell.key))
        self.queue.tidy(job.key)

    def _forget_memory(self) -> None:
        self.place.cores.peak = 0
        reset_peak_memory(self.place.device)

    def _peak_memory(self) -> int | None:
        """The peak of the process, this or one of its pool, that held most."""
        here = peak_memory(self.place.device)
        return None if here is None else max(here, self.place.cores.peak)


# -- models ----------------------------------------------------------------------------------------


def _reason(training: Training, error: BaseException) -> str:
    if isinstance(error, BenchError):
        return str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return f"{training.title} does not fit in the device's memory: lower --tasks-per-step, --query or the width"
    return f"learner '{training.title}' failed: {located(error)}"


@contextlib.contextmanager
def reporting(log: EventLog) -> Iterator[None]:
    """What is raised inside and ends the worker is an event."""
    try:
        yield
    except Exception as error:
        if exit_code(error) == CODES["failed"]:
            with contextlib.suppress(StorageError):  # the exit code tells
                log.emit(WorkerFailed(type(error).__name__, str(error), traceback.format_exc()))
        raise
