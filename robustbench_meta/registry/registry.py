"""Plugins by kind and name, checked as they are registered; `discovery` finds them."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import pluggy
from pydantic import PydanticUserError, ValidationError

from robustbench_meta import hookspecs
from robustbench_meta.contracts import AnyLearner, Attack, Backbone, Dataset, Plugin
from robustbench_meta.contracts.plugin import made_by
from robustbench_meta.contracts.tracker import Tracker
from robustbench_meta.errors import BenchError, PluginError, brief, expected, unknown
from robustbench_meta.options import NAME, NAMED, Choice, parse_choice
from robustbench_meta.registry.declarations import check_declarations
from robustbench_meta.registry.discovery import Origin, code_digest, release_of, sources

__all__ = ["KINDS", "CollisionError", "LoadedModule", "Origin", "Registry", "core_code", "load_registry"]

KINDS: dict[str, type[Plugin]] = {
    "learner": AnyLearner, "attack": Attack, "dataset": Dataset, "backbone": Backbone, "tracker": Tracker,
}  # fmt: skip
_log = logging.getLogger(__name__)
_CORE = {
    "training": ("contracts", "data/image_bank.py", "engine", "runtime/precision.py", "runtime/seeds.py"),
    "evaluation": ("evaluation", "experiment/attack_grid.py", "experiment/probes.py", "experiment/scenario.py",
                   "experiment/surrogates.py"),
}  # fmt: skip
"""Folders and modules that make the numbers: checkpoints, and what else makes a cell's."""
_BROKEN = (Exception, SystemExit)
"""What a plugin may raise without costing anybody else anything."""


class CollisionError(PluginError):
    """Two plugins with one name."""


@dataclass
class LoadedModule:
    """A plugin module, what it registered, or why it could not."""

    origin: Origin
    brought: list[str] = field(default_factory=list)
    error: str | None = None
    cause: BaseException | None = None


@dataclass
class _Entry:
    """A plugin class by name, loaded when it is first used."""

    kind: str
    name: str
    module: LoadedModule
    load: Callable[[], type[Plugin]]

    @cached_property
    def cls(self) -> type[Plugin]:
        origin = self.module.origin
        try:
            cls = self.load()
            name = _checked_name(self.kind, cls)
            if name != self.name:
                raise PluginError(
                    f"it was registered under this name, and the class that is loaded has the name '{name}'"
                )
        except _BROKEN as error:
            raise PluginError(
                f"{self.kind} '{self.name}' of {origin.kind} {origin.where} cannot be loaded: {_reason(error, origin)}"
            ) from error
        return cls


class _Register:
    """The `register` that a plugin is given: what it brings is staged until all of the plugin is fine."""

    def __init__(self, kind: str, stage: Callable[[str, str, Callable[[], type[Plugin]]], None]) -> None:
        self._kind, self._stage = kind, stage

    def __call__(self, plugin: type[Plugin]) -> None:
        self._stage(self._kind, _checked_name(self._kind, plugin), lambda: plugin)

    def later(self, name: str, load: Callable[[], type[Plugin]]) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise PluginError(f"register.later: invalid name {name!r}: expected {NAMED}")
        if not callable(load):
            raise PluginError(
                f"register.later: invalid {load!r} for '{name}': expected a function that returns the class"
            )
        self._stage(self._kind, name, load)


class Registry:
    """Plugins by kind and name; make one with `load_registry`, there is no global one."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.found: list[LoadedModule] = []
        self._entries: dict[str, dict[str, _Entry]] = {kind: {} for kind in KINDS}
        self._warned: set[tuple[str, str]] = set()

    def names(self, kind: str) -> list[str]:
        """The names of one kind, in alphabetical order."""
        return sorted(self._entries[kind])

    def norm_of(self, attack: str) -> str | None:
        """The norm of an attack without options; None: it does not say."""
        try:
            return str(self.get("attack", attack)().norm)
        except Exception:  # it is a plugin
            return None

    def get(self, kind: str, name: str) -> type[Any]:
        """The plugin class of that name.

        Raises:
            BenchError: unknown name, with the nearest ones.
            PluginError: it was to be made when first wanted, and cannot be.
        """
        return self._find(kind, name).cls

    def _find(self, kind: str, name: str) -> _Entry:
        if name in self._entries[kind]:
            return self._entries[kind][name]
        message = unknown(kind, name, self.names(kind))
        counted = re.fullmatch(r"(.+?)[-_]?(\d+)", name.lower())  # PGD-20, as papers write it
        known = kind == "attack" and counted is not None and counted[1] in self.names(kind)
        if counted is not None and known and "steps" in self.get(kind, counted[1]).model_fields:
            message = f"unknown attack '{name}': did you mean '{counted[1]}:steps={counted[2]}'?"
        if kind == "dataset" and "did you mean" not in message:
            message += (
                "; of your own files: `bench data add NAME PATH`, then --dataset image-folder:path=NAME, or "
                "pickled:path=NAME for pickles (as of miniImageNet, CIFAR-FS, FC100)"
            )
        failed = sum(module.error is not None for module in self.found)
        raise BenchError(message + (f" ({failed} plugin(s) failed to load: see `bench plugins`)" if failed else ""))

    def origin(self, kind: str, name: str) -> Origin:
        """Where the plugin of that name comes from."""
        return self._find(kind, name).module.origin

    def code(self, kind: str, plugin: Plugin) -> str:
        """What identifies a plugin with its options: its code, and what is in the files that they name.

        Raises:
            BenchError: a file cannot be read.
        """
        identity = self.origin(kind, plugin.name).identity
        if kind == "dataset":  # identified by its images
            return identity
        for option, path in plugin:
            if isinstance(path, Plugin):
                identity += f" {option} {self.code(kind, path)}"
            if isinstance(path, Path) and not path.is_dir():
                try:
                    with path.open("rb") as file:
                        identity += f" {option} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
                except OSError as error:
                    raise BenchError(
                        f"option '{option}' of {kind} '{plugin.name}': {path} cannot be read ({error.strerror})"
                    ) from error
        return identity

    def option_names(self, kind: str, choice: Choice) -> Collection[str]:
        """The options of a plugin, and of the one that it is around."""
        cls = self.get(kind, choice.name)
        try:
            with made_by(self.make):
                names: Collection[str] = cls.option_names(choice.options)
        except ValueError:  # `make` says what is wrong
            return []
        return names

    def make(self, kind: str, name: str, options: Mapping[str, Any]) -> Any:
        """The plugin with its options set.

        Raises:
            BenchError: unknown name or option, or a value that does not fit, and what would.
        """
        cls = self.get(kind, name)
        try:
            with made_by(self.make):
                made = cls(**options)
        except ValidationError as error:
            raise BenchError("; ".join(_explain(kind, cls, issue) for issue in error.errors())) from error
        check_declarations(made)
        return made

    def add(self, module: Any, origin: Origin) -> LoadedModule:
        """Register a plugin module; whatever goes wrong is its own line in `found`, and nothing of it is kept."""
        loaded = LoadedModule(origin)
        self.found.append(loaded)
        staged: dict[tuple[str, str], _Entry] = {}

        def stage(kind: str, name: str, load: Callable[[], type[Plugin]]) -> None:
            if (kind, name) in staged:
                raise PluginError(f"it registers two classes as the {kind} '{name}'")
            if name in self._entries[kind]:
                first = self.origin(kind, name)
                raise CollisionError(
                    f"two plugins bring the {kind} '{name}': {first.kind} {first.where} and {origin.kind} "
                    f"{origin.where}; rename or remove one of them"
                )
            staged[kind, name] = _Entry(kind, name, loaded, load)

        label = f"{origin.kind}: {origin.where}"
        try:
            _check_hooks(module)
            self.manager.register(module, name=label)
            for kind in KINDS:
                hook = self.manager.subset_hook_caller(f"register_{kind}s", self._all_but(module))
                hook(register=_Register(kind, stage))
        except _BROKEN as error:
            if self.manager.get_plugin(label) is module:
                self.manager.unregister(module)
            loaded.error, loaded.cause = _reason(error, origin), error
            return loaded
        for (kind, name), entry in staged.items():
            self._entries[kind][name] = entry
            loaded.brought.append(f"{kind} {name}")
        return loaded

    def listen(self, listener: object, label: str) -> None:
        """Let an object hear the events: its methods that are hooks, marked with @hookimpl; the label is for messages.

        Raises:
            PluginError: it has no hook, or one that there is not.
        """
        _check_hooks(listener)
        self.manager.register(listener, name=label)

    def attach(self, trackers: Sequence[str]) -> None:
        """Let trackers, as typed, listen to the events.

        Raises:
            BenchError: an unknown tracker or option, or a tracker that lacks what it needs, or fails.
        """
        for text, choice in {str(choice): choice for choice in map(parse_choice, trackers)}.items():
            tracker: Tracker = self.make("tracker", choice.name, choice.options)
            try:
                listener = tracker.listener()
            except BenchError:
                raise
            except Exception as error:  # a tracker is a plugin, and may raise anything
                raise PluginError(
                    f"tracker '{text}' failed to begin: {brief(error)}; leave --track {text} out"
                ) from error
            self.listen(listener, f"tracker {text}")

    def emit(self, event: str, /, **facts: Any) -> None:
        """Call an event hook of every plugin; one that raises costs a warning, once, and nobody else anything."""
        for listener in [implementation.plugin for implementation in getattr(self.manager.hook, event).get_hookimpls()]:
            try:
                self.manager.subset_hook_caller(event, self._all_but(listener))(**facts)
            except _BROKEN as error:
                label = self.manager.get_name(listener) or repr(listener)
                if (label, event) not in self._warned:
                    self._warned.add((label, event))
                    reason = f"{type(error).__name__}: {error}"
                    _log.warning("plugin %s failed in %s, the run goes on: %s", label, event, reason)

    def _all_but(self, plugin: Any) -> list[Any]:
        return [other for other in self.manager.get_plugins() if other is not plugin]


def _checked_name(kind: str, cls: Any) -> str:
    """The name of a class that was given to `register`, or PluginError with what is wrong with it."""
    base = KINDS[kind]
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PluginError(
            f"register_{kind}s: invalid {cls!r}: expected a subclass of {base.__name__.removeprefix('Any')}"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise PluginError(f"{kind} {cls.__name__} does not define {missing}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PluginError(f"{kind} {cls.__name__} has the name {name!r}; expected a class variable `name` in {NAMED}")
    return name


def load_registry(folder: Path | None = None, *, local: bool = True, strict: bool = True) -> Registry:
    """Find all plugins: the built-in ones, installed distributions, and a folder (default ./plugins if it is there).

    Args:
        folder: where local plugins are.
        local: False for none of them.
        strict: False to keep the first of two plugins with one name, and note the second as failed.

    Raises:
        PluginError: the named folder does not exist.
        CollisionError: two plugins bring the same name.
    """
    registry = Registry()
    for source in sources(folder, local=local):
        try:
            module = source.load()
            origin = Origin(source.kind, source.where, source.identity())
        except _BROKEN as error:
            origin = Origin(source.kind, source.where, "")
            registry.found.append(LoadedModule(origin, error=_reason(error, origin), cause=error))
            continue
        if origin.kind != "built-in" or _hooks(module):  # what built-in plugins share has none
            registry.add(module, origin)
    for loaded in registry.found:
        if strict and isinstance(loaded.cause, CollisionError):
            raise loaded.cause
    return registry


def _hooks(module: Any) -> dict[str, Callable[..., Any]]:
    """The functions marked as @hookimpl, by the name of their hook."""
    found: dict[str, Callable[..., Any]] = {}
    for name in dir(module):
        function: Any = getattr(module, name, None)
        options = getattr(function, f"{hookspecs.PROJECT}_impl", None) if inspect.isroutine(function) else None
        if isinstance(options, dict):
            found[options["specname"] or name] = function
    return found


def _check_hooks(module: Any) -> None:
    """Raise PluginError unless the module implements hooks, all of which exist and are given what they take."""
    known = {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, f"{hookspecs.PROJECT}_spec")}
    hooks = _hooks(module)
    if not hooks:
        unmarked = [name for name in known if callable(getattr(module, name, None))]
        hint = f"mark {', '.join(unmarked)} with @hookimpl" if unmarked else f"there is: {', '.join(known)}"
        raise PluginError(f"it implements no hook of robustbench_meta; {hint}")
    for name, function in hooks.items():
        if name not in known:
            raise PluginError(unknown("hook", name, known))
        given = inspect.signature(known[name]).parameters
        needed = [key for key, each in inspect.signature(function).parameters.items() if each.default is each.empty]
        if not set(needed) <= set(given):
            raise PluginError(f"its hook is {name}({', '.join(needed)}); expected {name}({', '.join(given)}), or fewer")


@cache
def core_code(stage: Literal["training", "evaluation"] = "training") -> str:
    """What the modules that make the numbers are, and the version of torch: part of what identifies a result.

    Args:
        stage: `training`, what identifies a checkpoint; or `evaluation`, what a cell needs besides.
    """
    package = Path(__file__).parents[1]
    places = [package / name for name in _CORE[stage]]
    files = [file for place in places for file in (sorted(place.glob("*.py")) if place.is_dir() else [place])]
    digest = hashlib.sha256("".join(code_digest(file) for file in files).encode())
    return f"sha256:{digest.hexdigest()[:16]} torch=={release_of('torch')}"


def _reason(error: BaseException, origin: Origin) -> str:
    """One line: what went wrong, and for errors in the plugin's own code where."""
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, SyntaxError):
        file = "" if error.filename in (None, origin.where) else f" of {error.filename}"
        line = "" if error.lineno is None else f" in line {error.lineno}"
        return f"syntax error{line}{file}: {error.msg}"
    text = " ".join(str(error).split()) or "no message"
    untyped = re.search(r"non-annotated attribute was detected: `(\w+)|Field '(\w+)' .* non-annotated attribute", text)
    if isinstance(error, PydanticUserError) and untyped:
        name = untyped[1] or untyped[2]
        text = (
            f"'{name}' has no type; write `{name}: int = Field(…, description=…)` for an option, and "
            f"`{name}: ClassVar[int] = …` for what is none"
        )
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(origin.where)]
    own = frames[-1].filename.removeprefix(origin.where).lstrip("/\\") if frames else ""
    place = f" (line {frames[-1].lineno}{f' of {own}' if own else ''})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def _explain(kind: str, cls: type[Plugin], issue: Any) -> str:
    option = ".".join(str(part) for part in issue["loc"])
    if issue["type"] == "extra_forbidden":
        return unknown("option", option, cls.model_fields, f" of {kind} '{cls.name}'", f"bench list {kind}s {cls.name}")
    message = expected(issue["msg"])
    if not option:  # options that do not go together
        return f"invalid {kind} '{Choice(cls.name, issue['input'])}': {message}"
    return f"invalid {option}={issue['input']!r} of {kind} '{cls.name}': {message}"
