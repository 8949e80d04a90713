"""`bench export`: the leaderboard for papers, pages and programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import RESULTS, Debug
from robustbench_meta.cli.results import Attacks, Eps, FolderResults, Learners, Scenarios, read_selected
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.reporting.export import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

    from robustbench_meta.results.tables import LeaderboardTable


def export(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="The results folder. Default: ./results.")] = RESULTS,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            autocompletion=completion.one_of(FORMATS),
            metavar="|".join(FORMATS),
            help="What is written.",
            show_default="by FILE; else markdown",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to.", show_default="stdout")
    ] = None,
    attacks_as_rows: Annotated[
        bool,
        typer.Option("--attacks-as-rows", metavar="", help="In Markdown and LaTeX: of few learners and many attacks."),
    ] = False,
    learner: Learners = None,
    attack: Attacks = None,
    eps: Eps = None,
    scenario: Scenarios = None,
    debug: Debug = False,
) -> None:
    """Write the leaderboard as Markdown, LaTeX, CSV or JSON."""
    chosen = _format(format, out)
    if attacks_as_rows and chosen not in {"markdown", "latex"}:
        raise BenchError(f"--attacks-as-rows is for markdown and latex; {chosen} has a row for each cell")
    _, found = read_selected(results, learner, attack, eps, scenario)
    text = _written(chosen, attacks_as_rows)(found)
    if out is None:
        sys.stdout.write(text)
        return
    from robustbench_meta.reporting.terminal.console import out as stdout
    from robustbench_meta.runtime.atomic_files import write_atomically, write_text

    write_atomically(out, lambda part: write_text(part, text.removesuffix("\n")), kept=False)
    stdout().print(f"{chosen}: {out}", markup=False, soft_wrap=True)


export.__doc__ = f"""{export.__doc__}

csv and json have a row for each cell; markdown and latex the tables of bench leaderboard, in bold all that cannot be \
told apart from the best.

[bold]Examples[/]
bench export --format latex --out table.tex
bench export my_results --format markdown --scenario clean/adv
bench export --format json | jq .leaderboard
"""


def _format(given: str | None, out: Path | None) -> str:
    """As typed, or by the file's ending.

    Raises:
        BenchError: an unknown format, or an ending that tells none.
    """
    if given is not None:
        if given not in FORMATS:
            raise BenchError(unknown("format", given, FORMATS))
        return given
    if out is None:
        return "markdown"
    for name, ending in FORMATS.items():
        if out.suffix.lower() == ending:
            return name
    raise BenchError(f"--out {out}: say what to write there with --format {'|'.join(FORMATS)}")


def _written(name: str, turned: bool) -> Callable[[FolderResults], str]:
    """What writes that format."""
    if name in {"csv", "json"}:
        from robustbench_meta.reporting.export.data import csv, json_text
        from robustbench_meta.results.curves import curves

        if name == "csv":
            return lambda found: csv(found.frame)
        return lambda found: json_text(found.frame, curves(found.frame, found.samples))
    from robustbench_meta.results.pairwise import judged

    if name == "latex":
        return lambda found: _latex(list(judged(found.frame, found.samples)), turned)
    from robustbench_meta.reporting.export.markdown import markdown

    return lambda found: markdown(judged(found.frame, found.samples), turned=turned)


def _latex(found: list[LeaderboardTable], turned: bool) -> str:
    """The tables; on stderr, what stands in the file as a comment as well: which does not fit."""
    from robustbench_meta.reporting.export.latex import latex, too_wide
    from robustbench_meta.reporting.terminal.console import err

    for line in too_wide(found, turned=turned):
        err().print(line, markup=False, highlight=False, style="dim")
    return latex(found, turned=turned)
