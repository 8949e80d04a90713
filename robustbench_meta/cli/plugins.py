"""`bench plugins`: those that were found, and new ones to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import Debug, Json, NoLocalPlugins, Plugins, folder
from robustbench_meta.errors import BenchError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from robustbench_meta.registry.registry import LoadedModule

app = typer.Typer(rich_markup_mode="rich")


@app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context, plugins: Plugins = None, no_local_plugins: NoLocalPlugins = False, json: Json = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Show which plugins were found where, what they bring, and which failed and why; or begin a new one."""
    if context.invoked_subcommand is not None:
        if plugins is not None or no_local_plugins:
            raise BenchError("--plugins and --no-local-plugins are for the list of plugins; a new one goes --into DIR")
        return
    if json:
        from robustbench_meta.cli import json_documents

        json_documents.print_plugins(plugins, local=not no_local_plugins, debug=debug)
        return
    import traceback

    from robustbench_meta.registry.registry import load_registry
    from robustbench_meta.reporting.terminal.console import counted, err, out

    registry = load_registry(plugins, local=not no_local_plugins, strict=False)
    out().print(_found(registry.found))
    failed = [found for found in registry.found if found.error]
    out().print(f"{counted(len(registry.found), 'plugin')}, {len(failed)} failed")
    for found in failed if debug else []:
        err().print("".join(traceback.format_exception(found.cause)), markup=False)


@app.command()
def new(
    kind: Annotated[
        str,
        typer.Argument(
            autocompletion=completion.one_of(("learner", "attack", "dataset", "backbone")),
            metavar="KIND",
            help="learner, attack, dataset or backbone.",
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What is typed to use it, such as my-attack.")],
    into: Annotated[
        Path, typer.Option(metavar="DIR", parser=folder, help="The folder; made if it is not there.")
    ] = Path("plugins"),
    debug: Debug = False,
) -> None:
    """Write a plugin that works, to make your own of, and its test.

    Nothing is overwritten. What lies in another folder than ./plugins is found with --plugins DIR.

    [bold]Examples[/]
    bench plugins new attack my-attack
    bench plugins new learner my-learner --into research
    """
    from robustbench_meta.cli.new_plugin import write_plugin

    def taken() -> list[str]:
        from robustbench_meta.registry.registry import load_registry

        there = into.is_dir()
        return load_registry(into if there else None, local=there, strict=False).names(kind)

    file, test = write_plugin(kind, name, into, taken)
    from robustbench_meta.reporting.terminal.console import out

    console = out()
    for line in _begun(kind, name, file, test):
        console.print(line, soft_wrap=True)  # whole commands, to be copied


def _begun(kind: str, name: str, file: Path, test: Path) -> list[Text]:
    """What was written, and what to do next."""
    import shlex
    from importlib.util import find_spec

    from rich.text import Text

    is_found = file.parent.resolve() == Path("plugins").resolve()
    where = "" if is_found else f" --plugins {shlex.quote(str(file.parent))}"
    steps = {
        f"bench list {kind}s {name}{where}": "it is found, with its options",
        **({} if find_spec("pytest") else {"python -m pip install pytest": "what tests are run with"}),
        f"python -m pytest {shlex.quote(str(test))}": "it keeps its contract",
        f"bench run --profile smoke --{kind} {name}{where}": "it is in a leaderboard, in seconds",
    }
    lines = [Text.assemble("the plugin: ", (str(file), "bold cyan"))]
    lines += [Text.assemble("its test:   ", (str(test), "bold cyan")), Text("\nNext:")]
    for command, told in steps.items():
        lines += [Text(f"  # {told}", style="dim"), Text(f"  {command}", style="bold")]
    return lines


def _found(found: list[LoadedModule]) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[RenderableType] = []
    for item in found:
        where = item.origin.where.removeprefix("robustbench_meta.plugins.")
        parts.append(Text.assemble((where, "bold cyan"), (f"  {item.origin.kind}", "dim"), overflow="fold"))
        told = Text(f"failed: {item.error}", style="red") if item.error else Text(_brought(item.brought))
        parts.append(Padding(told, (0, 0, 0, 4)))
    return Group(*parts)


def _brought(brought: list[str]) -> str:
    """`learner maml; attacks fgsm, pgd`."""
    by_kind: dict[str, list[str]] = {}
    for text in brought:
        kind, _, name = text.partition(" ")
        by_kind.setdefault(kind, []).append(name)
    told = [f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}" for kind, names in by_kind.items()]
    return "; ".join(told) or "nothing to choose from: it listens to events"
