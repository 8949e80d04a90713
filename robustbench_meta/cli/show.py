"""`bench list`, `bench plugins`, `bench leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_meta.cli.options import RESULTS, Debug, NoLocalPlugins, Plugins
from robustbench_meta.cli.results import read_results
from robustbench_meta.errors import BenchError, PluginError, unknown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from robustbench_meta.contracts import Plugin
    from robustbench_meta.registry import Found, Registry

KINDS = {"learners": "learner", "attacks": "attack", "datasets": "dataset", "backbones": "backbone"}


def list_plugins(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help=f"{', '.join(KINDS)}; all when left out.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this one, its options explained.")] = None,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    debug: Debug = False,
) -> None:
    """List learners, attacks, data sets and backbones, with their options and sources."""
    kinds = _kinds(kind)
    from robustbench_meta.cli.console import out
    from robustbench_meta.registry import load_registry

    registry = load_registry(plugins, local=not no_local_plugins)
    console = out()
    if name is not None:
        console.print(_explained(registry, kinds[0], name))
        return
    for heading in kinds:
        console.print(_listed(registry, heading))


def _kinds(kind: str | None) -> list[str]:
    """The kinds asked for; the singular is understood, too."""
    if kind is None:
        return list(KINDS)
    for plural, singular in KINDS.items():
        if kind in {plural, singular}:
            return [plural]
    raise BenchError(unknown("kind of plugin", kind, KINDS))


def _listed(registry: Registry, heading: str) -> RenderableType:
    """All of one kind, each with its line, its options and its source, indented below its name."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    kind = KINDS[heading]
    names = registry.names(kind)
    parts: list[RenderableType] = [Text(f"{heading.upper()} ({len(names)})", style="bold")]
    for name in names:
        parts.append(Text.assemble((name, "bold cyan"), (f"  {_place(registry, kind, name)}", "dim"), overflow="fold"))
        parts.append(Padding(Group(*_told(registry, kind, name)), (0, 0, 0, 4)))
    example = f"bench list {heading} {names[0]}" if names else "bench plugins"
    return Group(*parts, Text(f"Options explained: {example}\n", style="dim"))


def _told(registry: Registry, kind: str, name: str) -> list[Text]:
    """Its line, its options and its source, or why it cannot be loaded."""
    from rich.text import Text

    try:
        cls = registry.get(kind, name)
    except PluginError as error:
        return [Text(f"failed: {error}", style="red")]
    options = ", ".join(f"{key}={value}" for key, value in _options(cls).items())
    told = [Text(cls.summary()), *([Text(options, style="green")] if options else [])]
    return told + ([Text(cls.source, style="dim")] if cls.source else [])


def _options(cls: type[Plugin]) -> dict[str, str]:
    """The options with their defaults, as typed."""
    return {key: _typed(info.get_default(call_default_factory=True)) for key, info in cls.model_fields.items()}


def _typed(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _place(registry: Registry, kind: str, name: str) -> str:
    origin = registry.origin(kind, name)
    return "built in" if origin.kind == "built-in" else f"{origin.kind}: {origin.where}"


def _explained(registry: Registry, heading: str, name: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    kind = KINDS[heading]
    cls = registry.get(kind, name)
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for (key, default), info in zip(_options(cls).items(), cls.model_fields.values(), strict=True):
        table.add_row(key, Text(default), Text(info.description or "", style="dim"))
    title = Text.assemble(
        (f"{kind} {name}", "bold cyan"), (f"  {_place(registry, kind, name)}", "dim"), overflow="fold"
    )
    return Group(title, Text(cls.summary()), Text(cls.source, style="dim"), Text(""), table)


def plugins(plugins: Plugins = None, no_local_plugins: NoLocalPlugins = False, debug: Debug = False) -> None:
    """Show which plugins were found where, what they bring, and which failed and why."""
    import traceback

    from robustbench_meta.cli.console import counted, err, out
    from robustbench_meta.registry import load_registry

    registry = load_registry(plugins, local=not no_local_plugins, strict=False)
    out().print(_found(registry.found))
    failed = [found for found in registry.found if found.error]
    out().print(f"{counted(len(registry.found), 'plugin')}, {len(failed)} failed")
    for found in failed if debug else []:
        err().print("".join(traceback.format_exception(found.cause)), markup=False)


def _found(found: list[Found]) -> RenderableType:
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


def leaderboard(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="The results folder. Default: ./results.")] = RESULTS,
    debug: Debug = False,
) -> None:
    """Rebuild leaderboard.csv (and curves.csv, of attacks at several eps) from the records, and show the tables."""
    store, frame, samples = read_results(results)
    from robustbench_meta.cli.console import out
    from robustbench_meta.curves import curves
    from robustbench_meta.leaderboard import write
    from robustbench_meta.tables import curve_tables, tables

    path = write(store)
    console = out()
    for table in [*tables(frame, console.width), *curve_tables(curves(frame, samples), console.width)]:
        console.print(table)
    console.print(f"leaderboard: {path}", markup=False)
