"""A worker: claims jobs until there are none, and runs them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from robustbench_meta.engine.training import meta_train
from robustbench_meta.engine.training_snapshots import TrainingSnapshots
from robustbench_meta.errors import BenchError, DeviceLostError, StorageError, located, traceback_of
from robustbench_meta.evaluation.evaluator import Evaluator, outcome_of
from robustbench_meta.evaluation.partial_results import PartialResult, part_bytes
from robustbench_meta.experiment.checkpoints import checkpoint_bytes, checkpoint_name
from robustbench_meta.experiment.grid import Training
from robustbench_meta.jobs import events
from robustbench_meta.jobs.context import WorkerContext, checkpoint_of, self_check, train_plan, trained_engine
from robustbench_meta.jobs.events import EventLog
from robustbench_meta.jobs.monitor import Monitor
from robustbench_meta.jobs.output import as_events
from robustbench_meta.jobs.planner import EvaluationGroup
from robustbench_meta.jobs.processes import CODES, Fork, ProcessGroup, exit_code
from robustbench_meta.jobs.queue import Assemble, Evaluate, Job, Queue, Train
from robustbench_meta.jobs.record import record_of
from robustbench_meta.runtime.atomic_files import write_bytes
from robustbench_meta.runtime.devices import device_name, is_lost, peak_memory, reset_peak_memory
from robustbench_meta.runtime.interrupts import Stopped
from robustbench_meta.runtime.precision import computing_in
from robustbench_meta.runtime.seeds import seed_from, seeded

WAIT_SECONDS = 0.2
"""Between two looks for a job, while others work on all that is left."""
_PLUGIN_ERRORS = (Exception, SystemExit)
"""What a plugin may raise without costing other learners anything."""


class Worker:
    """Runs the jobs of a queue; `exit_when_waiting`: it ends when others work on all that is left."""

    def __init__(
        self, context: WorkerContext, queue: Queue, monitor: Monitor, *, exit_when_waiting: bool = False
    ) -> None:
        self.context, self.queue, self.monitor = context, queue, monitor
        self.device, self.stop = context.device, context.stop
        self._exits = exit_when_waiting
        context.cores.after_fork = self._after_fork
        self._forked = 0
        """How often it has forked copies."""
        self._evaluator: tuple[object, Evaluator] | None = None
        """Of the training that was evaluated last, and what it was made of."""

    @property
    def log(self) -> EventLog:
        """Of its events."""
        return self.queue.log

    def work(self) -> None:
        """Run jobs until all cells of the run are over.

        Raises:
            Stopped: it was asked to stop; what can be resumed is saved.
            StorageError: something cannot be written.
            DeviceLostError: this process cannot compute on its CUDA device any more.
        """
        self.log.emit(events.WorkerStarted(socket.gethostname(), os.getpid()))
        idle = False
        while not self.queue.over():
            self.stop.check()
            job = self.queue.claim()
            if job is None and self._exits:
                return
            if job is None:
                if not idle:
                    self.log.emit(events.Idle())
                with self.stop.at_once():
                    time.sleep(WAIT_SECONDS)
            elif isinstance(job, Evaluate) and self._worth_forking(job):
                self._fork(job)
            else:
                self._run(job)
            idle = job is None
        for key in {group.key for group in self.queue.all_groups}:
            self.queue.tidy(key)

    def _run(self, job: Job) -> None:
        """Run a job that was claimed; a cell that fails costs no other."""
        grid, training = job.target.grid, job.target.training
        try:
            self.stop.check()
            episodes = job.episodes if isinstance(job, Evaluate) else range(0)
            self._begin(job, episodes, [] if isinstance(job, Train) else [cell.key for cell in job.cells])
            drawing = seeded(seed_from(training.spec.seed, "job", training.key), self.device)
            with self._failing_cells_of(job), computing_in(grid.run.precision, self.device), drawing:
                if isinstance(job, Train):
                    self._train(job)
                elif isinstance(job, Evaluate):
                    self._evaluate(job)
                else:
                    self._assemble(job)
            self.log.emit(events.JobFinished())
        finally:
            self.queue.release(job)

    def _begin(self, job: Job, episodes: range, cells: Iterable[str]) -> None:
        key, title = job.target.key, job.target.title
        self.log.emit(events.JobStarted(job.kind, key, title, episodes.start, episodes.stop, tuple(cells)))

    @contextlib.contextmanager
    def _failing_cells_of(self, job: Job) -> Iterator[None]:
        """What a plugin raises inside fails the cell that was being computed, or all cells of the job."""
        try:
            yield
        except (StorageError, Stopped):
            raise
        except _PLUGIN_ERRORS as error:
            reason, where = _reason(job.target.training, error), traceback_of(error)
            if isinstance(job, Train):
                self.queue.fail_training(job.target.key, reason, where)
            elif isinstance(error, DeviceLostError) and error.cell is not None:
                self.queue.fail([error.cell], reason, where)
            else:
                self.queue.fail([cell.key for cell in job.cells], reason, where)
            if is_lost(error):
                raise DeviceLostError(reason) from error

    # -- training --------------------------------------------------------------------------------------

    def _train(self, job: Train) -> None:
        """Meta-train, from the beginning or from its snapshot, and write the checkpoint."""
        context, target, root = self.context, job.target, self.context.store.root
        training, steps = target.training, target.training.spec.meta_steps
        snapshots = TrainingSnapshots(root, target.key, self.stop)
        state = snapshots.state(self.device)

        def report(step: int, metrics: dict[str, float]) -> None:
            self.log.emit(events.TrainingProgress(target.title, target.key, step, steps, metrics))

        report(state.step if state is not None else 0, {})
        with self.stop.at_once():
            vmap = self_check(context, target.grid, training)
            plan = state.plan if state is not None else train_plan(context, target.grid, training, vmap)
        self._reset_peak_memory()
        trained = meta_train(target.grid, training, self.device, plan, report, context.cores, snapshots, state)
        earlier = state.trained.peak_memory if state is not None else None
        trained.peak_memory = max(filter(None, (earlier, self._peak_memory())), default=None)
        write_bytes(
            root / checkpoint_name(target.key), checkpoint_bytes(trained, training.spec.model_dump(mode="json"))
        )
        snapshots.forget()

    # -- evaluation ------------------------------------------------------------------------------------

    def _worth_forking(self, job: Evaluate) -> bool:
        """Whether copies of this process are to share out the chunks of a training."""
        done, total = self.queue.done(job.target)
        return self.device.type == "cpu" and self.context.cores.count() > 1 and total - done > len(job.cells)

    def _fork(self, job: Evaluate) -> None:
        """Make copies of this process, each with one core, that evaluate the free chunks of a training."""
        self._begin(job, range(job.target.chunks[-1].stop), job.target.cells)
        try:
            with (
                self._failing_cells_of(job),
                computing_in(job.target.grid.run.precision, self.device),
                self.stop.at_once(),
            ):
                self._evaluator_of(job.target)  # made here once, not in each copy
        finally:
            self.queue.release(job)
        self.log.emit(events.JobFinished())

        def start(name: str) -> Fork:
            return Fork(lambda: self._run_copy(job.target.key, self.log.path.with_name(f"{name}.jsonl")))

        name = f"{self.log.path.stem}.{self._forked}"
        self._forked += 1
        with self.stop.at_once():
            ProcessGroup(start, name, lambda: self.queue, self.monitor, self.stop).run(
                self.context.cores.count(), grace=0.0
            )

    def _run_copy(self, training: str, path: Path) -> None:
        self.queue.store.locks.after_fork()
        torch.set_num_threads(1)
        self.queue.log = EventLog(path)
        with failure_as_event(self.log), as_events(self.log, _log_level()):
            self.log.emit(events.WorkerStarted(socket.gethostname(), os.getpid()))
            while (job := self.queue.claim(training)) is not None:
                self._run(job)

    def _after_fork(self) -> None:
        """In a process of the pool of a training: what it logs and prints are events."""
        self._output = contextlib.ExitStack()  # as long as the process
        self._output.enter_context(as_events(EventLog(self.log.path), _log_level()))

    def _evaluate(self, job: Evaluate) -> None:
        self._report(job.target)
        with self.stop.at_once():
            evaluator = self._evaluator_of(job.target)
            cells = [cell for cell in job.cells if cell.surrogate is None or cell.surrogate.key in evaluator.surrogates]
            if not cells:
                return
            self._reset_peak_memory()
            chunks = evaluator.evaluate(job.episodes, cells, self._computing)
        failed = set()
        for chunk in chunks:
            for key, tally in chunk.cells.items():
                if tally.failure:  # of several chunks that fail the first counts
                    self.queue.fail([key], tally.failure, tally.traceback)
                    failed.add(key)
        keys = [cell.key for cell in cells if cell.key not in failed]
        for chunk in chunks:
            chunk.cells = {key: chunk.cells[key] for key in keys}
        if keys:
            plan, peak = asdict(evaluator.engine.plan), self._peak_memory()
            part = PartialResult(chunks, plan, device_name(self.device), peak)
            write_bytes(job.path, part_bytes(part, job.target.key, keys), sync=False)
        self._report(job.target)

    def _report(self, group: EvaluationGroup) -> None:
        self.log.emit(events.EvaluationProgress(group.title, *self.queue.done(group)))

    @contextlib.contextmanager
    def _computing(self, cell: str) -> Iterator[None]:
        """Inside, that cell is being computed: if this process dies there, its last event says so."""
        self.log.emit(events.CellEntered(cell))
        began = time.monotonic()
        try:
            yield
        finally:
            self.log.emit(events.CellLeft(cell, time.monotonic() - began))

    def _evaluator_of(self, group: EvaluationGroup) -> Evaluator:
        """The evaluator of a training: made once, as long as this worker stays with the training.

        A surrogate that cannot be had is missing there, and fails the cells that want it.
        """
        grid, count = group.grid, group.chunks[-1].stop
        surrogates = {cell.surrogate.key: cell.surrogate for cell in group.cells.values() if cell.surrogate is not None}
        made_of = group, self.queue.identity(group), frozenset(surrogates)
        if self._evaluator is not None and self._evaluator[0] == made_of:
            return self._evaluator[1]
        self._evaluator = None
        engine, weights = trained_engine(self.context, grid, group.training, count)
        models = {}
        for key, surrogate in surrogates.items():
            try:
                models[key] = trained_engine(self.context, grid, surrogate, count)
            except (StorageError, Stopped):
                raise
            except _PLUGIN_ERRORS as error:
                cells = [cell for cell in group.cells.values() if cell.surrogate and cell.surrogate.key == key]
                self.queue.fail(
                    (cell.key for cell in cells),
                    f"surrogate: {_reason(surrogate.training, error)}",
                    traceback_of(error),
                )
        test = grid.splits.test.to(self.device)
        evaluator = Evaluator(engine, weights, test, self.device, grid.probe_plan, models)
        self._evaluator = made_of, evaluator
        return evaluator

    def _assemble(self, job: Assemble) -> None:
        """Write the records of cells from their parts."""
        grid = job.target.grid
        trained = checkpoint_of(self.context, job.target.training, None)
        for cell in job.cells:
            parts = self.queue.parts_of(job.target, cell)
            if parts is None:
                return  # one was damaged: it is evaluated again
            chunks = [chunk for part in parts for chunk in part.chunks]
            outcome = outcome_of(cell, chunks, grid.probe_plan, grid.splits.test.shape)
            if isinstance(outcome, BenchError):
                self.queue.fail([cell.key], str(outcome))
                continue
            self.context.store.write_record(record_of(grid, cell, outcome, trained, parts))
            self.log.emit(events.CellFinished(cell.key))
        self.queue.tidy(job.target.key)

    def _reset_peak_memory(self) -> None:
        self.context.cores.peak = 0
        reset_peak_memory(self.device)

    def _peak_memory(self) -> int | None:
        """The peak of the process, this or one of its pool, with the highest."""
        here = peak_memory(self.device)
        return None if here is None else max(here, self.context.cores.peak)


def _log_level() -> int:
    return logging.getLogger("robustbench_meta").getEffectiveLevel()


def _reason(training: Training, error: BaseException) -> str:
    if isinstance(error, BenchError):
        return str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return f"{training.title} does not fit in the device's memory: lower --tasks-per-step, --query or the width"
    return f"learner '{training.title}' failed: {located(error)}"


@contextlib.contextmanager
def failure_as_event(log: EventLog) -> Iterator[None]:
    """What is raised inside and ends the worker is an event."""
    try:
        yield
    except Exception as error:
        if exit_code(error) == CODES["failed"]:
            with contextlib.suppress(StorageError):  # the exit code tells
                log.emit(events.WorkerFailed(type(error).__name__, str(error), traceback.format_exc()))
        raise
