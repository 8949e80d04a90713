"""`bench plot`: figures for papers."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import RESULTS, Debug, folder
from robustbench_meta.cli.results import Attacks, Eps, Learners, Scenarios, read_selected
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.reporting.figures import FORMATS, KINDS
from robustbench_meta.reporting.figures.sizes import COLUMNS, parse_width

if TYPE_CHECKING:
    from robustbench_meta.reporting.figures.figure import PaperFigure
    from robustbench_meta.reporting.figures.style import FigureStyle

_LOOK = "How it looks"
_MOST_PAIRS = 12
"""Comparisons of two learners that are drawn where nobody asked for them."""
_FONTS = ("sans", "serif")


def plot(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=completion.complete_figures, metavar="[WHAT…] [DIR]",
            help=f"{', '.join(KINDS)}; and the results folder. Default: all that ./results has numbers for.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE|DIR", parser=folder, rich_help_panel=_LOOK, show_default="DIR/figures",
            help="A file that ends in .pdf, .svg or .png, or a folder.",
        ),
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(
            "--format", autocompletion=completion.one_of(FORMATS), metavar="|".join(FORMATS),
            rich_help_panel=_LOOK, show_default="pdf",
            help="Of the files in the folder; may be repeated.",
        ),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            metavar=f"{'|'.join(COLUMNS)}|8.6cm", rich_help_panel=_LOOK, show_default="what it needs",
            help="Of the figure: a column of two, a text of one column, both columns; or a length.",
        ),
    ] = None,
    font: Annotated[
        str, typer.Option(metavar="|".join(_FONTS), rich_help_panel=_LOOK, help="Serif goes with Times.")
    ] = "sans",
    font_size: Annotated[
        float, typer.Option(metavar="POINTS", rich_help_panel=_LOOK, help="Of titles, labels and legends.")
    ] = 8.0,
    title: Annotated[
        bool, typer.Option("--title", metavar="", rich_help_panel=_LOOK, help="Write the setting above the figure.")
    ] = False,
    dpi: Annotated[int, typer.Option(metavar="N", rich_help_panel=_LOOK, help="Dots an inch, of PNG.")] = 300,
    learner: Learners = None,
    attack: Attacks = None,
    eps: Eps = None,
    scenario: Scenarios = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Draw figures for papers: PDF, SVG or PNG."""
    kinds, place = _read(what or [])
    inches = parse_width(width)
    if font not in _FONTS:
        raise BenchError(unknown("--font", font, _FONTS))
    if not 4 <= font_size <= 24:
        raise BenchError(f"invalid --font-size {font_size:g}: expected 4 to 24 points")
    if not 50 <= dpi <= 1200:
        raise BenchError(f"invalid --dpi {dpi}: expected 50 to 1200")
    names, results = read_selected(place, learner, attack, eps, scenario)
    from robustbench_meta.options import parse_eps
    from robustbench_meta.reporting.figures.catalog import FigureData, draw_figures, leaves_out, requirement
    from robustbench_meta.reporting.figures.save import parse_out
    from robustbench_meta.reporting.figures.style import FigureStyle, Palette
    from robustbench_meta.reporting.terminal.console import counted, err
    from robustbench_meta.reporting.terminal.console import out as stdout

    files = parse_out(out, format or [], place / "figures")
    keys = set(results.frame["spec_hash"])
    records = [record for record in results.store.records() if record["key"] in keys] if "learning" in kinds else []
    look = FigureStyle(inches, font_size, font, title, Palette(names))
    chosen = [("--learner", learner), ("--attack", attack), ("--eps", eps), ("--scenario", scenario)]
    command = ["bench", "plot", *(kinds if what and kinds != list(KINDS) else [])]
    command += [word for option, values in chosen for value in values or () for word in (option, value)]
    command += ["--width", width] if width else []
    found: list[PaperFigure] = []
    zero = any(parse_eps(text).value == 0 for text in eps or ())
    shown = FigureData(results.frame, results.samples, records, zero)
    if leaves_out(kinds, shown):
        err().print("left out: eps 0, where an attack changes nothing; `--eps 0` draws it", markup=False, style="dim")
    for kind, drawn in draw_figures(kinds, shown, look):
        if kinds == list(KINDS) and kind == "compare" and len(drawn) > _MOST_PAIRS:
            told = f"left out: compare, {len(drawn)} figures of two learners each; `bench plot compare` draws them"
            err().print(told, markup=False, style="dim")
            continue
        found += drawn
        if not drawn and kinds != list(KINDS):
            raise BenchError(f"nothing to draw for {kind}: it needs {requirement(kind)}")
        if not drawn:
            err().print(f"left out: {kind}, which needs {requirement(kind)}", markup=False, style="dim")
    paths = save_all(found, look, *files, shlex.join(command), dpi)
    print_paths(paths)
    if len(found) > 1:
        stdout().print(f"{counted(len(found), 'figure')} in {paths[0][0][0].parent}", markup=False)


plot.__doc__ = f"""{plot.__doc__}

[bold]What[/]
{chr(10).join(f"[bold cyan]{name:10}[/] {told}" for name, told in KINDS.items())}
What may not be in one table is never in one panel: other settings are in files of their own. Below each file's name \
stands a caption to start from: setting, episodes, intervals, doubts.

[bold]Examples[/]
bench plot
bench plot curves --scenario clean/adv --out curves.pdf
bench plot heatmap my_results --width double --font serif
bench plot compare --learner maml --learner adml --format svg
"""


def save_all(
    found: Sequence[PaperFigure],
    look: FigureStyle,
    base: Path,
    formats: Sequence[str],
    single: bool,
    command: str,
    dpi: int = 300,
) -> list[tuple[list[Path], PaperFigure]]:
    """Write figures, and return them with the files of each, one a format.

    Args:
        found: the figures.
        look: with which they were drawn.
        base: the folder; or, if `single`, the file without its ending: several figures add to its name what tells
            them apart.
        formats: the files' endings.
        single: whether a file was asked for.
        command: that drew them, kept in the files.
        dpi: of PNG.
    """
    from robustbench_meta.reporting.figures.save import names, save_figure

    told = names(found)
    if single:
        told = [base.name] if len(found) == 1 else [f"{base.name}-{name}" for name in told]
    folder = base.parent if single else base
    paths = []
    for drawn, name in zip(found, told, strict=True):
        files = [folder / f"{name}.{ending}" for ending in formats]
        for path in files:
            save_figure(drawn, path, look, command, dpi)
        paths.append((files, drawn))
    return paths


def print_paths(paths: Iterable[tuple[list[Path], PaperFigure]]) -> None:
    """Say where each figure is, in each format, how large, and what its caption may say."""
    from rich.padding import Padding
    from rich.text import Text

    from robustbench_meta.reporting.terminal.console import out

    console = out()
    for files, drawn in paths:
        width, height = drawn.figure.get_size_inches()
        for path in files:
            size = f"  {width:.2f} × {height:.2f} in" if path == files[0] else ""
            console.print(Text.assemble((str(path), "bold"), (size, "dim")), soft_wrap=True)
        console.print(Padding(Text(drawn.caption), (0, 0, 1, 2)))


def _read(what: list[str]) -> tuple[list[str], Path]:
    """The kinds of figures, and the results folder: the last word, if it is no kind.

    Raises:
        BenchError: a word that is neither.
    """
    *kinds, last = what or [""]
    place = RESULTS
    if last in KINDS:
        kinds.append(last)
    elif last and (Path(last).is_dir() or os.sep in last):
        place = Path(last)
    elif last:
        raise BenchError(f"{unknown('figure', last, KINDS)}; and there is no folder {last}")
    for name in kinds:
        if name not in KINDS:
            raise BenchError(unknown("figure", name, KINDS))
    return [name for name in KINDS if name in kinds] or list(KINDS), place
