"""`python -m benchmarks.survival`: what a grid survives, tried on this machine."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.survival.filling import MOUNTS, fill, inside
from benchmarks.survival.killing import kill, stop
from benchmarks.survival.memory import watch
from benchmarks.survival.runs import Bench, WarmBench
from benchmarks.survival.together import together

WHAT = {
    "kill": "SIGKILL at random instants",
    "stop": "Ctrl-C and SIGTERM at random instants",
    "together": "eight runs on one results folder, one killed",
    "disk": "a disk that gets full",
    "memory": "5,000 meta-steps and 2,000 episodes",
}
LONG = (
    "--profile", "smoke", "--learner", "maml", "--attack", "none", "--attack", "pgd", "--meta-steps", "5000", "--way",
    "2", "--query", "1", "--tasks-per-step", "2", "--episodes", "2000", "--device", "cpu",
)  # fmt: skip
FLAT_MIB = 2.0
"""By 1,000 steps or episodes; more is a leak."""
app = typer.Typer(add_completion=False)
Report = Callable[[str], None]
Found = tuple[list[str], list[str]]


@app.command()
def main(
    what: Annotated[list[str], typer.Option(help=f"What to try: {', '.join(WHAT)} or all; repeatable.")],
    times: Annotated[
        int | None, typer.Option(min=1, help="Kills, stops, runs at once, or points.", show_default="50, 20, 8, 10")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the instants.")] = 0,
    how: Annotated[str, typer.Option(help="More options of bench run, as in '--jobs 2'.")] = "--jobs 1",
    warm: Annotated[
        bool, typer.Option("--warm", help="Start runs as forks of a process that has torch imported.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Keep all results there.", show_default="none is kept")] = None,
) -> None:
    """Try what a grid survives; exits with 1 if anything was lost, doubled or damaged, or memory grows."""
    unknown = sorted(set(what) - {*WHAT, "all"})
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; there is: {', '.join(WHAT)}, all")
    console = Console(highlight=False, width=120)
    failed = False
    for name in WHAT if "all" in what else what:
        with tempfile.TemporaryDirectory(prefix="survival-") as temporary:
            place = (folder or Path(temporary)) / name
            bench = (WarmBench if warm else Bench)(cache=place / "cache").having(*shlex.split(how))
            console.print(f"{name}: {WHAT[name]}; bench run {shlex.join(bench.arguments)}", markup=False)
            began = time.monotonic()
            seen, wrong = _try(
                name, bench, place, times, seed, lambda text: console.print(f"  {text}", markup=False), how, warm
            )
            for line in [*seen, f"{(time.monotonic() - began) / 60:.0f} minutes, {len(wrong)} faults", *wrong]:
                console.print(f"{name}: {line}", markup=False)
            failed |= bool(wrong)
    raise typer.Exit(int(failed))


def _try(
    name: str, bench: Bench, place: Path, times: int | None, seed: int, report: Report, how: str, warm: bool
) -> Found:
    if name in {"kill", "stop"}:
        tally = kill(bench, place, times or 50, seed, report) if name == "kill" else stop(
            bench, place, times or 20, seed, report
        )  # fmt: skip
        return tally.lines(), tally.faults
    if name == "together":
        return _together(bench, place, times or 8, report)
    if name == "disk":
        return _disk(bench, place, times or 10, report, how, warm)
    lines, slopes = watch(Bench(bench.cache, (*LONG, "--jobs", "1"), keep_seconds=15.0), place)
    return lines, [f"{what} takes {slope:.1f} MiB a thousand" for what, slope in slopes.items() if slope > FLAT_MIB]


def _disk(bench: Bench, place: Path, points: int, report: Report, how: str, warm: bool) -> Found:
    """In a name space where it may mount."""
    if MOUNTS in os.environ:
        return fill(bench, place, points, report)
    told = ["-m", "benchmarks.survival", "--what", "disk", "--times", str(points), "--how", how, "--folder", str(place)]
    over = inside([*told, *(["--warm"] if warm else [])])
    if over is None:
        return ["skipped: file systems may not be mounted here (unshare -m, unshare -rm)"], []
    return [], ["see above"] if over.returncode else []


def _together(bench: Bench, place: Path, count: int, report: Report) -> Found:
    seen, wrong = [], []
    other = bench.having("--attack", "pgd:steps=3")
    for name, benches in {
        "one grid, system locks": [bench] * count,
        "two grids, system locks": [bench, other] * (count // 2),
        "one grid, leases": [bench.having(ROBUSTBENCH_META_LOCKS="lease")] * count,
        "two grids, leases": [each.having(ROBUSTBENCH_META_LOCKS="lease") for each in (bench, other)] * (count // 2),
    }.items():
        lines, faults = together(benches, place, name.replace(", ", "-").replace(" ", "-"))
        seen += [f"{name}: {line}" for line in lines]
        wrong += [f"{name}: {fault}" for fault in faults]
        report(f"{seen[-1]}; {len(faults)} faults")
    return seen, wrong


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.survival")
