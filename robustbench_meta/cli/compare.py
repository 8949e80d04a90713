"""`bench compare`: who is better, beyond chance."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import RESULTS, Debug, Json
from robustbench_meta.cli.results import read_results
from robustbench_meta.errors import BenchError
from robustbench_meta.reporting.figures import FORMATS


def compare(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=completion.compared,
            metavar="[A B] [DIR]",
            help="Two learners as the tables name them, and the results folder. Default: all pairs in ./results.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw them, too: .pdf, .svg or .png.", show_default="no"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two learners, or all pairs, on the same episodes: differences, intervals, corrected p-values."""
    first, second, results = _read(what or [])
    place = _file(plot)
    if json and place is not None:
        raise BenchError("--json and --plot exclude each other: give the command twice")
    if json:
        from robustbench_meta.cli import json_documents

        json_documents.print_comparisons(results, first, second)
        return
    _, frame, samples = read_results(results)
    from robustbench_meta.reporting.terminal.console import out
    from robustbench_meta.reporting.terminal.tables import comparison_tables
    from robustbench_meta.results.pairwise import compare_learners

    console, found = out(), compare_learners(frame, samples, first, second)
    for table in comparison_tables(found, console.width):
        console.print(table)
    if place is not None:
        from robustbench_meta.cli.plot import print_paths, save_all
        from robustbench_meta.reporting.figures.pairwise import draw_comparisons
        from robustbench_meta.reporting.figures.style import FigureStyle, Palette

        look = FigureStyle(palette=Palette(sorted(set(frame["learner"]))))
        names = [first, second] if first is not None and second is not None else []
        command = shlex.join(["bench", "compare", *names])
        console.print()
        print_paths(save_all(list(draw_comparisons(found, look)), look, *place, command))


def _file(plot: Path | None) -> tuple[Path, list[str], bool] | None:
    """Where the figure goes: a file without its ending, and that.

    Raises:
        BenchError: it does not end in what figures are written as.
    """
    if plot is None:
        return None
    ending = plot.suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise BenchError(f"--plot {plot}: expected a file that ends in .pdf, .svg or .png")
    return plot.with_suffix(""), [ending], True


def _read(what: list[str]) -> tuple[str | None, str | None, Path]:
    """The two learners, if any, and the folder.

    Raises:
        BenchError: one word that is no folder, a learner and a folder, or more than three words.
    """
    if len(what) == 1 and not Path(what[0]).is_dir():
        raise BenchError(
            f"'{what[0]}' is no folder; expected two learners, as in `bench compare maml adml`, a results folder, or "
            "both (A B DIR)"
        )
    if len(what) == 2 and _folder(what[1]):
        raise BenchError(
            f"'{what[1]}' is a folder: name two learners, then the folder, as in `bench compare {what[0]} adml "
            f"{what[1]}`; or the folder alone, for all pairs"
        )
    if len(what) > 3:
        raise BenchError(f"got {len(what)} words; expected two learners and a results folder: bench compare A B DIR")
    if len(what) < 2:
        return None, None, Path(what[0]) if what else RESULTS
    return what[0], what[1], Path(what[2]) if len(what) == 3 else RESULTS


def _folder(word: str) -> bool:
    """Whether a word is meant as a folder: it exists, and is a path or holds records."""
    path = Path(word)
    return path.is_dir() and (os.sep in word or word in {".", ".."} or (path / "records").is_dir())
