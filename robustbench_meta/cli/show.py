"""`bench list`, `bench leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_meta.cli import completion
from robustbench_meta.cli.options import RESULTS, Debug, Json, NoLocalPlugins, Plugins
from robustbench_meta.cli.results import read_results
from robustbench_meta.errors import BenchError, PluginError, unknown
from robustbench_meta.options import as_typed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from robustbench_meta.contracts import Plugin
    from robustbench_meta.registry.registry import Registry

KINDS = {
    "learners": "learner", "attacks": "attack", "datasets": "dataset", "backbones": "backbone", "trackers": "tracker",
}  # fmt: skip
NORMS = ("linf", "l2", "l1", "l0", "severity")


def list_plugins(
    kind: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.one_of((*KINDS, "suites")),
            metavar="KIND",
            help=f"{', '.join(KINDS)}, suites; all when left out.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.names_of_kind, metavar="NAME", help="Only this one, its options explained."
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option("--norm", metavar="|".join(NORMS), help="Of attacks: only those of this norm.")
    ] = None,
    long: Annotated[
        bool,
        typer.Option("--long", metavar="", help="Learners and attacks with their options, as other kinds are listed."),
    ] = False,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List learners, attacks, data sets, backbones and trackers, with options and sources; and the shipped suites."""
    from robustbench_meta.reporting.terminal.console import out

    if norm is not None and norm not in NORMS:
        raise BenchError(unknown("norm", norm, NORMS))
    if norm is not None and (kind not in {"attack", "attacks"} or name is not None):
        raise BenchError(f"--norm {norm} is for `bench list attacks`")
    suites = kind in {"suites", "suite"} and name is None
    kinds = [] if suites else _kinds(kind, plugins, local=not no_local_plugins)
    if json:
        from robustbench_meta.cli import json_documents

        wanted = [KINDS[each] for each in kinds]
        json_documents.print_list(
            wanted, name, plugins, local=not no_local_plugins, suites=suites or kind is None, norm=norm
        )
        return
    if suites:
        out().print(_suites())
        return
    from robustbench_meta.registry.registry import load_registry

    registry = load_registry(plugins, local=not no_local_plugins)
    completion.remember(registry)
    console = out()
    if name is not None:
        console.print(_explained(registry, kinds[0], name))
        return
    for heading in kinds:
        brief = _BRIEF.get(heading) if not long else None
        console.print(brief(registry, norm) if brief else _listed(registry, heading, norm))
    if kind is None:
        console.print(_suites())


def _suites() -> RenderableType:
    """The suites that come with the package."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from robustbench_meta.experiment.suite import find_suite, shipped

    parts: list[RenderableType] = [Text(f"SUITES ({len(shipped())})", style="bold")]
    for name, path in shipped().items():
        parts.append(Text.assemble((name, "bold cyan"), (f"  {path}", "dim"), overflow="fold"))
        parts.append(Padding(Text(find_suite(name).about), (0, 0, 0, 4)))
    return Group(*parts, Text("To run one: bench run NAME\n", style="dim"))


def _kinds(kind: str | None, plugins: Path | None, *, local: bool) -> list[str]:
    """The kinds asked for; the singular is understood, too.

    Raises:
        BenchError: it is none; of a plugin's name, what to type.
    """
    if kind is None:
        return list(KINDS)
    for plural, singular in KINDS.items():
        if kind in {plural, singular}:
            return [plural]
    from robustbench_meta.registry.registry import load_registry

    registry = load_registry(plugins, local=local)
    named = [plural for plural, singular in KINDS.items() if kind.lower() in registry.names(singular)]
    told = " or ".join(f"`bench list {plural} {kind.lower()}`" for plural in named)
    hint = f"; '{kind}' itself is explained by {told}" if named else ""
    raise BenchError(unknown("kind of plugin", kind, [*KINDS, "suites"]) + hint)


def _attacks(registry: Registry, norm: str | None) -> RenderableType:
    """A line an attack: its name, norm, what it sees of the model, and its source; torchattacks' last."""
    table = _brief_table(("norm", None), ("sees", None), ("source", "dim"))
    names = [name for name in registry.names("attack") if norm in {None, registry.norm_of(name)}]
    for name in sorted(names, key=lambda name: (registry.origin("attack", name).where.endswith("torchattacks"), name)):
        try:
            attack = registry.get("attack", name)()
            sees, source = "–" if attack.clean else _SEES[attack.how()], attack.source or attack.summary()
            norm_shown = "–" if attack.clean else attack.norm
            table.add_row(name, norm_shown, sees, _shortened(source))
        except Exception as error:  # it is a plugin
            table.add_row(name, "?", "?", _failed(error))
    return _under("ATTACKS", table, "All of one: bench list attacks pgd; of all: --long; of one norm: --norm l2")


def _learners(registry: Registry, _: str | None) -> RenderableType:
    """A line a learner: its name and what it does."""
    table = _brief_table(("what it does", None))
    for name in registry.names("learner"):
        try:
            place = "" if registry.origin("learner", name).kind == "built-in" else _place(registry, "learner", name)
            table.add_row(name, _shortened(f"{registry.get('learner', name).summary()}  {place}".rstrip()))
        except PluginError as error:
            table.add_row(name, _failed(error))
    return _under("LEARNERS", table, "Options and source of one: bench list learners maml; of all: --long")


def _brief_table(*columns: tuple[str, str | None]) -> Table:
    """Of names beside columns, the last of which is for `_shortened` text."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("name", style="bold cyan", no_wrap=True)
    for name, style in columns:
        table.add_column(name, style=style, no_wrap=(name, style) != columns[-1])
    return table


def _failed(error: Exception) -> Text:
    from rich.text import Text

    return Text(f"failed: {error}", style="red")


def _shortened(text: str) -> Text:
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")


def _under(heading: str, table: Table, hint: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(f"{heading} ({table.row_count})", style="bold"), table, Text(f"{hint}\n", style="dim"))


_BRIEF = {"learners": _learners, "attacks": _attacks}


_SEES = {"single-step": "white-box", "iterative": "white-box", "black-box": "black-box", "random": "nothing"}
"""What attacks that search so ask the model for: gradients, answers, or nothing."""


def _listed(registry: Registry, heading: str, norm: str | None = None) -> RenderableType:
    """All of one kind, each with its line, its options and its source, indented below its name."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    kind = KINDS[heading]
    names = [name for name in registry.names(kind) if norm in {None, registry.norm_of(name)}]
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
    return {key: as_typed(info.get_default(call_default_factory=True)) for key, info in cls.model_fields.items()}


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
    """Rebuild leaderboard.csv (curves.csv of attacks at several eps, corruptions.csv) and show the tables."""
    if json:
        from robustbench_meta.cli import json_documents

        json_documents.print_leaderboard(results)
        return
    store, frame, samples = read_results(results)
    from robustbench_meta.reporting.terminal.console import out
    from robustbench_meta.reporting.terminal.tables import all_tables
    from robustbench_meta.results.leaderboard import write

    path = write(store)
    console = out()
    for table in all_tables(frame, samples, console.width):
        console.print(table)
    console.print(f"leaderboard: {path}", markup=False)
