"""`bench run`: the grid, from options to tables."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import (
    RESULTS,
    WHERE,
    DataRoot,
    Debug,
    Json,
    NoLocalPlugins,
    Plugins,
    Quiet,
    folder,
    is_debugging,
    profile_table,
)
from robustbench_meta.experiment.profiles import PROFILES
from robustbench_meta.options import (
    DEFAULT_ATTACKS,
    DEFAULT_LEARNERS,
    DEFAULT_SCENARIOS,
    SCENARIOS,
    chosen_executor,
    parse_jobs,
    parse_seconds,
)

_COMPARED = "What to compare (repeat an option to compare several)"
_TASKS = "The tasks"
_WORK = "How much work"
_HOW = "How it is done (the numbers are the same)"
_PLUGIN = "NAME[:…]"
_STOPPING = "Stopping: saving unfinished work (interrupt again to stop at once) …"


def run(
    context: typer.Context,
    suite: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.suites, metavar="SUITE.toml", show_default=False,
            help="What to run, from a file, or a suite by name (bench list suites); options override it.",
        ),
    ] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option(
            "--learner", "-l", autocompletion=completion.named("learner"), metavar=_PLUGIN, rich_help_panel=_COMPARED,
            help="Meta-learner.", show_default=", ".join(DEFAULT_LEARNERS),
        ),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack", "-a", autocompletion=completion.named("attack"), metavar=_PLUGIN, rich_help_panel=_COMPARED,
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
            "--scenario", autocompletion=completion.scenarios, metavar="SUPPORT/QUERY", rich_help_panel=_COMPARED,
            help=f"What is attacked: {', '.join(SCENARIOS)} or all.", show_default=", ".join(DEFAULT_SCENARIOS),
        ),
    ] = None,
    surrogate: Annotated[
        str | None,
        typer.Option(
            "--surrogate", autocompletion=completion.named("learner"), metavar="NAME[:…]|FILE",
            rich_help_panel=_COMPARED, show_default="none",
            help="Of clean/transfer: the learner, or the checkpoint, on which attacks are made.",
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
            "--dataset", "-d", autocompletion=completion.named("dataset"), metavar=_PLUGIN, rich_help_panel=_TASKS,
            help="Data set.", show_default="glyphs",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", "-b", autocompletion=completion.named("backbone"), metavar=_PLUGIN, rich_help_panel=_TASKS,
            help="Network.", show_default="the data set's",
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
            autocompletion=completion.profiles, metavar="|".join(PROFILES), rich_help_panel=_WORK,
            help="What is not given is the profile's.",
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
        bool | None,
        typer.Option(
            "--checks/--no-checks", rich_help_panel=_WORK, help="Reliability checks, which give the flags.",
            show_default="checks",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", rich_help_panel=_WORK, help="Show cells and work; write nothing."),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE.toml", rich_help_panel=_WORK, help="Write what is typed as a suite file, too.",
            show_default="no",
        ),
    ] = None,
    jobs: Annotated[
        str, typer.Option(metavar="auto|N", rich_help_panel=_HOW, help="Workers side by side."),
    ] = "auto",
    executor: Annotated[
        str,
        typer.Option(
            autocompletion=completion.one_of(("local", "processes", "ray")), metavar="NAME[:…]",
            rich_help_panel=_HOW, help="local, processes or ray; options as in ray:gpus=1,cpus=2.",
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address", metavar="HOST:PORT|auto", rich_help_panel=_HOW,
            help="Of a Ray cluster that runs already; means --executor ray.", show_default="none",
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track", autocompletion=completion.named("tracker"), metavar=_PLUGIN, rich_help_panel=_HOW,
            help="Keep its curves and cells: tensorboard, mlflow.", show_default="none",
        ),
    ] = None,
    cell_timeout: Annotated[
        str | None,
        typer.Option(
            "--cell-timeout", metavar="SECONDS|10m|2h", rich_help_panel=_HOW,
            help="The longest that a cell's evaluation, or one meta-step, may take.", show_default="none",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", metavar="", rich_help_panel=_HOW, help="Try again what failed before."),
    ] = False,
    exit_when_waiting: Annotated[
        bool,
        typer.Option(
            "--exit-when-waiting", metavar="", rich_help_panel=_HOW,
            help="End when other runs are at work on all that is left.",
        ),
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", metavar="", rich_help_panel=_HOW, help="Delete saved work of these cells first."),
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:I]", rich_help_panel=WHERE, help="auto: CUDA if it is there.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.one_of(("float32", "tf32", "bf16")), metavar="float32|tf32|bf16",
            rich_help_panel=WHERE, help="What layers are computed in; tf32: CUDA only.", show_default="float32",
        ),
    ] = None,
    compile: Annotated[
        str,
        typer.Option(
            autocompletion=completion.one_of(("on", "off")), metavar="on|off", rich_help_panel=WHERE,
            help="Whether meta-training goes through torch.compile.",
        ),
    ] = "off",
    chunk: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=WHERE, help="Tasks computed at a time: fewer need less memory.",
            show_default="by device and network",
        ),
    ] = None,
    data_root: DataRoot = None,
    results: Annotated[
        Path, typer.Option(metavar="DIR", parser=folder, rich_help_panel=WHERE, help="Where results go.")
    ] = RESULTS,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Meta-train learners, attack them on unseen tasks, and rank them."""
    options = dict(locals())
    from robustbench_meta.cli.json_output import streaming
    from robustbench_meta.experiment.spec import fields_of
    from robustbench_meta.experiment.suite import Suite, find_suite
    from robustbench_meta.jobs.policy import Policy
    from robustbench_meta.reporting.terminal.console import err, working
    from robustbench_meta.runtime.interrupts import Stop, Stopped

    with streaming(json, progress=not quiet) as events:
        policy = Policy(
            chosen_executor(executor, ray_address), parse_jobs(jobs), parse_seconds("--cell-timeout", cell_timeout),
            fresh, retry_failed, exit_when_waiting,
        )  # fmt: skip
        wanted = (Suite() if suite is None else find_suite(suite)).overridden(fields_of(options))
        stop = Stop()
        try:
            with nullcontext() if quiet or events else working("loading plugins and data …"):
                from robustbench_meta.cli import run_steps

                ready = run_steps.prepare_suite(
                    wanted, plugins, not no_local_plugins, data_root, policy, track or (), dry=dry_run
                )
            if save is not None:
                run_steps.save_and_say(wanted, save, quiet=quiet)
            if dry_run:
                run_steps.dry_run(ready, results, policy, events, save)
                return
            with stop.listening(lambda: err().print(_STOPPING, markup=False)):
                failed = run_steps.execute(
                    ready, results, policy, stop, quiet=quiet, events=events, debug=is_debugging(context)
                )
        except (KeyboardInterrupt, Stopped):
            if dry_run:
                told = "Interrupted."
            else:
                again = "the same command without --fresh" if fresh else "the same command"
                told = f"Interrupted. Finished and unfinished work is saved in {results}: rerun {again} to resume."
            err().print(told, markup=False)
            code = 128 + (stop.signal or signal.SIGINT)
            if events is not None:
                events.emit("interrupted", exit_code=code)
            raise typer.Exit(code) from None
        if failed:
            raise typer.Exit(1)


run.__doc__ = f"""{run.__doc__}

Finished cells (learner × attack × eps × scenario × seed) are saved in the results folder, and unfinished work too: \
the same command resumes an interrupted run, a larger grid computes only what is new. Several runs may share a folder.

NAME\\[:…] is a plugin with options, as in pgd:steps=40,alpha=0.01; see bench list.

[bold]Profiles[/]
{profile_table()}
paper also sets conv4:norm=batch (transductive) and omniglot:rotations=true.

[bold]Examples[/]
bench run --learner adml --attack fgsm
bench run -l maml -l adml:first_order=true -a none -a pgd:steps=40
bench run --eps 0.05 --eps 0.1 --scenario all --seed 0 --seed 1 --dry-run
bench run --dataset omniglot --way 20 --profile paper --device cuda
bench run -l maml -l adml -a pgd --save mine.toml
bench run mine.toml --seed 1
"""
