"""Which modules of a package a module needs, read from the source: nothing is imported, and nothing is run."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Needs(NamedTuple):
    """What importing a module, and calling its functions, may run."""

    code: dict[str, bytes]
    """The sources of the package's modules among it, by their dotted names: its own, those that they import by
    statements anywhere in them, and the packages that these lie in."""
    others: frozenset[str]
    """The top-level names of all else that these import."""


def needs(module: str, package: str, folders: Sequence[Path]) -> Needs:
    """What a module of a package needs.

    Args:
        module: its dotted name.
        package: that of the package.
        folders: where the package's modules are.
    """
    code: dict[str, bytes] = {}
    others: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name != package and not name.startswith(f"{package}."):
            others.add(name.partition(".")[0])
            continue
        file = None if name in code else _source(name.removeprefix(package).split(".")[1:], folders)
        if file is not None:  # not what a module defines: `from .module import name` may mean either
            code[name] = file.read_bytes()
            parent = name.rpartition(".")[0]
            waiting += [parent] if name != package else []
            waiting += _imports(code[name], name if file.name == "__init__.py" else parent)
    return Needs(code, frozenset(others))


def _source(parts: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The file of a module or package."""
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
