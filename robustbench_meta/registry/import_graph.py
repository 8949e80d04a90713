"""Which modules a module needs, read from the source: nothing is imported, and nothing is run."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Needs(NamedTuple):
    """What importing a module, and calling its functions, may run."""

    code: dict[str, bytes]
    """Sources by dotted names: its own, those of the modules that they import by statements anywhere in them, and of
    the packages that these lie in; of those modules that are looked into."""
    others: frozenset[str]
    """The top-level names of all else that these import."""


def imports_of(module: str, file_of: Callable[[str], Path | None]) -> Needs:
    """What a module needs.

    Args:
        module: its dotted name.
        file_of: the source of a module by its dotted name; None: there is none, or it is not looked into.
    """
    code: dict[str, bytes] = {}
    others: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = None if name in code else file_of(name)
        if file is None:  # or it is what a module defines: `from .module import name` may mean either
            others.add(name.partition(".")[0])
            continue
        code[name] = file.read_bytes()
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        waiting += _imports(code[name], name if file.name == "__init__.py" else parent)
    return Needs(code, frozenset(others - {name.partition(".")[0] for name in code}))


def source_in(folders: Iterable[Path], name: str, *, below: str = "") -> Path | None:
    """The file of a module or package, by its dotted name; of one of the package `below` whose folders these are."""
    if below and not f"{name}.".startswith(f"{below}."):
        return None
    parts = [part for part in name.removeprefix(below).split(".") if part]
    for folder in folders:
        place = folder.joinpath(*parts)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file
    return None


@cache
def _imports(code: bytes, package: str) -> tuple[str, ...]:
    """The dotted names in the import statements of a module of that package; a name `from` somewhere with its own."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):  # importing it will tell
        return ()
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # beyond the top
                continue
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)
