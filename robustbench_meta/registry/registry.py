"""Keeps plugins by kind and name, checked; `discovery` finds them."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pluggy
from pydantic import PydanticUserError, ValidationError

from robustbench_meta import hookspecs
from robustbench_meta.contracts import AnyLearner, Attack, Backbone, Dataset, Plugin
from robustbench_meta.contracts.plugin import made_by
from robustbench_meta.contracts.tracker import Tracker
from robustbench_meta.errors import BenchError, PluginError, expected, unknown
from robustbench_meta.options import NAME, NAMED, Choice
from robustbench_meta.registry.declarations import check_declarations
from robustbench_meta.registry.discovery import Origin, Source, code_digest, release_of, sources

__all__ = ["KINDS", "CollisionError", "LoadedModule", "Origin", "Registry", "core_code", "load_registry"]

KINDS: dict[str, type[Plugin]] = {
    "learner": AnyLearner, "attack": Attack, "dataset": Dataset, "backbone": Backbone, "tracker": Tracker,
}  # fmt: skip
_log = logging.getLogger(__name__)
_CORE = {
    "training": ("contracts", "engine", "runtime/precision.py", "runtime/seeds.py"),
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


class _Kept:
    """A class of a plugin, made when it is first wanted."""

    def __init__(self, kind: str, name: str, found: LoadedModule, load: Callable[[], type[Plugin]]) -> None:
        self.kind, self.name, self.found = kind, name, found
        self._load = load
        self._cls: type[Plugin] | None = None

    def cls(self) -> type[Plugin]:
        """The class.

        Raises:
            PluginError: the plugin cannot make it, or makes another one than it said.
        """
        if self._cls is None:
            self._cls = self._loaded()
        return self._cls

    def _loaded(self) -> type[Plugin]:
        origin = self.found.origin
        try:
            cls = self._load()
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
    """The `register` that a plugin is given: what it brings is kept aside until all of the plugin is fine."""

    def __init__(self, kind: str, stage: Callable[[str, str, Callable[[], type[Plugin]]], None]) -> None:
        self._kind, self._stage = kind, stage

    def __call__(self, plugin: type[Plugin]) -> None:
        """Bring a class."""
        self._stage(self._kind, _checked_name(self._kind, plugin), lambda: plugin)

    def later(self, name: str, load: Callable[[], type[Plugin]]) -> None:
        """Bring the class of that name, which `load` returns."""
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
        self._kept: dict[str, dict[str, _Kept]] = {kind: {} for kind in KINDS}
        self._grumbled: set[tuple[str, str]] = set()

    def names(self, kind: str) -> list[str]:
        """The names of one kind, in alphabetical order."""
        return sorted(self._kept[kind])

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
        return self._find(kind, name).cls()

    def _find(self, kind: str, name: str) -> _Kept:
        try:
            return self._kept[kind][name]
        except KeyError:
            failed = [item for item in self.found if item.error]
            hint = f" ({len(failed)} plugin(s) failed to load: see `bench plugins`)" if failed else ""
            told = self._counted(kind, name) or unknown(kind, name, self.names(kind))
            if kind == "dataset" and "did you mean" not in told:
                told += (
                    "; of your own files: `bench data add NAME PATH`, then --dataset image-folder:path=NAME, or "
                    "pickled:path=NAME for pickles (as of miniImageNet, CIFAR-FS, FC100)"
                )
            raise BenchError(told + hint) from None

    def _counted(self, kind: str, name: str) -> str | None:
        """The message for `PGD-20`, as papers write it."""
        found = re.fullmatch(r"(.+?)[-_]?(\d+)", name.lower())
        if kind != "attack" or found is None or found[1] not in self.names(kind):
            return None
        if "steps" not in self.get(kind, found[1]).model_fields:
            return None
        return f"unknown attack '{name}': did you mean '{found[1]}:steps={found[2]}'?"

    def origin(self, kind: str, name: str) -> Origin:
        """Where the plugin of that name comes from."""
        return self._find(kind, name).found.origin

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
        found = LoadedModule(origin)
        self.found.append(found)
        staged: dict[tuple[str, str], _Kept] = {}

        def stage(kind: str, name: str, load: Callable[[], type[Plugin]]) -> None:
            self._check_new(kind, name, staged, origin)
            staged[kind, name] = _Kept(kind, name, found, load)

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
            found.error, found.cause = _reason(error, origin), error
            return found
        for (kind, name), kept in staged.items():
            self._kept[kind][name] = kept
            found.brought.append(f"{kind} {name}")
        return found

    def fail(self, origin: Origin, error: BaseException) -> None:
        """Note a plugin that could not even be imported."""
        self.found.append(LoadedModule(origin, error=_reason(error, origin), cause=error))

    def check_collisions(self) -> None:
        """Let no name depend on which of two plugins was found first.

        Raises:
            CollisionError: two plugins bring the same name; names both, and where they are.
        """
        for found in self.found:
            if isinstance(found.cause, CollisionError):
                raise found.cause

    def listen(self, listener: object, label: str) -> None:
        """Let an object hear the events: its methods that are hooks, marked with @hookimpl; the label is for messages.

        Raises:
            PluginError: it has no hook, or one that there is not.
        """
        _check_hooks(listener)
        self.manager.register(listener, name=label)

    def emit(self, event: str, /, **facts: Any) -> None:
        """Call an event hook of every plugin; one that raises costs a warning, once, and nobody else anything."""
        for listener in [implementation.plugin for implementation in getattr(self.manager.hook, event).get_hookimpls()]:
            try:
                self.manager.subset_hook_caller(event, self._all_but(listener))(**facts)
            except _BROKEN as error:
                label = self.manager.get_name(listener) or repr(listener)
                if (label, event) not in self._grumbled:
                    self._grumbled.add((label, event))
                    _log.warning(
                        "plugin %s failed in %s, the run goes on: %s: %s",
                        label,
                        event,
                        type(error).__name__,
                        error,
                    )

    def _all_but(self, plugin: Any) -> list[Any]:
        return [other for other in self.manager.get_plugins() if other is not plugin]

    def _check_new(self, kind: str, name: str, staged: Collection[tuple[str, str]], origin: Origin) -> None:
        """Raise unless nobody brings that name yet."""
        if (kind, name) in staged:
            raise PluginError(f"it registers two classes as the {kind} '{name}'")
        if name in self._kept[kind]:
            first = self._kept[kind][name].found.origin
            raise CollisionError(
                f"two plugins bring the {kind} '{name}': {first.kind} {first.where} and {origin.kind} {origin.where}; "
                "rename or remove one of them"
            )


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
        _add_import(registry, source)
    if strict:
        registry.check_collisions()
    return registry


def _add_import(registry: Registry, source: Source) -> None:
    try:
        module = source.load()
        origin = Origin(source.kind, source.where, source.identity())
    except _BROKEN as error:
        registry.fail(Origin(source.kind, source.where, ""), error)
        return
    if origin.kind == "built-in" and not _hooks(module):
        return
    registry.add(module, origin)


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
        return unknown("option", option, cls.model_fields, f" of {kind} '{cls.name}'")
    message = expected(issue["msg"])
    if not option:  # options that do not go together
        return f"invalid {kind} '{Choice(cls.name, issue['input'])}': {message}"
    return f"invalid {option}={issue['input']!r} of {kind} '{cls.name}': {message}"
