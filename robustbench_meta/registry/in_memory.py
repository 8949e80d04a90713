"""Plugins that are given to the Python API as classes or instances, in the place of names; their code."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from types import FunctionType

from robustbench_meta import hookspecs
from robustbench_meta.contracts import Plugin
from robustbench_meta.contracts.plugin import plugin_as_typed
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.hookspecs import hookimpl
from robustbench_meta.options import parse_choice
from robustbench_meta.registry.discovery import SESSION, Origin, own_code
from robustbench_meta.registry.registry import KINDS, Registry

Named = str | Plugin | type[Plugin]
"""A plugin: its name with options, as on the command line; an instance; or a class, with its defaults."""


class GivenPlugins:
    """Names the plugins that were given as objects, and brings those to a registry that it does not know."""

    def __init__(self) -> None:
        self._classes: dict[tuple[str, str], type[Plugin]] = {}
        self._instances: list[tuple[str, str, Plugin]] = []
        self.new: list[str] = []
        """The names of those that the registry did not know, and workers cannot know; trackers are no work's."""

    def typed(self, kind: str, given: object) -> str:
        """The plugin as one would type it.

        Raises:
            BenchError: it is none of that kind, or has options that cannot be said as text.
        """
        if isinstance(given, str):
            return given
        cls = given if isinstance(given, type) else type(given)
        base = KINDS[kind]
        if not issubclass(cls, base):
            raise BenchError(
                f"invalid {kind} {given!r}: expected a name, a subclass of {base.__name__.removeprefix('Any')}, or an "
                "instance of one"
            )
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name:
            raise PluginError(f"{kind} {cls.__name__} has no name; give the class a variable `name`")
        if self._classes.setdefault((kind, name), cls) is not cls:
            raise PluginError(f"two different classes are given as the {kind} '{name}'; rename one of them")
        if not isinstance(given, Plugin):
            return name
        for _, value in given:  # the base of a defence
            if isinstance(value, Plugin):
                self.typed(kind, value)
        text = plugin_as_typed(given, ",")
        self._instances.append((kind, text, given))
        return text

    def bring(self, registry: Registry) -> None:
        """Register the classes, unless the registry has the very same.

        Raises:
            PluginError: a class is no whole plugin, its name is taken, or it has neither source nor version; or an
                instance is not what its options say as text.
        """
        for (kind, name), cls in self._classes.items():
            if name in registry.names(kind) and registry.get(kind, name) is cls:
                continue
            is_work = kind != "tracker"  # which hears where the run was started, and is part of no result
            identity = f"{SESSION} sha256:{class_digest(cls)}" if is_work else SESSION
            origin = Origin("session", f"{cls.__module__}.{cls.__qualname__}", identity)
            found = registry.add(bringing(kind, cls), origin)
            if found.error is not None:
                raise PluginError(found.error) from found.cause
            if is_work:
                self.new.append(name)
        for kind, text, given in self._instances:
            choice = parse_choice(text)
            if registry.make(kind, choice.name, choice.options) != given:
                raise PluginError(
                    f"the {kind} {given!r} has options that cannot be said as text, which read '{text}'; "
                    "give it as a name with options"
                )


def bringing(kind: str, cls: type[Plugin]) -> object:
    """A plugin module that brings one class."""

    def register(self: object, register: Callable[[type[Plugin]], None]) -> None:
        register(cls)

    hook = f"register_{kind}s"
    assert hasattr(hookspecs, hook)
    register.__name__ = hook
    return type("Given", (), {hook: hookimpl(register)})()


def check_alone(new: Iterable[str], executor: str, jobs: object, cell_timeout: object) -> None:
    """Raise BenchError if plugins of this process alone were to run in others, which cannot know them."""
    names = ", ".join(new)
    other = [f"executor='{executor}'"] if executor != "local" else []
    other += [f"jobs={jobs}"] if jobs not in (1, "auto") else []
    other += [f"cell_timeout={cell_timeout}"] if cell_timeout is not None else []
    if names and other:
        raise BenchError(
            f"{names}: given as a class of this process, and {' and '.join(other)} would run it in others, which do "
            "not know it; put the class into a file of a folder, and give its name, and plugins='FOLDER'"
        )


def class_digest(cls: type[Plugin]) -> str:
    """Changes with the source of a class and of its bases, and with their `version`.

    A class of a module is identified by the module's file, one of a notebook or script by its own text alone.

    Raises:
        PluginError: a class has neither source nor version.
    """
    contracts = Plugin.__module__.rpartition(".")[0]
    own = [base for base in cls.__mro__ if not issubclass(Plugin, base) and not base.__module__.startswith(contracts)]
    return hashlib.sha256("\0".join(map(_identity, own)).encode()).hexdigest()[:16]


def _identity(cls: type) -> str:
    version = vars(cls).get("version", "")
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    in_file = cls.__module__ != "__main__" and file is not None
    code = "".join(map(str, own_code(cls.__module__).items())) if in_file else _source(cls)
    if not code and not version:
        raise PluginError(
            f"no source was found for the class '{cls.__qualname__}', and without it nothing identifies its results: "
            "give the class a variable `version`, and change it with the code; or put the class into a file, and name "
            "its folder: plugins='FOLDER'"
        )
    return f"{cls.__module__}.{cls.__qualname__} {version} {code}"


def _source(cls: type) -> str:
    """The text of a class, or "".

    `inspect` finds no classes of notebooks, only functions, so the text is cut out of the cell of a method.
    """
    for value in vars(cls).values():
        function = inspect.unwrap(getattr(value, "__func__", value))
        if isinstance(function, FunctionType):
            try:
                lines, _ = inspect.findsource(function.__code__)
            except (OSError, TypeError):
                continue
            for node in ast.walk(ast.parse("".join(lines))):
                if not isinstance(node, ast.ClassDef) or node.name != cls.__name__:
                    continue
                if node.lineno <= function.__code__.co_firstlineno <= (node.end_lineno or 0):
                    first = min((each.lineno for each in node.decorator_list), default=node.lineno)
                    return textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
    try:
        return textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return ""
