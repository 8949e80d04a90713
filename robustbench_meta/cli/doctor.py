"""`bench doctor`: does it work here, and what to do where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_meta.cli.options import RESULTS, DataRoot, Debug, Json, NoLocalPlugins, Plugins, folder

if TYPE_CHECKING:
    from robustbench_meta.doctor.finding import Finding

_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def doctor(
    results: Annotated[
        Path, typer.Argument(metavar="DIR", parser=folder, help="The results folder. Default: ./results.")
    ] = RESULTS,
    data_root: DataRoot = None,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at versions, device, data, plugins and folders, and tell what to do where something is wrong.

    ok: works. note: works, and there is something to know. wrong: a run cannot work; the exit code is then 1.
    """
    from robustbench_meta.doctor import examine

    found: Iterable[Finding] = examine(results, data_root, plugins, local_plugins=not no_local_plugins)
    if json:
        from robustbench_meta.cli.json_output import alone_on_stdout, print_document

        with alone_on_stdout() as stream:
            found = list(found)
            print_document(stream, findings=[finding._asdict() for finding in found], healthy=_healthy(found))
    else:
        found = _shown(found)
    if not _healthy(found):
        raise typer.Exit(1)


def _healthy(found: Iterable[Finding]) -> bool:
    return all(finding.state != "wrong" for finding in found)


def _shown(findings: Iterable[Finding]) -> list[Finding]:
    """Print each as soon as it is known."""
    from rich.table import Table
    from rich.text import Text

    from robustbench_meta.cli.console import out

    console, found = out(), []
    for finding in findings:
        found.append(finding)
        told = Text(finding.seen, overflow="fold")
        if finding.mend:
            told.append(" → ", style=_STYLES[finding.state]).append(finding.mend, style="bold")
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(width=5)
        table.add_column(width=9, style="bold cyan")
        table.add_column(overflow="fold")
        table.add_row(Text(finding.state, style=_STYLES[finding.state]), finding.about, told)
        console.print(table)
    return found
