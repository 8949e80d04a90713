"""`bench run`: the grid, from options to tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_meta.cli.options import RESULTS, WHERE, DataRoot, Debug, Plugins, profile_table
from robustbench_meta.options import DEFAULT_ATTACKS, DEFAULT_LEARNERS, DEFAULT_SCENARIOS, SCENARIOS, parse_jobs
from robustbench_meta.profiles import PROFILES

_COMPARED = "What to compare (repeat an option to compare several)"
_TASKS = "The tasks"
_WORK = "How much work"
_PLUGIN = "NAME[:…]"


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
            "--eps", metavar="0.1|8/255|0:0.3:7", rich_help_panel=_COMPARED,
            help="Bound of the perturbation; pixels lie in 0…1. FROM:TO:COUNT sweeps.", show_default="the data set's",
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario", metavar="SUPPORT/QUERY", rich_help_panel=_COMPARED,
            help=f"What is attacked: {', '.join(SCENARIOS)} or all.", show_default=", ".join(DEFAULT_SCENARIOS),
        ),
    ] = None,
    surrogate: Annotated[
        str | None,
        typer.Option(
            "--surrogate", metavar="NAME[:…]|FILE", rich_help_panel=_COMPARED,
            help="Of clean/transfer: the learner, or the checkpoint, on which attacks are made.", show_default="none",
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
    checks: Annotated[
        bool,
        typer.Option(
            "--checks/--no-checks", rich_help_panel=_WORK, help="Reliability checks, which give the flags.",
        ),
    ] = True,
    jobs: Annotated[
        str,
        typer.Option(metavar="auto|N", rich_help_panel=_WORK, help="Trainings side by side; the numbers are the same."),
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", rich_help_panel=_WORK, help="Show cells and work; write nothing."),
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:I]", rich_help_panel=WHERE, help="auto: CUDA if it is there.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="float32|tf32|bf16", rich_help_panel=WHERE, help="What layers are computed in; tf32: CUDA only."
        ),
    ] = "float32",
    compile: Annotated[
        str, typer.Option(metavar="auto|on|off", rich_help_panel=WHERE, help="torch.compile; auto: long runs on CUDA.")
    ] = "auto",
    data_root: DataRoot = None,
    results: Annotated[Path, typer.Option(metavar="DIR", rich_help_panel=WHERE, help="Where results go.")] = RESULTS,
    plugins: Plugins = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Meta-train learners, attack them on unseen tasks, and rank them."""
    from robustbench_meta.cli.console import err
    from robustbench_meta.spec import RunSpec

    side_by_side = parse_jobs(jobs)
    spec = RunSpec.read(
        learners=tuple(learner or ()), attacks=tuple(attack or ()), dataset=dataset, backbone=backbone,
        way=way, shot=shot, query=query, eps=tuple(eps or ()), scenarios=tuple(scenario or ()), profile=profile,
        meta_steps=meta_steps, tasks_per_step=tasks_per_step, episodes=episodes, seeds=tuple(seed or ()), device=device,
        precision=precision, compile=compile, surrogate=surrogate, checks=checks,
    )  # fmt: skip
    try:
        with err().status("loading plugins and data …"):
            from robustbench_meta.cli import execution

            ready = execution.prepare(spec, plugins, data_root)
        do = execution.rehearse if dry_run else execution.execute
        failed = do(ready, results, side_by_side)
    except KeyboardInterrupt:
        kept = "" if dry_run else (
            f" Finished trainings and cells are kept in {results}; the same command does the rest,"
            " and begins anew with what was under way."
        )  # fmt: skip
        err().print(f"Interrupted.{kept}", markup=False)
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


run.__doc__ = f"""{run.__doc__}

Finished cells (learner × attack × eps × scenario × seed) are kept in the results folder: \
the same command continues where it stopped, a larger grid does only what is new.

NAME\\[:…] is a plugin with options, as in pgd:steps=40,alpha=0.01; see bench list.

[bold]Profiles[/]
{profile_table()}
paper also sets conv4:norm=batch (transductive) and omniglot:rotations=true.

[bold]Examples[/]
bench run --learner adml --attack fgsm
bench run -l maml -l adml:first_order=true -a none -a pgd:steps=40
bench run --eps 0.05 --eps 0.1 --scenario all --seed 0 --seed 1 --dry-run
bench run --dataset omniglot --way 20 --profile paper --device cuda
"""
