"""`bench report`: one HTML file that tells all of a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_meta.cli.options import RESULTS, Debug, folder
from robustbench_meta.cli.results import read_results
from robustbench_meta.errors import BenchError


def report(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="The results folder. Default: ./results.")] = RESULTS,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", parser=folder, help="The HTML file.", show_default="DIR/report.html"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML file: leaderboards, curves, heat maps, pictures, flags, costs, commands."""
    path = results / "report.html" if out is None else out
    if path.is_dir():
        raise BenchError(f"--out {path} is a folder; name a file in it, such as {path / 'report.html'}")
    if path.suffix.lower() not in {".html", ".htm"}:
        raise BenchError(f"--out {path}: expected a file that ends in .html, such as {path.with_suffix('.html')}")
    store, frame, samples = read_results(results)
    from robustbench_meta.reporting.html.page import size_text, write_report
    from robustbench_meta.reporting.terminal.console import counted
    from robustbench_meta.reporting.terminal.console import out as console

    write_report(path, store, frame, samples)
    console().print(f"report: {path} ({counted(len(frame), 'cell')}, {size_text(path)})", markup=False, soft_wrap=True)
