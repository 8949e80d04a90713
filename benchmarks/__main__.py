"""`python -m benchmarks`: measure, show, write JSON, and put the figures into the docs."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.outcomes import Measurements

ROOT = Path(__file__).resolve().parent.parent
app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def main(
    case: Annotated[list[str] | None, typer.Argument(metavar="[CASE|GROUP]…", help="What to measure; all.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the cases and their groups.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; short cases have more.")] = 7,
    seconds: Annotated[float, typer.Option(help="Repeat no case for longer, if it was repeated twice.")] = 600.0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to measure.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: does it all run?")] = False,
    json: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT / "results" / "speed.json",
    merge: Annotated[bool, typer.Option("--merge", help="Keep the other cases of that file (same machine).")] = False,
    given: Annotated[
        list[Path] | None, typer.Option("--from", help="Measure nothing: take the figures of such a file (repeat).")
    ] = None,
    update_docs: Annotated[bool, typer.Option("--update-docs", help="Put the figures into the docs.")] = False,
    docs: Annotated[Path, typer.Option(help="Which file that is.")] = ROOT / "benchmarks" / "speed.md",
) -> None:  # fmt: skip
    """Measure the suite against higher, TorchOpt and torchattacks, and against the machine's own limits."""
    from benchmarks import report  # noqa: PLC0415  # torch takes seconds to import
    from benchmarks.outcomes import Measurements  # noqa: PLC0415
    from robustbench_meta.errors import BenchError  # noqa: PLC0415

    console = Console(highlight=False)
    if listing:
        from benchmarks.cases import CASES  # noqa: PLC0415

        table = Table("group", "case", "what", box=None, pad_edge=False)
        for each in CASES:
            table.add_row(each.group, each.name, each.title)
        console.print(table)
        return
    if given:
        runs = [Measurements.read(path) for path in given]
        for measured in runs:
            report.show(measured, console)
    else:
        try:
            runs = [_measure(case or [], repeats, seconds, device, threads, quick, json, merge, console)]
        except BenchError as error:
            Console(stderr=True, highlight=False).print(f"Error: {error}", markup=False)
            raise typer.Exit(2) from None
    if update_docs:
        report.update_docs(docs, runs)
        console.print(f"The figures are in {docs}.", markup=False)


def _measure(
    names: list[str], repeats: int, seconds: float, device: str, threads: int | None, quick: bool, path: Path,
    merge: bool, console: Console,
) -> Measurements:  # fmt: skip
    """Measure the cases, and write the file after each, so that an interruption loses one case only."""
    from benchmarks import report  # noqa: PLC0415
    from benchmarks.cases import chosen  # noqa: PLC0415
    from benchmarks.machine import cores, describe, set_up  # noqa: PLC0415
    from benchmarks.measure import Settings  # noqa: PLC0415
    from benchmarks.outcomes import Measurements  # noqa: PLC0415
    from robustbench_meta.data.array_cache import ENVIRONMENT as CACHE  # noqa: PLC0415
    from robustbench_meta.errors import BenchError  # noqa: PLC0415
    from robustbench_meta.runtime.devices import choose_device  # noqa: PLC0415

    cases = chosen(names)
    settings = Settings(choose_device(device), threads or cores(), 2 if quick else repeats, quick, seconds)
    set_up(settings.device, settings.threads)
    measured = Measurements(machine=describe(settings.device), quick=quick, repeats=settings.repeats)
    if merge and path.exists():
        old = Measurements.read(path)
        if any(getattr(old.machine, name) != getattr(measured.machine, name) for name in (
            "device", "threads", "versions",
        )) or old.quick != quick:  # fmt: skip
            raise BenchError(f"{path} is of another machine, of other versions or threads: give another --json")
        measured.outcomes = old.outcomes
    report.show_machine(measured, console)
    with tempfile.TemporaryDirectory() as cache:  # plans are measured anew: the engine may have changed
        os.environ[CACHE] = cache
        for case in cases:
            with Console(stderr=True).status(f"{case.name}: {case.title} …"):
                outcome = case.measure(settings)
            outcome.measured = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            measured.put(outcome)
            measured.write(path)
            console.print(report.on_screen(outcome, console.width))
    report.show_goals(measured.outcomes, console)
    console.print(f"The figures are in {path}.", markup=False)
    return measured


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
