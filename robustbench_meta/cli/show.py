"""`bench list`, `bench leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import RESULTS, Debug, Json, NoLocalPlugins, Plugins
from robustbench_meta.cli.results import read_results
from robustbench_meta.errors import BenchError, PluginError, unknown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from robustbench_meta.contracts import Plugin
    from robustbench_meta.registry import Registry

KINDS = {
    "learners": "learner", "attacks": "attack", "datasets": "dataset", "backbones": "backbone", "trackers": "tracker",
}  # fmt: skip


def list_plugins(
    kind: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.kinds, metavar="KIND", help=f"{', '.join(KINDS)}, suites; all when left out."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.names_of_kind, metavar="NAME", help="Only this one, its options explained."
        ),
    ] = None,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List learners, attacks, data sets, backbones and trackers, with options and sources; and the shipped suites."""
    from robustbench_meta.cli.console import out

    suites = kind in {"suites", "suite"} and name is None
    kinds = [] if suites else _kinds(kind)
    if json:
        from robustbench_meta.cli import documents

        wanted = [KINDS[each] for each in kinds]
        documents.print_list(wanted, name, plugins, local=not no_local_plugins, suites=suites or kind is None)
        return
    if suites:
        out().print(_suites())
        return
    from robustbench_meta.registry import load_registry

    registry = load_registry(plugins, local=not no_local_plugins)
    completion.remember(registry)
    console = out()
    if name is not None:
        console.print(_explained(registry, kinds[0], name))
        return
    for heading in kinds:
        console.print(_listed(registry, heading))
    if kind is None:
        console.print(_suites())


def _suites() -> RenderableType:
    """The suites that come with the package."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from robustbench_meta.suites import find_suite, shipped

    parts: list[RenderableType] = [Text(f"SUITES ({len(shipped())})", style="bold")]
    for name, path in shipped().items():
        parts.append(Text.assemble((name, "bold cyan"), (f"  {path}", "dim"), overflow="fold"))
        parts.append(Padding(Text(find_suite(name).about), (0, 0, 0, 4)))
    return Group(*parts, Text("To run one: bench run NAME\n", style="dim"))


def _kinds(kind: str | None) -> list[str]:
    """The kinds asked for; the singular is understood, too."""
    if kind is None:
        return list(KINDS)
    for plural, singular in KINDS.items():
        if kind in {plural, singular}:
            return [plural]
    raise BenchError(unknown("kind of plugin", kind, [*KINDS, "suites"]))


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


def leaderboard(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="The results folder. Default: ./results.")] = RESULTS,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Rebuild leaderboard.csv (and curves.csv, of attacks at several eps) from the records, and show the tables."""
    if json:
        from robustbench_meta.cli import documents

        documents.print_leaderboard(results)
        return
    store, frame, samples = read_results(results)
    from robustbench_meta.cli.console import out
    from robustbench_meta.curve_tables import curve_tables
    from robustbench_meta.curves import curves
    from robustbench_meta.leaderboard import write
    from robustbench_meta.tables import tables

    path = write(store)
    console = out()
    for table in [*tables(frame, console.width, samples), *curve_tables(curves(frame, samples), console.width)]:
        console.print(table)
    console.print(f"leaderboard: {path}", markup=False)
