"""`python -m benchmarks.strength`: our attacks against torchattacks', on the same learners and episodes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from robustbench_meta.evaluation.statistics import Paired

ROOT = Path(__file__).resolve().parent.parent
app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Pair(NamedTuple):
    """An attack of ours and the one of torchattacks that does the same, both as typed."""

    ours: str
    theirs: str


class Result(NamedTuple):
    """What both left right, in percent, and how long they took for a task."""

    learner: str
    pair: Pair
    accuracies: tuple[float, float]
    difference: Paired
    milliseconds: tuple[float, float]


def pairs(steps: int, queries: int) -> list[Pair]:
    """What is compared, at the same effort."""
    return [
        Pair("fgsm", "torchattacks-fgsm"),
        Pair("pgd", "torchattacks-pgd"),
        Pair(f"apgd:steps={steps}", f"torchattacks-apgd:steps={steps}"),
        Pair(f"apgd:steps={steps},loss=dlr", f"torchattacks-apgd:steps={steps},loss=dlr"),
        Pair(f"apgd:steps={steps},loss=dlr-targeted", f"torchattacks-apgdt:steps={steps}"),
        Pair(f"square:queries={queries}", f"torchattacks-square:n_queries={queries}"),
        Pair(f"auto:steps={steps},queries={queries}", f"autoattack:steps={steps}"),
    ]


@app.command()
def main(
    dataset: Annotated[str, typer.Option("-d", "--dataset", help="Data set, as for `bench run`.")] = "glyphs",
    learner: Annotated[list[str] | None, typer.Option("-l", "--learner", help="Learners; maml and adml.")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Test tasks.")] = 600,
    meta_steps: Annotated[int | None, typer.Option(min=1, help="Meta-steps.", show_default="profile quick")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of Auto-PGD.")] = 100,
    queries: Annotated[int, typer.Option(min=1, help="Queries of Square Attack (autoattack has 5000).")] = 5000,
    only: Annotated[
        list[str] | None, typer.Option(help="Compare only attacks of ours whose text begins so, as apgd.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Results folder; what it holds is not computed again.", show_default="a new one")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="As for `bench run`.")] = None,
) -> None:  # fmt: skip
    """Train by the profile quick, attack the same episodes with both, and show the differences with their intervals."""
    console = Console(highlight=False)
    compared = [pair for pair in pairs(steps, queries) if not only or pair.ours.startswith(tuple(only))]
    if not compared:
        Console(stderr=True, highlight=False).print(
            f"Error: no attack of ours begins with {' or '.join(only or [])}; there are "
            + ", ".join(pair.ours for pair in pairs(steps, queries)),
            markup=False,
        )
        raise typer.Exit(2)
    given = ["--dataset", dataset, "--episodes", str(episodes), "--profile", "quick", "--no-checks"]
    given += [] if meta_steps is None else ["--meta-steps", str(meta_steps)]
    given += [] if data_root is None else ["--data-root", str(data_root)]
    given += [part for name in learner or ["maml", "adml"] for part in ("--learner", name)]
    given += [part for pair in compared for attack in pair for part in ("--attack", attack)]
    with tempfile.TemporaryDirectory() as folder:
        where = results or Path(folder)
        done = subprocess.run([sys.executable, ROOT / "cli.py", "run", *given, "--results", where], check=False)
        if done.returncode:
            raise typer.Exit(done.returncode)
        console.print(_table(_read(where, compared, episodes)))


def _read(results: Path, compared: list[Pair], episodes: int) -> list[Result]:
    """The paired differences from the records of a results folder, for each training that all attacks were run on."""
    from robustbench_meta.evaluation.statistics import paired  # noqa: PLC0415
    from robustbench_meta.registry.registry import load_registry  # noqa: PLC0415  # torch takes seconds to import
    from robustbench_meta.results.store import Store, unpack  # noqa: PLC0415

    registry = load_registry(local=False)
    trainings: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in Store(results).records():
        spec = record["spec"]
        if spec["episodes"] == episodes and (spec["support"], spec["query"]) == ("clean", "adv"):
            plugin = spec["attack"]["plugin"]
            trainings.setdefault(record["training"], {})[_identity(plugin["name"], plugin["options"])] = record
    found = []
    for attacks in trainings.values():
        for pair in compared:
            records = []
            for typed in pair:
                name, _, options = typed.partition(":")
                made = registry.make("attack", name, dict(part.split("=") for part in options.split(",") if part))
                records.append(attacks.get(_identity(name, made.model_dump(mode="json"))))
            ours, theirs = records
            if ours is None or theirs is None:
                continue
            right = [100 * unpack(record["robust"]).mean(1) for record in (ours, theirs)]
            found.append(
                Result(
                    ours["labels"]["learner"], pair, (float(right[0].mean()), float(right[1].mean())), paired(*right),
                    (ours["timings"]["attack_ms_per_task"], theirs["timings"]["attack_ms_per_task"]),
                )
            )  # fmt: skip
    return found


def _identity(name: str, options: Mapping[str, Any]) -> str:
    return json.dumps([name, dict(options)], sort_keys=True)


def _table(results: list[Result]) -> Table:
    """Accuracies in percent, and ours − theirs in points with half its 95 % interval: below zero, ours is stronger."""
    table = Table("learner", box=None, pad_edge=False)
    for heading in ("ours", "theirs"):
        table.add_column(heading, overflow="fold")
    for heading in ("ours %", "theirs %", "difference", "ms/task"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in results:
        accuracies = (f"{accuracy:.1f}" for accuracy in each.accuracies)
        difference = f"{each.difference.difference:+.2f} ±{each.difference.ci95:.2f}"
        times = " / ".join(f"{time:.0f}" for time in each.milliseconds)
        table.add_row(each.learner, *each.pair, *accuracies, difference, times)
    return table


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.strength")
