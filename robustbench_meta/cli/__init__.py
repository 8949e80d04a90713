"""The commands of `bench`: each parses, builds a spec, calls the library and prints."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from robustbench_meta import __version__
from robustbench_meta.cli import card, compare, data, doctor, export, plot, plugins, report, run, show, status, zoo
from robustbench_meta.cli.hints import Commands
from robustbench_meta.cli.options import Debug
from robustbench_meta.errors import BenchError

app = typer.Typer(
    name="bench",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command("run", rich_help_panel="Measure")(run.run)
app.command("status", rich_help_panel="Measure")(status.status)
app.command("leaderboard", rich_help_panel="Measure")(show.leaderboard)
app.command("compare", rich_help_panel="Measure")(compare.compare)
app.command("report", rich_help_panel="Publish")(report.report)
app.command("plot", rich_help_panel="Publish")(plot.plot)
app.command("export", rich_help_panel="Publish")(export.export)
app.command("card", rich_help_panel="Publish")(card.card)
app.command("verify", rich_help_panel="Publish")(zoo.verify_checkpoint)
app.command("list", rich_help_panel="What there is")(show.list_plugins)
app.command("zoo", rich_help_panel="What there is")(zoo.zoo)
app.command("doctor", rich_help_panel="What there is")(doctor.doctor)
app.add_typer(plugins.app, name="plugins", rich_help_panel="What there is")
app.add_typer(data.app, name="data", rich_help_panel="What there is")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"robustbench_meta {__version__}")
        raise typer.Exit


def _help(context: typer.Context, wanted: bool) -> None:
    """Show the help; typer's own option would load pydantic for each command, which takes longer than the help."""
    if wanted:
        print(context.get_help())
        raise typer.Exit


@app.callback(
    epilog="[bold]Try[/]\n\n"
    "bench run --profile smoke             seconds: does it work here?\n"
    "bench run                             minutes: MAML, ADML under FGSM, PGD\n"
    "bench run -l adml -a pgd --eps 8/255  one learner, one attack\n"
    "bench list attacks                    what there is to attack with"
)
def bench(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version and stop."),
    ] = False,
    debug: Debug = False,
    help: Annotated[
        bool,
        typer.Option("--help", "-h", metavar="", callback=_help, is_eager=True, help="Show this message and exit."),
    ] = False,
) -> None:
    """How well do few-shot learners hold up when someone attacks them?

    Meta-trains learners, adapts them to unseen tasks, attacks them, and ranks them.
    """


def main(arguments: list[str] | None = None) -> None:
    """The command `bench`.

    It exits with 0, 1 (a cell failed, or a bug), 2 (bad input or environment), 130 (Ctrl-C) or 143 (SIGTERM).
    """
    given = sys.argv[1:] if arguments is None else arguments
    for size in ("COLUMNS", "LINES"):
        if not os.environ.get(size, "").strip("0"):  # as serial consoles have: unknown, not a screen of no width
            os.environ.pop(size, None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # ε and ∞ are no reason to lose a run where they cannot be printed
    try:
        _command(given)(given, prog_name="bench")
    except Exception as error:  # the last stop of whatever went wrong: told in one message
        from robustbench_meta.reporting.terminal.console import print_error

        if "--debug" in given:
            traceback.print_exception(error)
        message, code = explain(error)
        print_error(message)
        sys.exit(code)


def _command(given: list[str]) -> Any:
    """The app, with its options for completion told as the others are; before a command they would load pydantic."""
    command = typer.main.get_command(app)
    told = {
        "install_completion": "Have the shell complete names with TAB.",
        "show_completion": "Print the script that does it.",
    }
    for option in command.params:
        if isinstance(option, typer.core.TyperOption) and option.name in told:
            option.metavar, option.help = "", told[option.name]
    if given and not given[0].startswith("-"):
        command.params = [option for option in command.params if option.name not in told]
    return command


def explain(error: Exception) -> tuple[str, int]:
    """The one message and the exit code for what went wrong."""
    if isinstance(error, BenchError):
        return str(error), 2
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return f"{error.filename}: {what}" if error.filename else f"{what}; --debug shows what could not be done", 2
    return f"this is a bug: {type(error).__name__}: {error}; run again with --debug and report what it shows", 1
