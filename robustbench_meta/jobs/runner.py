"""One run, from a suite to its summary: the steps that the command line and the Python API share."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_meta.engine.training_snapshots import keep_seconds
from robustbench_meta.errors import StorageError
from robustbench_meta.experiment.grid import Grid, build_grid, build_grids
from robustbench_meta.experiment.suite import Suite
from robustbench_meta.jobs.events import FOLDER, EventLog, RunFinished, RunStarted
from robustbench_meta.jobs.launchers import Run, check_executor, computes_here, launcher_for
from robustbench_meta.jobs.monitor import Monitor, Reporter, Summary
from robustbench_meta.jobs.planner import required_trainings, work_of, workers_for
from robustbench_meta.jobs.policy import RECIPE, Policy, Recipe
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.jobs.status import run_lock
from robustbench_meta.registry.registry import Registry, load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.atomic_files import cannot_write, write_bytes
from robustbench_meta.runtime.cpu import available_cores
from robustbench_meta.runtime.devices import choose_device
from robustbench_meta.runtime.interrupts import Stop
from robustbench_meta.runtime.precision import check_precision

__all__ = [
    "Policy", "PreparedRun", "Summary", "build_grid", "build_grids", "compute", "failures_of", "make_ready", "run",
]  # fmt: skip
MOST_RUNS = 20
"""Runs with event files; when another begins, those of older runs that are over are removed."""


@dataclass
class PreparedRun:
    """A suite that can run here."""

    suite: Suite
    grids: list[Grid]
    """Of its parts, of which no two have a cell in common, see `build_grids`."""
    registry: Registry
    device: torch.device
    plugins: Path | None = None
    """Where `registry` found local plugins, for other processes."""
    local_plugins: bool = True
    data_root: Path | None = None

    @property
    def keys(self) -> set[str]:
        """Of all its cells."""
        return {cell.key for grid in self.grids for cell in grid.cells}


def make_ready(
    suite: Suite, plugins: Path | None, local_plugins: bool, data_root: Path | None, policy: Policy,
    track: Sequence[str] = (), bring: Callable[[Registry], None] | None = None,
) -> PreparedRun:  # fmt: skip
    """Find the device and the plugins, load the data, and expand the grids.

    Args:
        suite: what is to be run.
        plugins: a folder with more plugins; None: ./plugins if it is there.
        local_plugins: False for none of a folder.
        data_root: where data sets are.
        policy: how it is done.
        track: trackers, as typed.
        bring: adds plugins that were found in no other way.
    """
    specs = [part.spec() for part in suite.parts]
    keep_seconds()
    device = choose_device(specs[0].device, here=computes_here(policy.executor))
    check_executor(policy.executor, str(device))
    for spec in specs:
        check_precision(spec.precision, device)
    registry = load_registry(plugins, local=local_plugins)
    if bring is not None:
        bring(registry)
    registry.attach(track)
    grids = build_grids(specs, registry, data_root, [part.placed for part in suite.parts])
    return PreparedRun(suite, grids, registry, device, plugins, local_plugins, data_root)


def failures_of(summary: Summary) -> list[dict[str, Any]]:
    """Which cells failed and why, as plain data; `before`: in an earlier run, and not tried again."""
    return [
        {**cell.labels, "reason": reason, "before": before}
        for before, failed in ((False, summary.failed), (True, summary.failed_before))
        for cell, reason in failed
    ]


def run(grids: Grid | list[Grid], registry: Registry, store: Store, device: torch.device, policy: Policy | None = None,
        *, plugins: Path | None = None, local_plugins: bool = True, stop: Stop | None = None) -> Summary:  # fmt: skip
    """Compute the cells of grids that were made by hand; see `compute`."""
    all_grids = grids if isinstance(grids, list) else [grids]
    ready = PreparedRun(Suite(), all_grids, registry, device, plugins, local_plugins)
    return compute(ready, store, policy or Policy(), Stop() if stop is None else stop)


def compute(ready: PreparedRun, store: Store, policy: Policy, stop: Stop) -> Summary:
    """Compute the cells that the store has no record of; a cell that fails costs no other.

    A training that several parts need is done once.

    Raises:
        Stopped: `stop` was asked; finished cells, and most of the unfinished work, are saved.
        BenchError: the device has not the grid's precision, or the executor is not to be had.
        StorageError: something cannot be written.
    """
    grids, registry, device, summary = ready.grids, ready.registry, ready.device, Summary()
    for grid in grids:
        check_precision(grid.run.precision, device)
    cells = {cell.key: cell for grid in grids for cell in grid.cells}
    pending = _pending(grids, store, policy, summary)
    about, folder = _about(grids), _new_folder(store)
    log = EventLog(folder / "driver.jsonl", stop)
    queue = Queue(grids, store, pending, device.type, log)
    reporter = Reporter(registry, store, cells, summary)
    monitor = Monitor(folder, policy.cell_timeout, reporter)
    needed = required_trainings(grids, pending)
    work = work_of(queue.groups, needed, {key for key in needed if store.has_checkpoint(key)}.__contains__)
    trainings = {
        key: {
            "title": target.title, "learner": target.training.label, **target.grid.labels,
            "spec": target.training.spec.model_dump(mode="json"),
        }
        for key, target in needed.items()
    }  # fmt: skip
    facts: dict[str, Any] = {"cells": len(pending), "work": work, "results": str(store.root), "trainings": trainings}
    try:
        log.emit(RunStarted(dict(about), **facts))
        registry.emit("run_started", run=about, **facts)
        if pending:
            cores = available_cores()
            launch = launcher_for(policy, workers_for(policy.jobs, work, device, cores), device)
            recipe = _recipe(ready, store, policy, pending)
            write_bytes(folder / RECIPE, recipe.model_dump_json(indent=1).encode())
            launch(Run(grids, store, folder, queue, monitor, device, stop, cores, policy))
        monitor.poll()
        for key in [key for key in pending if key not in reporter.over]:  # other runs have finished or failed these
            if store.has(key):
                summary.skipped += 1
            elif (reason := store.failure(key)) is not None:
                summary.failed_before.append((cells[key], reason))
        for key in {training.key for grid in grids for training in grid.trainings} | set(needed):
            queue.tidy(key)
    finally:
        with contextlib.suppress(StorageError):  # the error that ended the run is raised
            log.emit(RunFinished())
        log.close()
        store.locks.give_back_all()
        registry.emit("run_finished", run=about, finished=summary.finished, failed=len(summary.failed))
    return summary


def _recipe(ready: PreparedRun, store: Store, policy: Policy, pending: Sequence[str]) -> Recipe:
    return Recipe(
        runs=tuple(grid.run for grid in ready.grids), cells=tuple(pending), results=store.root.resolve(),
        device=str(ready.device), plugins=ready.plugins, data_root=ready.data_root, local_plugins=ready.local_plugins,
        cell_timeout=policy.cell_timeout, exit_when_waiting=policy.exit_when_waiting, folder=Path.cwd(),
        environment={name: value for name, value in os.environ.items() if name.startswith("ROBUSTBENCH_META_")},
        log_level=logging.getLogger("robustbench_meta").getEffectiveLevel(),
    )  # fmt: skip


def _pending(grids: Sequence[Grid], store: Store, policy: Policy, summary: Summary) -> list[str]:
    """The keys of the cells that are still to do; the others are counted in `summary`."""
    todo: list[str] = []
    for grid in grids:
        keys = [cell.key for cell in grid.cells]
        if policy.fresh:
            store.forget(keys, [training.key for training in grid.needed(keys)])
        pending = [key for key in keys if not store.has(key)]
        failed = {} if policy.retry_failed else {key: why for key in pending if (why := store.failure(key)) is not None}
        summary.skipped += len(keys) - len(pending)
        summary.failed_before += [(cell, failed[cell.key]) for cell in grid.cells if cell.key in failed]
        todo += [key for key in pending if key not in failed]
    for key in todo:
        store.forget_failure(key)
    return todo


def _new_folder(store: Store) -> Path:
    """A folder for the events of this run, which is locked as long as the run lasts."""
    root = store.root / FOLDER
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}"
    number = 0
    try:
        root.mkdir(exist_ok=True)
        for folder in sorted(root.iterdir())[: -MOST_RUNS + 1]:
            with store.locks.tried(run_lock(folder)) as over:
                if over:
                    shutil.rmtree(folder, ignore_errors=True)
            store.locks.forget(run_lock(folder))
        while (folder := root / (f"{name}-{number}" if number else name)).exists():
            number += 1
        folder.mkdir()
    except OSError as error:
        raise cannot_write(root, error) from error
    store.locks.take(run_lock(folder))
    return folder


def _about(grids: Sequence[Grid]) -> Mapping[str, Any]:
    """What is run, as plain data: of several parts what they share, lists joined, None where they differ, and each."""
    parts = [grid.run.model_dump(mode="json") for grid in grids]
    if len(parts) == 1:
        return parts[0]
    shared: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, list):
            shared[name] = list(dict.fromkeys(each for value in values for each in value))
        else:
            shared[name] = first if all(value == first for value in values) else None
    return {**shared, "parts": parts}
