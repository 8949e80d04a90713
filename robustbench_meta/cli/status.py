"""`bench status`: what runs on a results folder are doing, or did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_meta.cli.options import RESULTS, Debug, Json, folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from robustbench_meta.jobs.status import RunStatus

FOLLOW_SECONDS, LINES_SECONDS = 1.0, 15.0
"""Between two looks with --follow, on a terminal and elsewhere."""


def status(
    results: Annotated[
        Path, typer.Argument(metavar="DIR", parser=folder, help="The results folder.", show_default="results")
    ] = RESULTS,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", metavar="", help="Show it until all runs are over.")
    ] = False,
    all_runs: Annotated[
        bool, typer.Option("--all", metavar="", help="Runs that are over, too, not only the last one.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what runs on a results folder are doing, or did: any number of runs, on any machine.

    [bold]Examples[/]
    bench status
    bench status /shared/results --follow
    """
    import sys

    from robustbench_meta.cli.json_output import print_document
    from robustbench_meta.jobs.status import Folder
    from robustbench_meta.reporting.terminal.console import out

    runs = Folder(results)
    if json:
        print_document(sys.stdout, runs=[run.plain() for run in runs.look(all_runs)])
    elif follow:
        _follow(runs, all_runs)
    else:
        console = out()
        console.print(_shown(runs.look(all_runs), console.width))


def _follow(runs: Any, all_runs: bool) -> None:
    import time

    from rich.live import Live

    from robustbench_meta.reporting.terminal.console import is_screen, out

    console, found = out(), runs.look(all_runs)
    try:
        if not is_screen(console):
            while True:
                console.print(_shown(found, console.width))
                if not any(run.alive for run in found):
                    return
                time.sleep(LINES_SECONDS)
                found = runs.look(all_runs)
        with Live(_shown(found, console.width), console=console, auto_refresh=False) as live:
            while any(run.alive for run in found):
                time.sleep(FOLLOW_SECONDS)
                found = runs.look(all_runs)
                live.update(_shown(found, console.width), refresh=True)
    except KeyboardInterrupt:
        return


def _shown(runs: list[RunStatus], width: int) -> RenderableType:
    """The runs, one below the other."""
    import time

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from robustbench_meta.reporting.terminal.progress import draw_progress, duration

    parts: list[RenderableType] = []
    for run in runs:
        style = {"running": "green", "finished": "dim", "interrupted": "yellow"}[run.state]
        head = f"{run.name}  {run.progress.cells_over}/{run.progress.cells} cells, {len(run.failed)} failed"
        parts += [Text.assemble(head + "  ", (run.state, style)), draw_progress(run.progress, width)]
        parts += [Text(f"failed: {what}: {reason}", style="red") for what, reason in run.failed]
        if run.alive:
            table = Table.grid(padding=(0, 2))
            for name, worker in sorted(run.workers.items()):
                age = f"{duration(max(0.0, time.time() - worker.time))} ago"
                table.add_row(Text(name), Text(worker.place), Text(worker.doing), Text(age, style="dim"))
            parts.append(table)
        parts.append(Text(""))
    return Group(*parts[:-1]) if parts else Text("no run has left events here")
