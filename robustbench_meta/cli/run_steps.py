"""What `bench run` does once its options are read; loaded late, for torch takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from robustbench_meta.cli.json_output import Events
from robustbench_meta.cli.run_summary import (
    WorkEstimate,
    afterwards,
    cells_table,
    failures,
    header,
    outcome,
    work_table,
)
from robustbench_meta.jobs.planner import evaluation_groups, required_trainings, work_of, workers_for
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.jobs.runner import PreparedRun, compute, failures_of
from robustbench_meta.reporting.terminal.console import err, out
from robustbench_meta.reporting.terminal.progress import listening, showing_progress
from robustbench_meta.results.store import Store, is_done, is_trained
from robustbench_meta.runtime.cpu import available_cores
from robustbench_meta.runtime.interrupts import Stop


def execute(
    ready: PreparedRun, results: Path, policy: Policy, stop: Stop, *, quiet: bool = False, events: Events | None = None,
    debug: bool = False,
) -> int:  # fmt: skip
    """Run the suite, show its tables, and return how many of its cells failed, now or before.

    Args:
        ready: the suite.
        results: the folder.
        policy: how it is done.
        stop: whether to stop.
        quiet: show what failed, and nothing else.
        events: the stream for programs, in the place of tables and progress.
        debug: show the tracebacks of what failed, each once.
    """
    store, keys, registry, console = Store(results), ready.keys, ready.registry, out()
    done = set() if policy.fresh else {key for key in keys if store.has(key)}
    shows = not quiet and events is None
    if shows:
        console.print(header(ready.suite, ready.grids, registry, ready.device, done))
    with (
        showing_progress(registry.manager, err(), show=shows),
        nullcontext() if events is None else listening(registry.manager, events),
    ):
        summary = compute(ready, store, policy, stop)
    if debug:
        found = [store.traceback(cell.key) for cell, _ in summary.failed + summary.failed_before]
        for trace in dict.fromkeys(filter(None, found)):
            err().print(trace, markup=False, soft_wrap=True)
    from robustbench_meta.reporting.terminal.tables import all_tables
    from robustbench_meta.results import leaderboard  # with pandas, which the first progress need not wait for

    path = leaderboard.write(store)
    frame, samples = leaderboard.read(store, keys)  # the worst case is over the run's own attacks
    failed = len(summary.failed) + len(summary.failed_before)
    if events is not None:
        from robustbench_meta.reporting.export.data import records
        from robustbench_meta.results.curves import curves, to_frame

        events.emit(
            "finished", finished=summary.finished, skipped=summary.skipped, failed=failed,
            failures=failures_of(summary), path=str(path), leaderboard=records(frame),
            curves=records(to_frame(curves(frame, samples))), exit_code=1 if failed else 0,
        )  # fmt: skip
    elif quiet:
        for line in failures(summary):
            err().print(line, soft_wrap=True)
    else:
        for table in all_tables(frame, samples, console.width):
            console.print(table)
        console.print(outcome(summary, path))
        if not frame.empty:
            console.print(afterwards(frame, results))
    return failed


def dry_run(
    ready: PreparedRun, results: Path, policy: Policy, events: Events | None = None, saved: Path | None = None
) -> None:
    """Show the cells, what is done already, and the work; write nothing, but for a suite file that was asked for."""
    grids, console, store = ready.grids, out(), Store(results, write=False)
    keys = [cell.key for grid in grids for cell in grid.cells]
    states = dict.fromkeys(keys, "to do")
    if not policy.fresh:
        states |= {key: "failed" for key in keys if not policy.retry_failed and store.failure(key) is not None}
        states |= {key: "done" for key in keys if is_done(results, key)}
    done = {key for key in keys if states[key] == "done"}
    if events is not None:
        efforts = _efforts(ready, states, results, policy)
        cells = [{**cell.labels, "state": states[cell.key]} for grid in grids for cell in grid.cells]
        events.emit("planned", cells=cells, work=[each.work._asdict() for each in efforts], exit_code=0)
        return
    console.print(header(ready.suite, grids, ready.registry, ready.device, done))
    for number, grid in enumerate(grids, 1):
        console.print(cells_table(grid, states, number if len(grids) > 1 else None))
    console.print(work_table(_efforts(ready, states, results, policy), saved))


def _efforts(ready: PreparedRun, states: Mapping[str, str], results: Path, policy: Policy) -> list[WorkEstimate]:
    """Of each part what is still to do; a training that an earlier part makes is none of a later one."""
    pending = {key for key, state in states.items() if state == "to do"}
    needed = required_trainings(ready.grids, pending)
    there = {key for key in needed if is_trained(results, key) and not policy.fresh}
    everything = work_of(evaluation_groups(ready.grids, pending, ready.device.type), needed, there.__contains__)
    workers = workers_for(policy.jobs, everything, ready.device, available_cores())
    efforts = []
    for grid in ready.grids:
        own = {cell.key for cell in grid.cells} & pending
        missing = {training.key for training in grid.needed(own)} - there
        efforts.append(WorkEstimate(len(own), grid.estimate(own, missing), workers))
        there |= missing
    return efforts
