"""`bench run`: the grid, from options to tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from robustbench_meta.cli.options import RESULTS, WHERE, DataRoot, Debug, Plugins, profile_table
from robustbench_meta.options import DEFAULT_ATTACKS, DEFAULT_LEARNERS, DEFAULT_SCENARIOS, SCENARIOS
from robustbench_meta.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from rich.console import Console

    from robustbench_meta.registry import Registry
    from robustbench_meta.runner import Grid, Summary
    from robustbench_meta.spec import RunSpec
    from robustbench_meta.store import Store

_COMPARED = "What to compare (repeat an option to compare several)"
_TASKS = "The tasks"
_WORK = "How much work"
_PLUGIN = "NAME[:…]"


class Places(NamedTuple):
    """The folders of a run."""

    data: Path | None
    results: Path
    plugins: Path | None


def run(
    learner: Annotated[
        list[str] | None,
        typer.Option(
            "--learner", "-l", metavar=_PLUGIN, rich_help_panel=_COMPARED,
            help="Meta-learner.", show_default=", ".join(DEFAULT_LEARNERS),
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack", "-a", metavar=_PLUGIN, rich_help_panel=_COMPARED,
            help="Attack; its option eps overrides --eps.", show_default=", ".join(DEFAULT_ATTACKS),
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            "--eps", metavar="0.1|8/255", rich_help_panel=_COMPARED,
            help="Bound of the perturbation; pixels lie in 0…1.", show_default="the data set's",
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario", metavar="SUPPORT/QUERY", rich_help_panel=_COMPARED,
            help=f"What is attacked: {', '.join(SCENARIOS)} or all.", show_default=", ".join(DEFAULT_SCENARIOS),
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed", metavar="N", rich_help_panel=_COMPARED,
            help="Seed of meta-training and attacks.", show_default="0",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", "-d", metavar=_PLUGIN, rich_help_panel=_TASKS, help="Data set.", show_default="glyphs"
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", "-b", metavar=_PLUGIN, rich_help_panel=_TASKS, help="Network.", show_default="the data set's"
        ),
    ] = None,
    way: Annotated[int | None, typer.Option(metavar="N", rich_help_panel=_TASKS, help="Classes in a task.")] = None,
    shot: Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=_TASKS, help="Support images a class, to adapt on.")
    ] = None,
    query: Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=_TASKS, help="Query images a class, to be judged on.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PROFILES), rich_help_panel=_WORK, help="What is not given is the profile's.",
            show_default="quick",
        ),
    ] = None,
    meta_steps: Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=_WORK, help="Meta-updates in meta-training.")
    ] = None,
    tasks_per_step: Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=_WORK, help="Tasks in a meta-update.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=_WORK, help="Test tasks that each number rests on.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", rich_help_panel=_WORK, help="Show cells and work; write nothing."),
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:I]", rich_help_panel=WHERE, help="auto: CUDA if it is there.")
    ] = "auto",
    data_root: DataRoot = None,
    results: Annotated[Path, typer.Option(metavar="DIR", rich_help_panel=WHERE, help="Where results go.")] = RESULTS,
    plugins: Plugins = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Meta-train learners, attack them on unseen tasks, and rank them."""
    from robustbench_meta.spec import RunSpec

    spec = RunSpec.read(
        learners=tuple(learner or ()), attacks=tuple(attack or ()), dataset=dataset, backbone=backbone,
        way=way, shot=shot, query=query, eps=tuple(eps or ()), scenarios=tuple(scenario or ()), profile=profile,
        meta_steps=meta_steps, tasks_per_step=tasks_per_step, episodes=episodes, seeds=tuple(seed or ()), device=device,
    )  # fmt: skip
    places = Places(data_root, results, plugins)
    try:
        summary = None if dry_run else _execute(spec, places)
        if dry_run:
            _rehearse(spec, places)
    except KeyboardInterrupt:
        _tell_interrupted(results, dry_run)
        raise typer.Exit(130) from None
    if summary is not None and summary.failed:
        raise typer.Exit(1)


run.__doc__ = f"""{run.__doc__}

Finished cells (learner × attack × eps × scenario × seed) are kept in the results folder: \
the same command continues where it stopped, a larger grid does only what is new.

NAME\\[:…] is a plugin with options, as in pgd:steps=40,alpha=0.01; see bench list.

[bold]Profiles[/]
{profile_table()}

[bold]Examples[/]
bench run --learner adml --attack fgsm
bench run -l maml -l adml:first_order=true -a none -a pgd:steps=40
bench run --eps 0.05 --eps 0.1 --scenario all --seed 0 --seed 1 --dry-run
bench run --dataset omniglot --way 20 --profile paper --device cuda
"""


class _Prepared(NamedTuple):
    """A grid that can run here."""

    grid: Grid
    registry: Registry
    device: torch.device

    def tell(self, console: Console, done: Collection[str]) -> None:
        """Print what is going to run."""
        from robustbench_meta.cli.plan import header

        console.print(header(self.grid, self.registry, self.device, done))


def _prepare(spec: RunSpec, places: Places) -> _Prepared:
    """Load plugins and data, and expand the grid; a spinner tells so, for this takes seconds."""
    from robustbench_meta.cli.console import err

    with err().status("loading plugins and data …"):
        from robustbench_meta import runner
        from robustbench_meta.devices import choose_device
        from robustbench_meta.registry import load_registry

        device = choose_device(spec.device)
        registry = load_registry(places.plugins)
        return _Prepared(runner.prepare(spec, registry, places.data), registry, device)


def _execute(spec: RunSpec, places: Places) -> Summary:
    """Run the grid and show its tables."""
    from robustbench_meta.cli.console import err, out
    from robustbench_meta.cli.plan import outcome
    from robustbench_meta.cli.progress import showing_progress

    ready = _prepare(spec, places)
    from robustbench_meta import leaderboard, runner
    from robustbench_meta.store import Store
    from robustbench_meta.tables import tables

    store, keys, console = Store(places.results), {cell.key for cell in ready.grid.cells}, out()
    ready.tell(console, {key for key in keys if store.has(key)})
    with showing_progress(ready.registry.manager, err()):
        summary = runner.run(ready.grid, ready.registry, store, ready.device)
    path = leaderboard.write(store)
    frame = leaderboard.build(_Ours(store, keys))  # type: ignore[arg-type]  # of a store it needs records() alone
    for table in tables(frame, console.width):
        console.print(table)
    console.print(outcome(summary, path))
    return summary


class _Ours(NamedTuple):
    """The records of a run's own cells: its worst case is over its own attacks."""

    store: Store
    keys: Collection[str]

    def records(self) -> list[dict[str, Any]]:
        """Those of the run that are there."""
        return [record for record in self.store.records() if record["key"] in self.keys]


def _rehearse(spec: RunSpec, places: Places) -> None:
    """Show the cells, what is done already, and the work; write nothing."""
    from robustbench_meta.cli.console import out
    from robustbench_meta.cli.plan import cells_table, work

    ready = _prepare(spec, places)
    done = {cell.key for cell in ready.grid.cells if (places.results / "records" / f"{cell.key}.json").is_file()}
    console = out()
    ready.tell(console, done)
    console.print(cells_table(ready.grid, done))
    console.print(work(ready.grid, done))


def _tell_interrupted(results: Path, dry_run: bool) -> None:
    from robustbench_meta.cli.console import err

    kept = "" if dry_run else f" Finished cells are kept in {results}: the same command continues from there."
    err().print(f"Interrupted.{kept}", markup=False)
