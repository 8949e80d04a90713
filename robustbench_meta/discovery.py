"""Where plugins are: built in, installed (entry points), and in a local folder; how each is imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from robustbench_meta import __version__, hookspecs
from robustbench_meta.errors import PluginError

FOLDERS = ("learners", "attacks", "datasets", "backbones")
"""Of the built-in plugins, one a kind."""
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


class Source(NamedTuple):
    """A plugin module that was found, not imported yet."""

    origin: Origin
    load: Callable[[], Any]


def sources(folder: Path | None = None, *, local: bool = True) -> Iterator[Source]:
    """All plugin modules, in an order that does not depend on the file system.

    Args:
        folder: where local plugins are; default ./plugins if it is there.
        local: False for none of them.

    Raises:
        PluginError: the named folder does not exist.
    """
    for name, identity in _built_in_modules():
        yield Source(Origin("built-in", name, identity), partial(importlib.import_module, name))
    for entry in _entry_points():
        label = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "entry point"
        identity = f"{label} {entry.value}{_editable_digest(entry)}"
        yield Source(Origin("installed", f"{label} ({entry.value})", identity), entry.load)
    for path in _local_files(folder) if local else []:
        yield _local(path)


def _local(path: Path) -> Source:
    """A local file or package; one that cannot be read says so when it is loaded."""
    try:
        return Source(Origin("local", str(path), f"sha256:{code_digest(path)}"), partial(_import_file, path))
    except OSError as error:
        return Source(Origin("local", str(path), ""), partial(_fail, error))


def _fail(error: Exception) -> None:
    raise error


def _built_in_modules() -> Iterator[tuple[str, str]]:
    """Modules in the sub-packages of the built-in folder, with their identity.

    It is the version and a digest of all modules of the sub-package, for they import one another. What lies directly
    in the folder is a local plugin.
    """
    package = _built_in_package()
    for part in pkgutil.iter_modules(package.__path__):
        if part.ispkg and part.name in set(FOLDERS):
            folders = [Path(path) / part.name for path in package.__path__]
            identity = f"robustbench_meta=={__version__} sha256:{'+'.join(map(code_digest, folders))}"
            if part.name == "attacks":
                identity += f" torchattacks=={release_of('torchattacks')}"
            for module in pkgutil.iter_modules(map(str, folders)):
                yield f"{_BUILT_IN}.{part.name}.{module.name}", identity


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
        return (
            f" sha256:{code_digest(Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin))}"
        )
    except (OSError, ValueError, ImportError, AttributeError):
        return ""


def _local_files(folder: Path | None) -> list[Path]:
    where = folder if folder is not None else Path("plugins")
    if not where.is_dir():
        if folder is not None:
            raise PluginError(f"--plugins {folder}: there is no such folder")
        return []
    own = set(FOLDERS) if _is_built_in_folder(where) else set()
    files = [path for path in where.glob("*.py") if path.name != "__init__.py"]
    packages = [path.parent for path in where.glob("*/__init__.py") if path.parent.name not in own]
    return sorted(path.resolve() for path in files + packages if not path.name.startswith((".", "_")))


def _is_built_in_folder(where: Path) -> bool:
    """Whether it is that of a checkout, be it the one that runs or another."""
    return (where.resolve().parent / "robustbench_meta" / "registry.py").is_file()


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


def code_digest(path: Path) -> str:
    """Of a Python file, or of all Python files of a package and where they are in it."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        code = file.read_bytes()
        digest.update(f"{file.relative_to(path.parent).as_posix()}\0{len(code)}\0".encode() + code)
    return digest.hexdigest()[:16]


def release_of(distribution: str) -> str:
    """Its version without what tells its build for the CPU from that for CUDA."""
    return metadata.version(distribution).partition("+")[0]
