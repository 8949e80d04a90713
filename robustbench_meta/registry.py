"""Finds plugins: built in, installed (entry points), and in a local folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import logging
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from pydantic import ValidationError

from robustbench_meta import __version__, hookspecs
from robustbench_meta.contracts import Attack, Backbone, Dataset, Learner, Plugin
from robustbench_meta.errors import BenchError, PluginError, unknown

KINDS: dict[str, type[Plugin]] = {"learner": Learner, "attack": Attack, "dataset": Dataset, "backbone": Backbone}
_log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_BUILT_IN = "robustbench_meta.plugins"
_CORE = ("engine", "training", "evaluation", "harness", "inner", "tasks", "threat", "seeds", "contracts")
"""The modules that make the numbers."""
_BROKEN = (Exception, SystemExit)
"""What a plugin may raise without costing anybody else anything."""


class CollisionError(PluginError):
    """Two plugins with one name."""


@dataclass(frozen=True)
class Origin:
    """Where a plugin module comes from."""

    kind: str
    """built-in, installed or local."""
    where: str
    """Module, distribution or file."""
    identity: str
    """Changes when the plugin's code may have changed: part of what identifies a result."""


@dataclass
class Found:
    """A plugin module, what it registered, or why it could not."""

    origin: Origin
    brought: list[str] = field(default_factory=list)
    error: str | None = None
    cause: BaseException | None = None


class Registry:
    """Plugins by kind and name; make one with `load_registry`, there is no global one."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.found: list[Found] = []
        self._classes: dict[str, dict[str, tuple[type[Plugin], Found]]] = {kind: {} for kind in KINDS}
        self._grumbled: set[tuple[str, str]] = set()

    def names(self, kind: str) -> list[str]:
        """The names of one kind, in alphabetical order."""
        return sorted(self._classes[kind])

    def get(self, kind: str, name: str) -> type[Any]:
        """The plugin class of that name.

        Raises:
            BenchError: unknown name, with the nearest ones.
        """
        try:
            return self._classes[kind][name][0]
        except KeyError:
            failed = [item for item in self.found if item.error]
            hint = f" ({len(failed)} plugin(s) failed to load: see `bench plugins`)" if failed else ""
            raise BenchError(unknown(kind, name, self.names(kind)) + hint) from None

    def origin(self, kind: str, name: str) -> Origin:
        """Where the plugin of that name comes from."""
        self.get(kind, name)
        return self._classes[kind][name][1].origin

    def make(self, kind: str, name: str, options: dict[str, Any]) -> Any:
        """The plugin with its options set.

        Raises:
            BenchError: unknown name or option, or a value that does not fit, and what would.
        """
        cls = self.get(kind, name)
        try:
            return cls(**options)
        except ValidationError as error:
            raise BenchError("; ".join(_explain(kind, cls, issue) for issue in error.errors())) from error

    def add(self, module: Any, origin: Origin) -> Found:
        """Register a plugin module; whatever goes wrong is its own line in `found`, and nothing of it is kept."""
        found = Found(origin)
        self.found.append(found)
        staged: dict[tuple[str, str], type[Plugin]] = {}
        label = f"{origin.kind}: {origin.where}"
        try:
            _check_hooks(module)
            self.manager.register(module, name=label)
            for kind in KINDS:
                hook = self.manager.subset_hook_caller(f"register_{kind}s", self._all_but(module))
                hook(register=partial(self._stage, kind, staged, origin))
        except _BROKEN as error:
            if self.manager.get_plugin(label) is module:
                self.manager.unregister(module)
            found.error, found.cause = _reason(error, origin), error
            return found
        for (kind, name), cls in staged.items():
            self._classes[kind][name] = (cls, found)
            found.brought.append(f"{kind} {name}")
        return found

    def fail(self, origin: Origin, error: BaseException) -> None:
        """Note a plugin that could not even be imported."""
        self.found.append(Found(origin, error=_reason(error, origin), cause=error))

    def check_collisions(self) -> None:
        """Let no name depend on which of two plugins was found first.

        Raises:
            CollisionError: two plugins bring the same name; names both, and where they are.
        """
        for found in self.found:
            if isinstance(found.cause, CollisionError):
                raise found.cause

    def tell(self, event: str, **facts: Any) -> None:
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

    def _stage(self, kind: str, staged: dict[tuple[str, str], type[Plugin]], origin: Origin, cls: type[Plugin]) -> None:
        """The `register` that a plugin is given: check the class and keep it aside until all of the plugin is fine."""
        name = _checked_name(kind, cls)
        if (kind, name) in staged:
            raise PluginError(f"it registers two classes as the {kind} '{name}'")
        if name in self._classes[kind]:
            first = self._classes[kind][name][1].origin
            raise CollisionError(
                f"two plugins bring the {kind} '{name}': {first.kind} {first.where} and {origin.kind} {origin.where}; "
                "rename or remove one of them"
            )
        staged[kind, name] = cls


def _checked_name(kind: str, cls: Any) -> str:
    """The name of a class that was given to `register`, or PluginError with what is wrong with it."""
    base = KINDS[kind]
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PluginError(f"register_{kind}s was given {cls!r}; expected a subclass of {base.__name__}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise PluginError(f"{kind} {cls.__name__} does not define {missing}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(
            f"{kind} {cls.__name__} has the name {name!r}; expected a class variable `name` in "
            "lower-case letters, digits, '-', '_' or '.'"
        )
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
    for name, identity in _built_in_modules():
        origin = Origin("built-in", name, identity)
        _add_import(registry, origin, partial(importlib.import_module, name))
    for entry in _entry_points():
        label = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "entry point"
        origin = Origin("installed", f"{label} ({entry.value})", f"{label} {entry.value}{_editable_digest(entry)}")
        _add_import(registry, origin, entry.load)
    for path in _local_files(folder) if local else []:
        try:
            origin = Origin("local", str(path), f"sha256:{_digest(path)}")
        except OSError as error:
            registry.fail(Origin("local", str(path), ""), error)
            continue
        _add_import(registry, origin, partial(_import_file, path))
    if strict:
        registry.check_collisions()
    return registry


def _add_import(registry: Registry, origin: Origin, load: Callable[[], Any]) -> None:
    try:
        module = load()
    except _BROKEN as error:
        registry.fail(origin, error)
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


def _entry_points() -> list[metadata.EntryPoint]:
    """Those of the group, each module once, in an order that does not depend on the file system."""
    found = {entry.value: entry for entry in metadata.entry_points(group=hookspecs.PROJECT)}
    return [found[value] for value in sorted(found)]


def _editable_digest(entry: metadata.EntryPoint) -> str:
    """Of a distribution installed in editable mode, whose code changes under the same version: a digest of its code."""
    try:
        told = json.loads((entry.dist and entry.dist.read_text("direct_url.json")) or "{}")
        spec = importlib.util.find_spec(entry.module.partition(".")[0])
        if not told.get("dir_info", {}).get("editable") or spec is None or spec.origin is None:
            return ""
        return f" sha256:{_digest(Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin))}"
    except (OSError, ValueError, ImportError, AttributeError):
        return ""


@cache
def core_code() -> str:
    """What the modules that make the numbers are, and the version of torch: part of what identifies a result."""
    digest = hashlib.sha256("".join(_digest(Path(__file__).parent / f"{name}.py") for name in _CORE).encode())
    return f"sha256:{digest.hexdigest()[:16]} torch=={_release('torch')}"


def _release(distribution: str) -> str:
    """Its version without what tells its build for the CPU from that for CUDA."""
    return metadata.version(distribution).partition("+")[0]


def _built_in_package() -> ModuleType:
    """The built-in plugins of the robustbench_meta that runs: in a checkout, never those of an installed other one."""
    own = Path(__file__).resolve().parent
    source = own.parent / "plugins" / "__init__.py"
    if (own / "plugins" / "__init__.py").is_file() or not source.is_file():
        try:
            return importlib.import_module(_BUILT_IN)
        except ModuleNotFoundError as error:
            raise PluginError(f"the built-in plugins are missing: reinstall robustbench_meta ({error})") from error
    there = sys.modules.get(_BUILT_IN)
    if there is not None and Path(there.__file__ or "").resolve() == source:
        return there
    _forget(_BUILT_IN)
    spec = importlib.util.spec_from_file_location(_BUILT_IN, source, submodule_search_locations=[str(source.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_BUILT_IN] = module
    spec.loader.exec_module(module)
    setattr(sys.modules["robustbench_meta"], "plugins", module)  # noqa: B010  # as an import does; mypy knows no plugins
    return module


def _built_in_modules() -> Iterator[tuple[str, str]]:
    """Modules in the sub-packages of the built-in folder, with their identity.

    It is the version and a digest of all modules of the sub-package, for they import one another. What lies directly
    in the folder is a local plugin.
    """
    package = _built_in_package()
    for part in pkgutil.iter_modules(package.__path__):
        if part.ispkg and part.name in {f"{kind}s" for kind in KINDS}:
            folders = [Path(path) / part.name for path in package.__path__]
            identity = f"robustbench_meta=={__version__} sha256:{'+'.join(map(_digest, folders))}"
            if part.name == "attacks":
                identity += f" torchattacks=={_release('torchattacks')}"
            for module in pkgutil.iter_modules(map(str, folders)):
                yield f"{_BUILT_IN}.{part.name}.{module.name}", identity


def _local_files(folder: Path | None) -> list[Path]:
    where = folder if folder is not None else Path("plugins")
    if not where.is_dir():
        if folder is not None:
            raise PluginError(f"--plugins {folder}: there is no such folder")
        return []
    own = {f"{kind}s" for kind in KINDS} if _is_built_in_folder(where) else set()
    files = [path for path in where.glob("*.py") if path.name != "__init__.py"]
    packages = [path.parent for path in where.glob("*/__init__.py") if path.parent.name not in own]
    return sorted(path.resolve() for path in files + packages if not path.name.startswith((".", "_")))


def _is_built_in_folder(where: Path) -> bool:
    """Whether it is that of a checkout, be it the one that runs or another."""
    return (where.resolve().parent / "robustbench_meta" / "registry.py").is_file()


def _digest(path: Path) -> str:
    """Of a Python file, or of all Python files of a package and where they are in it."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        code = file.read_bytes()
        digest.update(f"{file.relative_to(path.parent).as_posix()}\0{len(code)}\0".encode() + code)
    return digest.hexdigest()[:16]


def _import_file(path: Path) -> ModuleType:
    """Import a file or package under a name of its own, afresh."""
    name = f"robustbench_meta_local_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    source = path / "__init__.py" if path.is_dir() else path
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise PluginError(f"{source} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    _forget(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        _forget(name)
        raise
    return module


def _forget(name: str) -> None:
    """Remove a module and its submodules."""
    for each in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        del sys.modules[each]


def _reason(error: BaseException, origin: Origin) -> str:
    """One line: what went wrong, and for errors in the plugin's own code where."""
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, SyntaxError):
        file = "" if error.filename in (None, origin.where) else f" of {error.filename}"
        return f"syntax error in line {error.lineno}{file}: {error.msg}"
    text = " ".join(str(error).split()) or "no message"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(origin.where)]
    own = frames[-1].filename.removeprefix(origin.where).lstrip("/\\") if frames else ""
    place = f" (line {frames[-1].lineno}{f' of {own}' if own else ''})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def _explain(kind: str, cls: type[Plugin], issue: Any) -> str:
    option = ".".join(str(part) for part in issue["loc"])
    if issue["type"] == "extra_forbidden":
        return unknown(f"option of {kind} '{cls.name}'", option, cls.model_fields)
    message = issue["msg"].removeprefix("Value error, ")
    where = f"option '{option}' of {kind} '{cls.name}'" if option else f"{kind} '{cls.name}'"
    return f"{where} was given {issue['input']!r}: {message[0].lower()}{message[1:]}"
