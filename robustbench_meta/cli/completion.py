"""What the shell completes. Names of plugins are those that the last command saw: a TAB is quick and runs no code."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustbench_meta import __version__

if TYPE_CHECKING:
    from robustbench_meta.registry.registry import Registry

_KINDS = ("learner", "attack", "dataset", "backbone", "tracker")


def named(kind: str) -> Callable[[str], list[str]]:
    """Completes the names of one kind; what begins with NAME: is an option, of which nothing is known here."""

    def names(incomplete: str) -> list[str]:
        return _beginning(_remembered().get(kind, []), incomplete)

    return names


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completes words that are always the same ones."""
    known = tuple(names)

    def words(incomplete: str) -> list[str]:
        return _beginning(known, incomplete)

    return words


def complete_figures(incomplete: str) -> list[str]:
    """What `bench plot` draws, and folders of results."""
    from robustbench_meta.reporting.figures import KINDS

    return _beginning([*KINDS, *_folders()], incomplete)


def suites(incomplete: str) -> list[str]:
    """Suites that come with the package, and files."""
    from robustbench_meta.experiment.suite import shipped

    folder, _, start = incomplete.rpartition("/")
    where = Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser()
    found: list[str] = []
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(where.iterdir()):
            name = f"{folder}/{path.name}" if "/" in incomplete else path.name
            if path.suffix == ".toml" or (start and path.is_dir() and not path.name.startswith(".")):
                found.append(f"{name}/" if path.is_dir() else name)
    return _beginning([*shipped(), *filter(str.isprintable, found)], incomplete)


def names_of_kind(ctx: typer.Context, incomplete: str) -> list[str]:
    """Plugins of the kind that was typed before."""
    return named(str(ctx.params.get("kind") or "").removesuffix("s"))(incomplete)


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


def _beginning(names: Iterable[str], start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]


def _file() -> Path:
    import platformdirs

    given = os.environ.get("ROBUSTBENCH_META_CACHE")
    return Path(given or platformdirs.user_cache_dir("robustbench_meta")) / "names.json"


def remember(registry: Registry) -> None:
    """Keep the names of all plugins; without effect where that cannot be written."""
    from robustbench_meta.runtime.atomic_files import write_atomically, write_text

    text = json.dumps({"version": __version__, "names": {kind: registry.names(kind) for kind in _KINDS}})
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
