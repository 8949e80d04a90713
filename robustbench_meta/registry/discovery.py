"""Where plugins are: built in, installed (entry points), and in a local folder; how each is imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
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
from robustbench_meta.registry.import_graph import imports_of, source_in

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
    """Changes when the plugin's code may have changed, or that of what it imports and no distribution has installed:
    part of what identifies a result."""


class Source(NamedTuple):
    """A plugin module that was found, not imported yet."""

    kind: str
    where: str
    load: Callable[[], Any]
    identity: Callable[[], str]
    """To be called once it is loaded, for only then is it known where its imports are."""


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
        yield Source("built-in", name, partial(importlib.import_module, name), partial(str, identity))
    entries = {entry.value: entry for entry in metadata.entry_points(group=hookspecs.PROJECT)}  # each module once
    for _, entry in sorted(entries.items()):
        label = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "entry point"
        yield Source("installed", f"{label} ({entry.value})", entry.load, partial(_installed_identity, label, entry))
    _forget_edited()
    files = _local_files(folder) if local else []
    if files:
        _warn_of_others(folder or Path("plugins"), files)
    for path in files:
        yield Source("local", str(path), partial(_import_file, path), partial(_local_identity, path))


def _warn_of_others(folder: Path, files: Sequence[Path]) -> None:
    """Plugins are code that runs as the user: say who else may write it, where the system knows owners."""
    for path in (folder, *files) if hasattr(os, "getuid") else ():
        try:
            status = path.stat()
        except OSError:
            continue
        reason = "every user of this machine may write it" if status.st_mode & stat.S_IWOTH else ""
        if not reason and status.st_uid not in (0, os.getuid()):
            reason = f"it belongs to another user (number {status.st_uid})"
        if reason:
            return _warn(
                f"{path} holds plugins, which are code that runs as you, and {reason}; to load none: --no-local-plugins"
            )


@cache
def _warn(message: str) -> None:
    """Once a process."""
    _log.warning("%s", message)


def _local_identity(path: Path) -> str:
    """A digest of a file or package, and of what it imports that is not installed."""
    code = own_code(_LOCAL, path)
    others = {name: text for name, text in code.items() if name.partition(".")[0] != _LOCAL}
    return f"sha256:{code_digest(path)}" + (f" imports sha256:{_digest(others)}" if others else "")


def _installed_identity(label: str, entry: metadata.EntryPoint) -> str:
    """The release; and of what is not installed, such as a distribution in editable mode, a digest."""
    code = own_code(entry.module)
    return f"{label} {entry.value}" + (f" sha256:{_digest(code)}" if code else "")


_LOCAL = "<plugin>"
"""Stands for the name of a local plugin among those of modules."""
_LOCAL_PREFIX = "robustbench_meta_local_"
"""What the names of local plugins' modules begin with."""
_read: dict[str, tuple[Path, bytes]] = {}
"""The modules that belong to no distribution and that plugins imported, with their source at that time."""


def own_code(name: str, start: Path | None = None) -> dict[str, bytes]:
    """The sources of a module and of all that it imports by statements, without what distributions installed.

    Args:
        name: its dotted name.
        start: its file or package, if it is not to be found under that name.
    """

    def file_of(wanted: str) -> Path | None:
        if start is not None and wanted.partition(".")[0] == name:
            whole = start / "__init__.py" if start.is_dir() else start
            return whole if wanted == name else source_in([start], wanted.partition(".")[2])
        found = _own_file(wanted, start)
        is_new = found is not None and _read.get(wanted, (None, b""))[0] != found
        if found is not None and is_new and wanted in sys.modules and not wanted.startswith("robustbench_meta."):
            _read[wanted] = found, found.read_bytes()
        return found

    return dict(sorted(imports_of(name, file_of).code.items()))


def _own_file(name: str, start: Path | None) -> Path | None:
    """The source of a module, imported or not, that is neither Python's, nor installed, nor of this package's core.

    Built-in plugins count: the digest of the core has none of them.
    """
    top = name.partition(".")[0]
    built_in = name == _BUILT_IN or name.startswith(f"{_BUILT_IN}.")
    if top in sys.stdlib_module_names or (top == "robustbench_meta" and not built_in):
        return None
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    beside = [] if start is None else [start.parent]
    path = Path(file) if file else source_in([*map(Path, sys.path), *beside], name) if module is None else None
    if path is None or path.suffix != ".py":
        return None
    path = path.resolve()
    root = path.parents[name.count(".") + (path.name == "__init__.py")]
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or any(root.glob("*.dist-info"))
    return None if installed and not built_in else path


def _forget_edited() -> None:
    """Let what plugins imported be imported afresh, as they are, if any of it was edited since."""
    if any(not path.is_file() or path.read_bytes() != text for path, text in _read.values()):
        local = [name for name in sys.modules if name.startswith(_LOCAL_PREFIX)]  # any of them may have imported it
        for name in [*_read, *local]:
            _forget(name)
        _read.clear()


def _built_in_modules() -> Iterator[tuple[str, str]]:
    """Modules in the sub-packages of the built-in folder, with their identity.

    What lies directly in the folder is a local plugin. The identity is the version, a digest of the module and of those
    of the built-in folder that it needs, and the release of torchattacks where one of these imports that.
    """
    folders = [Path(path) for path in _built_in_package().__path__]
    for kind in sorted(FOLDERS):
        for module in pkgutil.iter_modules([str(folder / kind) for folder in folders]):
            name = f"{_BUILT_IN}.{kind}.{module.name}"
            needed = imports_of(name, partial(source_in, folders, below=_BUILT_IN))
            release = f" torchattacks=={release_of('torchattacks')}" if "torchattacks" in needed.others else ""
            code = _digest(dict(sorted(needed.code.items())))
            yield name, f"robustbench_meta=={__version__} sha256:{code}{release}"


def _built_in_package() -> ModuleType:
    """The built-in plugins of the robustbench_meta that runs: in a checkout, never those of an installed other one."""
    own = Path(__file__).resolve().parents[1]
    source = own.parent / "plugins" / "__init__.py"
    if (own / "plugins" / "__init__.py").is_file() or not source.is_file():
        try:
            return importlib.import_module(_BUILT_IN)
        except ModuleNotFoundError as error:
            raise PluginError(f"the built-in plugins are missing: reinstall robustbench_meta ({error})") from error
    there = sys.modules.get(_BUILT_IN)
    if there is not None and Path(there.__file__ or "").resolve() == source:
        return there
    module = _import_as(_BUILT_IN, source.parent)
    setattr(sys.modules["robustbench_meta"], "plugins", module)  # noqa: B010  # as an import does; mypy knows no plugins
    return module


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
    return (where.resolve().parent / "robustbench_meta" / "hookspecs.py").is_file()


_DIGEST = "__robustbench_meta_digest__"
"""The attribute of a local plugin's module with the digest of its code when it was imported."""


def _import_file(path: Path) -> ModuleType:
    """Import a local plugin under a name of its own."""
    name = f"{_LOCAL_PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    there, digest = sys.modules.get(name), code_digest(path)
    if there is not None and vars(there).get(_DIGEST) == digest:
        return there  # of a second registry in this process: its classes are the same, as pickle wants
    module = _import_as(name, path)
    vars(module)[_DIGEST] = digest
    return module


def _import_as(name: str, path: Path) -> ModuleType:
    """Import a file or package under this name, afresh."""
    source = path / "__init__.py" if path.is_dir() else path
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise PluginError(f"cannot import {source} as Python")
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
