"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_meta.experiment.profiles import PROFILES
from robustbench_meta.experiment.run_options import WHERE

RESULTS = Path("results")


def folder(text: str | Path) -> Path:
    """A folder as typed, or by default; nothing at all is none, where pathlib would take the current one."""
    if not str(text).strip():
        raise typer.BadParameter("nothing was given; expected a folder, or . for the current one")
    return Path(text)


Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback when something goes wrong.")]


def is_debugging(context: typer.Context) -> bool:
    """Whether --debug was given, before the command or after it."""
    return bool(context.params["debug"] or context.find_root().params["debug"])


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="Say nothing but warnings, errors and what failed.")
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, for programs.")]
Plugins = Annotated[
    Path | None,
    typer.Option(
        "--plugins",
        metavar="DIR",
        parser=folder,
        rich_help_panel=WHERE,
        help="Folder with more plugins.",
        show_default="./plugins",
    ),
]
NoLocalPlugins = Annotated[
    bool,
    typer.Option(
        "--no-local-plugins", metavar="", rich_help_panel=WHERE, help="Load no plugins of ./plugins: they are code."
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        parser=folder,
        rich_help_panel=WHERE,
        help="Folder with data sets.",
        show_default="$ROBUSTBENCH_META_DATA, or yours",
    ),
]


def profile_table() -> str:
    """The profiles as lines for the help text."""
    head = f"{'':7} {'steps × tasks':>14} {'episodes':>9} {'width':>6}  way, shot, query"
    rows = [
        f"[bold cyan]{name:7}[/] {f'{p.meta_steps:,} × {p.tasks_per_step}':>14} {p.episodes:>9} "
        f"{p.backbone.get('width', ''):>6}  {p.way}, {p.shot}, {p.query}"
        for name, p in PROFILES.items()
    ]
    return "\n".join([head, *rows])
