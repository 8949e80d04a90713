"""Finds plugins: built in, installed (entry points), and in a local folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_BUILT_IN = "robustbench_meta.plugins"


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
        staged: list[tuple[str, type[Plugin]]] = []
        try:
            registered = self.manager.register(module, name=f"{origin.kind}:{origin.where}")
            if registered is None or not self.manager.get_hookcallers(module):
                raise PluginError("it implements no hook of robustbench_meta (are its functions marked @hookimpl?)")
            for kind in KINDS:
                caller = self.manager.subset_hook_caller(f"register_{kind}s", self._others(module))
                caller(register=self._stage(kind, staged))
        except Exception as error:  # a plugin may raise anything, and must cost nobody else anything
            if self.manager.is_registered(module):
                self.manager.unregister(module)
            self._fail(found, error)
            return found
        for kind, cls in staged:
            self._classes[kind][cls.name] = (cls, found)
            found.brought.append(f"{kind} {cls.name}")
        return found

    def fail(self, origin: Origin, error: BaseException) -> None:
        """Note a plugin that could not even be imported."""
        found = Found(origin)
        self.found.append(found)
        self._fail(found, error)

    @staticmethod
    def _fail(found: Found, error: BaseException) -> None:
        if isinstance(error, Collision):
            raise error
        found.error, found.cause = _reason(error), error

    def _others(self, module: Any) -> list[Any]:
        return [plugin for plugin in self.manager.get_plugins() if plugin is not module]

    def _stage(self, kind: str, staged: list[tuple[str, type[Plugin]]]) -> Callable[[type[Plugin]], None]:
        base = KINDS[kind]

        def register(cls: type[Plugin]) -> None:
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
            earlier = self._classes[kind].get(name)
            if earlier is not None or (kind, name) in [(k, c.name) for k, c in staged]:
                first = earlier[1].origin if earlier else self.found[-1].origin
                raise Collision(
                    f"two plugins bring the {kind} '{name}': {first.kind} {first.where} and "
                    f"{self.found[-1].origin.kind} {self.found[-1].origin.where}; rename or remove one of them"
                )
            staged.append((kind, cls))

        return register


class Collision(PluginError):
    """Two plugins with one name."""


def load_registry(folder: Path | None = None, *, local: bool = True) -> Registry:
    """Find all plugins: the built-in ones, installed distributions, and a folder (default ./plugins if it is there).

    Raises:
        PluginError: the named folder does not exist, or two plugins bring the same name.
    """
    registry = Registry()
    for name in _built_in_modules():
        origin = Origin("built-in", name, f"robustbench_meta=={__version__}")
        _add_import(registry, origin, lambda name=name: importlib.import_module(name))
    for entry in sorted(metadata.entry_points(group=hookspecs.PROJECT), key=lambda entry: entry.value):
        dist = entry.dist
        label = f"{dist.name} {dist.version}" if dist else entry.value
        _add_import(registry, Origin("installed", f"{label} ({entry.value})", f"{label} {entry.value}"), entry.load)
    if local:
        for path in _local_files(folder):
            origin = Origin("local", str(path), f"sha256:{_digest(path)}")
            _add_import(registry, origin, lambda path=path: _import_file(path))
    return registry


def _add_import(registry: Registry, origin: Origin, load: Callable[[], Any]) -> None:
    try:
        module = load()
    except (Exception, SystemExit) as error:  # a broken plugin is reported, not fatal
        registry.fail(origin, error)
        return
    if origin.kind == "built-in" and not _has_hooks(module):
        return
    registry.add(module, origin)


def _has_hooks(module: Any) -> bool:
    return any(hasattr(value, f"{hookspecs.PROJECT}_impl") for value in vars(module).values())


def _built_in_package() -> ModuleType:
    try:
        return importlib.import_module(_BUILT_IN)
    except ModuleNotFoundError as error:
        source = Path(__file__).resolve().parent.parent / "plugins" / "__init__.py"
        if error.name != _BUILT_IN or not source.is_file():
            raise PluginError(f"the built-in plugins are missing: reinstall robustbench_meta ({error})") from error
        spec = importlib.util.spec_from_file_location(
            _BUILT_IN, source, submodule_search_locations=[str(source.parent)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_BUILT_IN] = module
        spec.loader.exec_module(module)
        return module


def _built_in_modules() -> Iterator[str]:
    """Modules in the sub-packages of the built-in folder; what lies directly in it is a local plugin."""
    package = _built_in_package()
    for part in pkgutil.iter_modules(package.__path__):
        if part.ispkg and part.name in {f"{kind}s" for kind in KINDS}:
            for module in pkgutil.iter_modules([str(Path(path) / part.name) for path in package.__path__]):
                yield f"{_BUILT_IN}.{part.name}.{module.name}"


def _local_files(folder: Path | None) -> list[Path]:
    where = folder if folder is not None else Path("plugins")
    if not where.is_dir():
        if folder is not None:
            raise PluginError(f"--plugins {folder}: there is no such folder")
        return []
    own = {f"{kind}s" for kind in KINDS} if (where / "__init__.py").is_file() else set()
    files = [path for path in where.glob("*.py") if path.name != "__init__.py"]
    packages = [path.parent for path in where.glob("*/__init__.py") if path.parent.name not in own]
    return sorted(path.resolve() for path in files + packages if not path.name.startswith((".", "_")))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _import_file(path: Path) -> ModuleType:
    name = f"robustbench_meta_local_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    source = path / "__init__.py" if path.is_dir() else path
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise PluginError(f"{source} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}"
    text = str(error).strip() or "no message"
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"


def _explain(kind: str, cls: type[Plugin], issue: Any) -> str:
    option = ".".join(str(part) for part in issue["loc"])
    if issue["type"] == "extra_forbidden":
        return unknown(f"option of {kind} '{cls.name}'", option, cls.model_fields)
    message = issue["msg"].removeprefix("Value error, ")
    where = f"option '{option}' of {kind} '{cls.name}'" if option else f"{kind} '{cls.name}'"
    return f"{where} was given {issue['input']!r}: {message[0].lower()}{message[1:]}"
