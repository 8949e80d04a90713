"""Writes a plugin to start from, with its test."""

from __future__ import annotations

import builtins
import keyword
import re
import shlex
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from robustbench_meta.discovery import FOLDERS, is_built_in_folder
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.options import NAME, NAMED

KINDS = ("learner", "attack", "dataset", "backbone")
TESTS = "tests"
"""The folder of the tests, in that of the plugins: no package, and so never taken for a plugin."""


class Draft(NamedTuple):
    """A plugin to be written."""

    kind: str
    name: str
    folder: Path
    """Of the plugin's file."""

    @property
    def module(self) -> str:
        """The name as Python's modules have theirs."""
        plain = re.sub(r"[-.]", "_", self.name)
        return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"my_{plain}"

    @property
    def cls(self) -> str:
        """The name as Python's classes have theirs; another one than those that the template is made of."""
        plain = "".join(word[:1].upper() + word[1:] for word in re.split(r"[-._]+", self.name))
        known = {*re.findall(r"\w+", _template(self.kind)), *dir(builtins), *keyword.kwlist} - {_example(self.kind)}
        return plain if plain.isidentifier() and plain not in known else f"My{plain}"

    @property
    def file(self) -> Path:
        """The plugin's."""
        return self.folder / f"{self.module}.py"

    @property
    def test(self) -> Path:
        """The test's."""
        return self.folder / TESTS / f"test_{self.module}.py"

    def texts(self) -> dict[Path, str]:
        """What is in the files."""
        test = _template("check").replace('"learner", "maml"', f'"{self.kind}", "{self.name}"')
        return {
            self.file: _template(self.kind)
            .replace(f"my-{self.kind}", self.name)
            .replace(_example(self.kind), self.cls),
            self.test: test.replace("my_plugin", self.module).replace("MyPlugin", self.cls),
        }

    def next_steps(self) -> list[tuple[str, str]]:
        """Commands, each with what it is for."""
        found = self.folder.resolve() == Path("plugins").resolve()
        where = "" if found else f" --plugins {shlex.quote(str(self.folder))}"
        return [
            (f"bench list {self.kind}s {self.name}{where}", "it is found, with its options"),
            (f"python -m pytest {shlex.quote(str(self.test))}", "it keeps its contract"),
            (f"bench run --profile smoke --{self.kind} {self.name}{where}", "it is in a leaderboard, in seconds"),
        ]


def draft(kind: str, name: str, folder: Path) -> Draft:
    """Check what can be checked without loading plugins.

    Raises:
        BenchError: no such kind, no name for a plugin, or a folder that is none for plugins of one's own.
    """
    if kind not in KINDS:
        raise BenchError(unknown("kind of plugin", kind.removesuffix("s"), KINDS))
    if not NAME.fullmatch(name):
        raise BenchError(f"'{name}' cannot be the name of a plugin: expected {NAMED}, such as my-{kind}")
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"--into {folder}: that is a file; expected a folder, which is made if it is not there")
    if folder.name in FOLDERS and is_built_in_folder(folder.parent):
        raise BenchError(f"--into {folder}: that is the folder of built-in plugins; yours go beside it: --into plugins")
    return Draft(kind, name, folder)


def write(new: Draft, taken: Collection[str]) -> None:
    """Write the plugin and its test; nothing is ever overwritten.

    Args:
        new: what to write.
        taken: the names of its kind that other plugins bring.

    Raises:
        BenchError: the name is taken, or a file is there already.
    """
    if new.name in taken:
        raise BenchError(
            f"the {new.kind} '{new.name}' is there already: choose another name; see `bench list {new.kind}s`"
        )
    package = new.folder / new.module
    for path in (new.file, new.test, package):
        if path.is_symlink() or path.exists():
            raise BenchError(f"{path} is there already, and is left as it is: choose another name, or remove it")
    for path, text in new.texts().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)


def _template(name: str) -> str:
    return resources.files("robustbench_meta.templates").joinpath(f"{name}.py").read_text("utf-8")


def _example(kind: str) -> str:
    """The class in a kind's template."""
    return f"My{kind.capitalize()}"
