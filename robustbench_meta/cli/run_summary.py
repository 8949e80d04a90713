"""What `bench run` says before and after: the header, the cells of a dry run, the outcome."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_meta.cli.options import RESULTS
from robustbench_meta.reporting.terminal.console import counted

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from robustbench_meta.experiment.grid import Cell, Grid, Work
    from robustbench_meta.experiment.suite import Suite
    from robustbench_meta.jobs.monitor import Summary
    from robustbench_meta.registry.registry import Registry

_WORK = {
    "trainings": "learners to meta-train",
    "meta_steps": "meta-steps",
    "task_gradients": "meta-gradients of tasks",
    "adaptations": "adaptations to test episodes",
    "attacked_tasks": "support or query sets to attack",
}


def header(
    suite: Suite, grids: Sequence[Grid], registry: Registry, device: torch.device, done: Collection[str]
) -> RenderableType:
    """What is going to run, a line each; what differs between the parts of a suite, a line a part."""
    trainings = {cell.training.key for grid in grids for cell in grid.cells}
    cells = sum(len(grid.cells) for grid in grids)
    precisions = [grid.run.precision for grid in grids]
    rows = {"suite": [suite.name + (f": {suite.about}" if suite.about else "")]} if suite.name else {}
    if len(grids) > 1:
        rows["parts"] = _parts(suite, grids)
    parts = [_rows(grid) for grid in grids]
    rows |= {name: [part[name] for part in parts] for name in parts[0]}
    rows["device"] = [str(device) + (f", {each}" if each != "float32" else "") for each in precisions]
    rows["cells"] = [
        f"{cells:,}, from {counted(len(trainings), 'training')}" + (f", {len(done):,} done already" if done else "")
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, values in rows.items():
        same = len(set(values)) == 1
        told = values[0] if same else "\n".join(f"{number}: {value}" for number, value in enumerate(values, 1))
        table.add_row(name, Text(told))
    failed = sum(found.error is not None for found in registry.found)
    warnings = [f"{counted(failed, 'plugin')} failed to load: see `bench plugins`"] if failed else []
    notes = dict.fromkeys([*(note for grid in grids for note in grid.notes), *warnings])
    return Group(table, *[Text(f"note: {note}", style="yellow") for note in notes], Text(""))


def _parts(suite: Suite, grids: Sequence[Grid]) -> list[str]:
    """What each part says of itself; a part without a cell of its own has no grid."""
    about = {part.spec(): part.about or part.place for part in suite.parts}
    return [about[grid.run] for grid in grids]


def _rows(grid: Grid) -> dict[str, str]:
    """The facts of one grid, by their names."""
    run, setting = grid.run, grid.setting
    return {
        "data set": f"{grid.labels['dataset']}, {setting.way}-way {setting.shot}-shot, "
        f"{counted(setting.query, 'query image')} a class",
        "backbone": grid.labels["backbone"],
        "learners": _listed(cell.learner for cell in grid.cells),
        "attacks": _listed(_attack(cell) for cell in grid.cells),
        "support/query": _listed(f"{cell.support}/{cell.query}" for cell in grid.cells),
        "seeds": _listed(str(cell.seed) for cell in grid.cells),
        "work": f"{run.size('meta_steps'):,} meta-steps of {counted(run.size('tasks_per_step'), 'task')}, "
        f"{counted(run.size('episodes'), 'test episode')} (profile {run.profile})",
        "checks": _checks(grid),
    }


def _checks(grid: Grid) -> str:
    """Whether the reliability checks run, on how many episodes."""
    if grid.probe_plan is None:
        return "none (--no-checks): nothing is flagged"
    from robustbench_meta.experiment.probes import checked_of

    count = checked_of(grid.run.size("episodes"))
    return f"more attacks on the first {counted(count, 'episode')}, which give the flags; --no-checks leaves them out"


def _attack(cell: Cell) -> str:
    return cell.attack if cell.spec.attack.norm == "none" else f"{cell.attack} (eps {cell.eps})"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts)) or "none"


_STYLES = {"done": "green", "failed": "bold red", "to do": "dim"}


def cells_table(grid: Grid, states: Mapping[str, str], part: int | None = None) -> RenderableType:
    """A row a cell, with what became of it, below the number of the part."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("learner", "attack", "eps", "support/query", "seed", ""):
        table.add_column(name, justify="right" if name in {"eps", "seed"} else "left", overflow="fold")
    for cell in grid.cells:
        state = Text(states[cell.key], style=_STYLES[states[cell.key]])
        scenario = f"{cell.support}/{cell.query}"
        table.add_row(*map(Text, (cell.learner, cell.attack, cell.eps, scenario, str(cell.seed))), state)
    if part is None:
        return table
    return Group(Text(f"part {part}" if part == 1 else f"\npart {part}", style="bold"), table)


class WorkEstimate(NamedTuple):
    """What is still to do of a grid."""

    cells: int
    work: Work
    side_by_side: int = 1
    """How many trainings are done at a time."""


def work_table(efforts: Sequence[WorkEstimate], saved: Path | None = None) -> RenderableType:
    """The counts of what is still to do in all parts, and how many trainings are done at a time."""
    cells = sum(effort.cells for effort in efforts)
    if not cells:
        return Text("\nNothing to do: all cells are done, or failed before (--retry-failed).")
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{cells:,}", "cells to do")
    for name in efforts[0].work._fields:
        count = sum(getattr(effort.work, name) for effort in efforts)
        table.add_row(f"{count:,}", _WORK.get(name, name.replace("_", " ")))
    most = max(effort.side_by_side for effort in efforts)
    if most > 1:
        table.add_row(f"{most:,}", "learners side by side (--jobs)")
    nothing = "Nothing was written." if saved is None else f"Nothing but {saved} was written."
    return Group(Text("\nWork", style="bold"), table, Text(nothing, style="dim"))


def failures(summary: Summary, *, shown: bool = False) -> list[Text]:
    """A line for each cell that failed, now (unless those have been `shown`) or before."""
    named = [] if shown else [("failed: ", *each) for each in summary.failed]
    named += [("failed before: ", *each) for each in summary.failed_before]
    lines = [Text.assemble((what, "bold red"), f"{_name(cell)}: {reason}") for what, cell, reason in named]
    if summary.failed_before:
        lines.append(Text("what failed before was not tried again: --retry-failed does", style="yellow"))
    return lines


def outcome(summary: Summary, path: Path) -> RenderableType:
    """What was done, skipped and failed, and where the leaderboard is."""
    lines: list[RenderableType] = [*failures(summary, shown=True)]
    counts = f"{counted(summary.finished, 'cell')} done, {summary.skipped:,} skipped (done before), "
    count = len(summary.failed) + len(summary.failed_before)
    failed = (f"{count:,} failed", "bold red" if count else "green")
    return Group(*lines, Text.assemble(counts, failed), Text(f"leaderboard: {path}"))


def afterwards(frame: pd.DataFrame, results: Path) -> RenderableType:
    """What the checks cost, and what to do next with the rows of a run."""
    trainings = frame.groupby("training_hash")
    check = trainings["check_ms_per_task"].mean().mean()
    whole = check + (trainings["adapt_ms_per_task"].mean() + trainings["attack_ms_per_task"].sum()).mean()
    lines = [f"checks: {check:,.0f} of {whole:,.0f} ms a task in the test of a learner"] if check else []
    folder = [] if results == RESULTS else [str(results)]
    commands = [["bench", "report", *folder]]
    commands += [["bench", "compare", *folder]] if frame["learner"].nunique() > 1 else []
    what = {"report": "one HTML file with all of it", "compare": "who is better beyond chance"}
    lines += [f"next: {shlex.join(words)}  ({what[words[1]]})" for words in commands]
    return Group(*[Text(line, style="dim") for line in lines])


def _name(cell: Cell) -> str:
    return f"{cell.learner}, {_attack(cell)}, {cell.support}/{cell.query}, seed {cell.seed}"
