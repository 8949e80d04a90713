"""Plugins that are given to the Python API as classes or instances, in the place of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from robustbench_meta import hookspecs
from robustbench_meta.contracts import Plugin
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.hookspecs import hookimpl
from robustbench_meta.options import exact, parse_choice
from robustbench_meta.registry.code_identity import class_digest
from robustbench_meta.registry.discovery import SESSION, Origin
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
                f"invalid {kind} {given!r}: expected a name, a subclass of {base.__name__}, or an instance of one"
            )
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name:
            raise PluginError(f"{kind} {cls.__name__} has no name; give the class a variable `name`")
        if self._classes.setdefault((kind, name), cls) is not cls:
            raise PluginError(f"two different classes are given as the {kind} '{name}'; rename one of them")
        if not isinstance(given, Plugin):
            return name
        text = _said(name, given)
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


def _said(name: str, plugin: Plugin) -> str:
    """Name and options, those that differ from the defaults."""
    options = []
    for key, info in type(plugin).model_fields.items():
        value = getattr(plugin, key)
        if value != info.get_default(call_default_factory=True):
            options.append(f"{key}={_text(value)}")
    return f"{name}:{','.join(options)}" if options else name


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return exact(value) if isinstance(value, float) else str(value)


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
