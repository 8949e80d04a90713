"""The documents that commands print with --json in the place of tables; numbers are numbers, NaN is null."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_meta.cli.json_output import alone_on_stdout, print_document
from robustbench_meta.cli.results import read_results
from robustbench_meta.errors import PluginError
from robustbench_meta.registry.registry import Registry, load_registry

if TYPE_CHECKING:
    from robustbench_meta.results.pairwise import Comparison


def print_list(
    kinds: Sequence[str], name: str | None, plugins: Path | None, *, local: bool, suites: bool, norm: str | None = None
) -> None:  # fmt: skip
    """Of `bench list`: plugins with their options, and the shipped suites."""
    with alone_on_stdout() as stream:
        told: dict[str, Any] = {}
        if kinds:
            registry = load_registry(plugins, local=local)
            wanted = [(kind, each) for kind in kinds for each in ([name] if name else registry.names(kind))
                      if norm in {None, registry.norm_of(each)}]  # fmt: skip
            told["plugins"] = [_plugin(registry, kind, each) for kind, each in wanted]
        if suites:
            told["suites"] = _suites()
        print_document(stream, **told)


def _plugin(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    origin = registry.origin(kind, name)
    told: dict[str, Any] = {"kind": kind, "name": name, "origin": origin.kind, "where": origin.where}
    try:
        cls = registry.get(kind, name)
    except PluginError as error:
        return {**told, "error": str(error)}
    options = [
        {"name": key, "default": info.get_default(call_default_factory=True), "about": info.description or ""}
        for key, info in cls.model_fields.items()
    ]
    return {**told, "error": None, "about": cls.summary(), "source": cls.source, "options": options}


def _suites() -> list[dict[str, str]]:
    from robustbench_meta.experiment.suite import find_suite, shipped

    return [{"name": name, "where": str(path), "about": find_suite(name).about} for name, path in shipped().items()]


def print_plugins(plugins: Path | None, *, local: bool, debug: bool) -> None:
    """Of `bench plugins`: what was found where, what it brings, or why it failed."""
    with alone_on_stdout() as stream:
        registry = load_registry(plugins, local=local, strict=False)
        found = [
            {
                "origin": item.origin.kind, "where": item.origin.where, "brings": item.brought, "error": item.error,
                **({"traceback": "".join(traceback.format_exception(item.cause))} if debug and item.cause else {}),
            }
            for item in registry.found
        ]  # fmt: skip
        print_document(stream, plugins=found)


def print_leaderboard(results: Path) -> None:
    """Of `bench leaderboard`: what `bench export --format json` writes; the CSVs are rebuilt, too."""
    with alone_on_stdout() as stream:
        store, frame, samples = read_results(results)
        from robustbench_meta.reporting.export.data import json_text
        from robustbench_meta.results.curves import curves
        from robustbench_meta.results.leaderboard import write

        write(store)
        stream.write(json_text(frame, curves(frame, samples)))


def print_comparisons(results: Path, first: str | None, second: str | None) -> None:
    """Of `bench compare`: two learners at one threat in each, and a contrast for each column that both have."""
    with alone_on_stdout() as stream:
        _, frame, samples = read_results(results)
        from robustbench_meta.results.pairwise import compare_learners

        found = [
            {
                "setting": pair.setting, "first": pair.first, "second": pair.second,
                "columns": [_column(pair, column) for column in pair.contrasts],
            }
            for pair in compare_learners(frame, samples, first, second)
        ]  # fmt: skip
        print_document(stream, comparisons=found)


def _column(pair: Comparison, column: str) -> dict[str, Any]:
    contrast, (one, two) = pair.contrasts[column], pair.scores[column]
    return {
        "column": column, "episodes": len(contrast.first.episodes),
        "first_accuracy": one.mean / 100, "second_accuracy": two.mean / 100,
        "first_flags": sorted(one.flags), "second_flags": sorted(two.flags),
        "difference": contrast.paired.difference, "ci95": contrast.paired.ci95, "p": contrast.paired.p,
        "corrected_p": contrast.corrected, "seeds_p": contrast.seeds_p,
        "ahead": {1: pair.first, -1: pair.second}.get(contrast.ahead),
    }  # fmt: skip


def print_data(data_root: Path | None) -> None:
    """Of `bench data list`."""
    with alone_on_stdout() as stream:
        from robustbench_meta.experiment.data_library import list_data

        print_document(stream, datasets=[row._asdict() for row in list_data(data_root)])
