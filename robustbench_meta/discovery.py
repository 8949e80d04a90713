"""Where plugins are: built in, installed (entry points), and in a local folder; how each is imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import pkgutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from robustbench_meta import __version__, hookspecs
from robustbench_meta.errors import PluginError
from robustbench_meta.imports import needs

FOLDERS = ("learners", "attacks", "datasets", "backbones", "trackers")
"""Of the built-in plugins, one a kind."""
_BUILT_IN = "robustbench_meta.plugins"
SESSION = "session"
"""How the identity of code begins that was given from Python: no other process can load it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a plugin module comes from."""

    kind: str
    """built-in, installed, local, or session: given from Python."""
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
        PluginError: the named folder does not exist, or was named although none is wanted.
    """
    if folder is not None and not local:
        raise PluginError(f"--plugins {folder} and --no-local-plugins exclude each other: leave one of them out")
    for name, identity in _built_in_modules():
        yield Source(Origin("built-in", name, identity), partial(importlib.import_module, name))
    for entry in _entry_points():
        label = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "entry point"
        identity = f"{label} {entry.value}{_editable_digest(entry)}"
        yield Source(Origin("installed", f"{label} ({entry.value})", identity), entry.load)
    files = _local_files(folder) if local else []
    if files:
        _warn_of_others(folder or Path("plugins"), files)
    for path in files:
        yield _local(path)


def _warn_of_others(folder: Path, files: Sequence[Path]) -> None:
    """Plugins are code that runs as the user: tell who else may write it, where the system knows owners."""
    if not hasattr(os, "getuid"):
        return
    for path in (folder, *files):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_mode & stat.S_IWOTH:
            reason = "every user of this machine may write it"
        elif status.st_uid not in (0, os.getuid()):
            reason = f"it belongs to another user (number {status.st_uid})"
        else:
            continue
        _warn(f"{path} holds plugins, which are code that runs as you, and {reason}; to load none: --no-local-plugins")
        return


@cache
def _warn(message: str) -> None:
    """Once a process."""
    _log.warning("%s", message)


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

    What lies directly in the folder is a local plugin.
    """
    folders = [Path(path) for path in _built_in_package().__path__]
    for kind in sorted(FOLDERS):
        for module in pkgutil.iter_modules([str(folder / kind) for folder in folders]):
            name = f"{_BUILT_IN}.{kind}.{module.name}"
            yield name, _built_in_identity(name, folders)


def _built_in_identity(name: str, folders: Sequence[Path]) -> str:
    """The version, and a digest of the module and of those of the built-in folder that it needs.

    The release of torchattacks is in it where one of these imports that.
    """
    needed = needs(name, _BUILT_IN, folders)
    identity = f"robustbench_meta=={__version__} sha256:{_digest(dict(sorted(needed.code.items())))}"
    return identity + (f" torchattacks=={release_of('torchattacks')}" if "torchattacks" in needed.others else "")


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
            what = "that is a file; name the folder that it is in" if folder.is_file() else "there is no such folder"
            raise PluginError(f"--plugins {folder}: {what}")
        return []
    own = set(FOLDERS) if is_built_in_folder(where) else set()
    files = [path for path in where.glob("*.py") if path.name != "__init__.py"]
    packages = [path.parent for path in where.glob("*/__init__.py") if path.parent.name not in own]
    return sorted(path.resolve() for path in files + packages if not path.name.startswith((".", "_")))


def is_built_in_folder(where: Path) -> bool:
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
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return _digest({file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files})


def _digest(code: Mapping[str, bytes]) -> str:
    """Of sources by name, in this order."""
    digest = hashlib.sha256()
    for name, text in code.items():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:16]


def release_of(distribution: str) -> str:
    """Its version without what tells its build for the CPU from that for CUDA."""
    return metadata.version(distribution).partition("+")[0]
