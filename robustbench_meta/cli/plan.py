"""What `bench run` says before and after: the header, the cells of a dry run, the outcome."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_meta.cli.console import counted

if TYPE_CHECKING:
    import torch

    from robustbench_meta.executors import Task
    from robustbench_meta.grid import Cell, Grid
    from robustbench_meta.registry import Registry
    from robustbench_meta.runner import Summary

_WORK = {
    "trainings": "learners to meta-train",
    "meta_steps": "meta-steps",
    "task_gradients": "meta-gradients of tasks",
    "adaptations": "adaptations to test episodes",
    "attacked_tasks": "support or query sets to attack",
}


def header(grid: Grid, registry: Registry, device: torch.device, done: Collection[str]) -> RenderableType:
    """What is going to run, a line each."""
    run, setting = grid.run, grid.setting
    rows = {
        "data set": f"{grid.labels['dataset']}, {setting.way}-way {setting.shot}-shot, "
        f"{counted(setting.query, 'query image')} a class",
        "backbone": grid.labels["backbone"],
        "learners": _listed(cell.learner for cell in grid.cells),
        "attacks": _listed(_attack(cell) for cell in grid.cells),
        "support/query": _listed(f"{cell.support}/{cell.query}" for cell in grid.cells),
        "seeds": _listed(str(cell.seed) for cell in grid.cells),
        "work": f"{run.size('meta_steps'):,} meta-steps of {counted(run.size('tasks_per_step'), 'task')}, "
        f"{counted(run.size('episodes'), 'test episode')} (profile {run.profile})",
        "device": str(device) + (f", {run.precision}" if run.precision != "float32" else ""),
        "cells": f"{len(grid.cells):,}, from {counted(len(grid.trainings), 'training')}"
        + (f", {len(done):,} done already" if done else ""),
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    failed = sum(found.error is not None for found in registry.found)
    warnings = [f"{counted(failed, 'plugin')} failed to load: see `bench plugins`"] if failed else []
    return Group(table, *[Text(f"note: {note}", style="yellow") for note in [*grid.notes, *warnings]], Text(""))


def _attack(cell: Cell) -> str:
    return cell.attack if cell.spec.attack.norm == "none" else f"{cell.attack} (eps {cell.eps})"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts)) or "none"


_STYLES = {"done": "green", "failed": "bold red", "to do": "dim"}


def cells_table(grid: Grid, states: Mapping[str, str]) -> Table:
    """A row a cell, with what became of it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("learner", "attack", "eps", "support/query", "seed", ""):
        table.add_column(name, justify="right" if name in {"eps", "seed"} else "left", overflow="fold")
    for cell in grid.cells:
        state = Text(states[cell.key], style=_STYLES[states[cell.key]])
        scenario = f"{cell.support}/{cell.query}"
        table.add_row(*map(Text, (cell.learner, cell.attack, cell.eps, scenario, str(cell.seed))), state)
    return table


def work(grid: Grid, pending: Collection[str], tasks: Sequence[Task], side_by_side: int = 1) -> RenderableType:
    """The counts of what is still to do, and how many trainings are done at a time."""
    if not pending:
        return Text("\nNothing to do: all cells are done, or failed before (--retry-failed).")
    missing = {task.training for task in tasks if not task.cells}
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{len(pending):,}", "cells to do")
    for name, count in grid.estimate(pending, missing)._asdict().items():
        table.add_row(f"{count:,}", _WORK.get(name, name.replace("_", " ")))
    if side_by_side > 1:
        table.add_row(f"{side_by_side:,}", "learners side by side (--jobs)")
    return Group(Text("\nWork", style="bold"), table, Text("Nothing was written.", style="dim"))


def outcome(summary: Summary, path: Path) -> RenderableType:
    """What was done, skipped and failed, and where the leaderboard is."""
    counts = f"{counted(summary.finished, 'cell')} done, {summary.skipped:,} skipped (done before), "
    lines = [Text.assemble(("failed: ", "bold red"), f"{_name(cell)}: {reason}") for cell, reason in summary.failed]
    lines += [
        Text.assemble(("failed before: ", "bold red"), f"{_name(cell)}: {reason}")
        for cell, reason in summary.failed_before
    ]
    if summary.failed_before:
        lines.append(Text("what failed before was not tried again: --retry-failed does", style="yellow"))
    count = len(summary.failed) + len(summary.failed_before)
    failed = (f"{count:,} failed", "bold red" if count else "green")
    return Group(*lines, Text.assemble(counts, failed), Text(f"leaderboard: {path}"))


def _name(cell: Cell) -> str:
    return f"{cell.learner}, {_attack(cell)}, {cell.support}/{cell.query}, seed {cell.seed}"
