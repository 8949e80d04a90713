"""`bench run`: the grid, from options to tables."""

from __future__ import annotations

import inspect
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import (
    RESULTS,
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
from robustbench_meta.experiment.run_options import HOW, PANELS, PLUGIN, WHERE, WORK, fields_of, run_options
from robustbench_meta.options import chosen_executor, parse_jobs, parse_seconds

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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", rich_help_panel=WORK, help="Show cells and work; write nothing."),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE.toml", rich_help_panel=WORK, help="Write what is typed as a suite file, too.",
            show_default="no",
        ),
    ] = None,
    jobs: Annotated[
        str, typer.Option(metavar="auto|N", rich_help_panel=HOW, help="Workers side by side."),
    ] = "auto",
    executor: Annotated[
        str,
        typer.Option(
            autocompletion=completion.one_of(("local", "processes", "ray")), metavar="NAME[:…]",
            rich_help_panel=HOW, help="local, processes or ray; options as in ray:gpus=1,cpus=2.",
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address", metavar="HOST:PORT|auto", rich_help_panel=HOW,
            help="Of a Ray cluster that runs already; means --executor ray.", show_default="none",
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track", autocompletion=completion.named("tracker"), metavar=PLUGIN, rich_help_panel=HOW,
            help="Keep its curves and cells: tensorboard, mlflow.", show_default="none",
        ),
    ] = None,
    cell_timeout: Annotated[
        str | None,
        typer.Option(
            "--cell-timeout", metavar="SECONDS|10m|2h", rich_help_panel=HOW,
            help="The longest that a cell's evaluation, or a meta-training without a step, may take.",
            show_default="none",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", metavar="", rich_help_panel=HOW, help="Try again what failed before."),
    ] = False,
    exit_when_waiting: Annotated[
        bool,
        typer.Option(
            "--exit-when-waiting", metavar="", rich_help_panel=HOW,
            help="End when other runs are at work on all that is left.",
        ),
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", metavar="", rich_help_panel=HOW, help="Delete saved work of these cells first."),
    ] = False,
    data_root: DataRoot = None,
    results: Annotated[
        Path, typer.Option(metavar="DIR", parser=folder, rich_help_panel=WHERE, help="Where results go.")
    ] = RESULTS,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
    **options: Any,
) -> None:  # fmt: skip
    """Meta-train learners, attack them on unseen tasks, and rank them."""
    from robustbench_meta.cli.json_output import streaming
    from robustbench_meta.experiment.suite import Suite, find_suite, save_suite
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
                from robustbench_meta.jobs.runner import make_ready

                ready = make_ready(
                    wanted, plugins, not no_local_plugins, data_root, policy, track or (),
                    bring=None if dry_run else completion.remember,
                )  # fmt: skip
            if save is not None:
                is_new = save_suite(wanted, save)
                if not quiet:
                    err().print(f"suite: {save}" + ("" if is_new else " (as it was)"), markup=False)
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


_TYPES: dict[Any, Any] = {
    bool: bool, int | None: int, tuple[str, ...]: list[str], tuple[int, ...]: list[int],
}  # fmt: skip
"""What typer reads for a field's type; everything else is text, which `RunSpec` reads."""


def _signature() -> inspect.Signature:
    """The signature of `run` with the options of a run in the place of `**options`, in the order of the help."""
    parameters = []
    for name, (type_, default, option) in run_options().items():
        flags = ["--checks/--no-checks"] if type_ is bool else [f"--{name.replace('_', '-')}", *option.flags]
        declared = typer.Option(
            *flags, help=option.help, metavar=None if type_ is bool else option.metavar, rich_help_panel=option.panel,
            autocompletion=completion.named(option.kind) if option.kind else completion.one_of(option.values),
            show_default=option.default or (", ".join(map(str, default)) if isinstance(default, tuple) else default),
        )  # fmt: skip
        annotation = Annotated[_TYPES.get(type_, str) | None, declared]  # type: ignore[valid-type]  # of a loop's option
        parameters.append(inspect.Parameter(name, _KEYWORD, default=None, annotation=annotation))
    *own, _ = inspect.signature(run, eval_str=True).parameters.values()
    parameters += [each.replace(kind=_KEYWORD) for each in own]
    return inspect.Signature(sorted(parameters, key=_panel))


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _panel(parameter: inspect.Parameter) -> int:
    """The place of the parameter's panel in the help; what has no panel comes last."""
    [info] = getattr(parameter.annotation, "__metadata__", [None])
    panel = getattr(info, "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else len(PANELS)


run.__signature__ = _signature()  # type: ignore[attr-defined]  # typer reads it
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
