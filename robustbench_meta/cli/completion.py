"""What the shell completes: names, found without importing a plugin, so that a TAB is quick and runs nobody's code.

Names are read from the sources of the built-in and local plugins. Those that are made by code, such as torchattacks',
and those of installed distributions are remembered from the last command that loaded all plugins.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustbench_meta import __version__
from robustbench_meta.options import NAME

if TYPE_CHECKING:
    from robustbench_meta.registry import Registry

_HERE = Path(__file__).resolve().parent.parent
_LARGEST = 2**20
"""Bytes of a source file that is read for names."""
_KINDS = ("learner", "attack", "dataset", "backbone", "tracker")


def learners(ctx: typer.Context, incomplete: str) -> list[str]:
    """Learners."""
    return _names("learner", ctx, incomplete)


def attacks(ctx: typer.Context, incomplete: str) -> list[str]:
    """Attacks."""
    return _names("attack", ctx, incomplete)


def datasets(ctx: typer.Context, incomplete: str) -> list[str]:
    """Data sets."""
    return _names("dataset", ctx, incomplete)


def backbones(ctx: typer.Context, incomplete: str) -> list[str]:
    """Backbones."""
    return _names("backbone", ctx, incomplete)


def trackers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Trackers."""
    return _names("tracker", ctx, incomplete)


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completes words that are always the same ones."""
    known = tuple(names)

    def words(incomplete: str) -> list[str]:
        return _beginning(known, incomplete)

    return words


def drawn(incomplete: str) -> list[str]:
    """What `bench plot` draws, and folders of results."""
    from robustbench_meta.figures import KINDS

    return _beginning([*KINDS, *_folders()], incomplete)


def profiles(incomplete: str) -> list[str]:
    """Profiles."""
    from robustbench_meta.profiles import PROFILES

    return _beginning(PROFILES, incomplete)


def scenarios(incomplete: str) -> list[str]:
    """Scenarios."""
    from robustbench_meta.options import SCENARIOS

    return _beginning([*SCENARIOS, "all"], incomplete)


def suites(incomplete: str) -> list[str]:
    """Suites that come with the package, and files."""
    from robustbench_meta.suites import shipped

    folder, _, start = incomplete.rpartition("/")
    where = Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser()
    found: list[str] = []
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(where.iterdir()):
            name = f"{folder}/{path.name}" if "/" in incomplete else path.name
            if path.suffix == ".toml" or (start and path.is_dir() and not path.name.startswith(".")):
                found.append(f"{name}/" if path.is_dir() else name)
    return _beginning([*shipped(), *filter(str.isprintable, found)], incomplete)


def kinds(incomplete: str) -> list[str]:
    """What `bench list` lists."""
    return _beginning([*(f"{kind}s" for kind in _KINDS), "suites"], incomplete)


def names_of_kind(ctx: typer.Context, incomplete: str) -> list[str]:
    """Plugins of the kind that was typed before."""
    kind = str(ctx.params.get("kind") or "").removesuffix("s")
    return _names(kind, ctx, incomplete) if kind in _KINDS else []


def compared(incomplete: str) -> list[str]:
    """The learners in ./results, and folders of results."""
    found: set[str] = set()
    with contextlib.suppress(OSError, csv.Error, UnicodeDecodeError):
        lines = (Path("results") / "leaderboard.csv").read_text(encoding="utf-8").splitlines()
        found |= {row.get("learner") or "" for row in csv.DictReader(lines)}
    return _beginning(sorted({*filter(str.isprintable, found), *_folders()}), incomplete)


def _folders() -> list[str]:
    """Folders of results in the current one."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        found += [path.name for path in Path().iterdir() if (path / "records").is_dir() and path.name.isprintable()]
    return sorted(found)


def _beginning(names: object, start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]  # type: ignore[attr-defined]  # any iterable of texts


def _names(kind: str, ctx: typer.Context, incomplete: str) -> list[str]:
    """Of one kind; what begins with NAME: is an option, of which nothing is known here."""
    local = ctx.params.get("plugins") or "plugins"
    found = {*_remembered().get(kind, []), *read_names(kind, Path(str(local)))}
    return _beginning(sorted(filter(NAME.fullmatch, found)), incomplete)


# -- read from sources -----------------------------------------------------------------------------


def read_names(kind: str, local: Path) -> Iterator[str]:
    """The names that sources tell, of the built-in plugins and a folder."""
    built_in = next((path for path in (_HERE / "plugins", _HERE.parent / "plugins") if path.is_dir()), _HERE)
    folders = [built_in / f"{kind}s", local, *local.glob("*/")] if local.is_dir() else [built_in / f"{kind}s"]
    for folder in dict.fromkeys(path.resolve() for path in folders):
        for file in sorted(folder.glob("*.py")):
            with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError):
                if not file.is_file() or file.stat().st_size > _LARGEST:
                    continue
                text = file.read_text(encoding="utf-8")
                if f"register_{kind}s" in text:
                    yield from _registered(ast.parse(text), f"register_{kind}s")


def _registered(module: ast.Module, hook: str) -> Iterator[str]:
    classes = {node.name: _name_of(node) for node in module.body if isinstance(node, ast.ClassDef)}
    for function in module.body:
        if not isinstance(function, ast.FunctionDef) or function.name != hook:
            continue
        for call in ast.walk(function):
            match call:
                case ast.Call(func=ast.Name(), args=[ast.Name(id=cls)]) if classes.get(cls):
                    yield classes[cls] or ""
                case ast.Call(func=ast.Attribute(attr="later"), args=[ast.Constant(value=str(name)), _]):
                    yield name


def _name_of(node: ast.ClassDef) -> str | None:
    """The class variable `name`."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="name")], value=ast.Constant(value=str(name))):
                return name
            case ast.AnnAssign(target=ast.Name(id="name"), value=ast.Constant(value=str(name))):
                return name
    return None


# -- remembered ------------------------------------------------------------------------------------


def _file() -> Path:
    import platformdirs

    given = os.environ.get("ROBUSTBENCH_META_CACHE")
    return Path(given or platformdirs.user_cache_dir("robustbench_meta")) / "names.json"


def remember(registry: Registry) -> None:
    """Keep the names of all plugins but local ones; without effect where that cannot be written."""
    from robustbench_meta.files import write_atomically, write_text

    names = {
        kind: [name for name in registry.names(kind) if registry.origin(kind, name).kind != "local"] for kind in _KINDS
    }
    text = json.dumps({"version": __version__, "names": names})
    with contextlib.suppress(Exception):  # a full disk or a folder of somebody else is no reason to fail
        file = _file()
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda part: write_text(part, text))


def _remembered() -> dict[str, list[str]]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        told = json.loads(_file().read_text(encoding="utf-8"))
        if told["version"] == __version__:
            return {
                str(kind): [name for name in names if isinstance(name, str) and name.isprintable()]
                for kind, names in told["names"].items()
            }
    return {}
