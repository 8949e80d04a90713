"""Suites: files that say what a run measures. They are data: nothing in them is executed."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from robustbench_meta import __version__
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.files import write_atomically, write_text
from robustbench_meta.spec import OptionError, RunSpec
from robustbench_meta.toml import Document, parse_document, read_document, setting, shown


class Key(NamedTuple):
    """What a key of a suite sets."""

    field: str
    """Of `RunSpec`."""
    kind: Literal["text", "number", "eps", "switch"] = "text"
    repeated: bool = False
    """Whether it may be a list, as the option may be repeated."""


KEYS = {
    "learner": Key("learners", repeated=True),
    "attack": Key("attacks", repeated=True),
    "eps": Key("eps", "eps", repeated=True),
    "scenario": Key("scenarios", repeated=True),
    "surrogate": Key("surrogate"),
    "seed": Key("seeds", "number", repeated=True),
    "dataset": Key("dataset"),
    "backbone": Key("backbone"),
    "way": Key("way", "number"),
    "shot": Key("shot", "number"),
    "query": Key("query", "number"),
    "profile": Key("profile"),
    "meta-steps": Key("meta_steps", "number"),
    "tasks-per-step": Key("tasks_per_step", "number"),
    "episodes": Key("episodes", "number"),
    "checks": Key("checks", "switch"),
    "precision": Key("precision"),
}
"""What identifies numbers, named as the options of `bench run` are."""
_NAMES = {key.field: name for name, key in KEYS.items()}
_OPTION = re.compile(rf"--({'|'.join(sorted(KEYS, key=len, reverse=True))})\b(?: ([^\s,;()]*[^\s,;:().]))?")
"""An option of the command line with its value, in a message."""
HOW = frozenset({
    "device", "compile", "chunk", "jobs", "executor", "ray-address", "cell-timeout", "retry-failed", "fresh", "results",
    "data-root", "plugins", "no-local-plugins", "dry-run", "save", "quiet", "json", "track", "debug",
})  # fmt: skip
"""Options that say where and how a run is done: these are typed."""
ABOUT, CELLS = "about", "cells"
_EXPECTED = {
    "text": 'a text, such as "maml"',
    "number": "a whole number, such as 5",
    "eps": 'a number such as 0.1, or a text such as "8/255"',
    "switch": "true or false",
}


@dataclass(frozen=True)
class Part:
    """A grid of a suite."""

    given: Mapping[str, Any]
    """Fields of `RunSpec`, as typed; what is not here has its default."""
    about: str = ""
    document: Document | None = None
    """The file that it is of."""
    path: tuple[str | int, ...] = ()
    """Where it begins there; empty: it is all of the file."""
    own: frozenset[str] = frozenset()
    """The fields that it sets itself; the others that are given are defaults at the top of the file."""
    typed: frozenset[str] = frozenset()
    """The fields that were typed over those of the file."""

    @property
    def place(self) -> str:
        """The file and the line where it begins; empty if it is of none."""
        return "" if self.document is None else self.document.place(*self.path)

    def placed(self, error: BenchError) -> BenchError:
        """The error with the file, line and key of what it is about, in the words of suites.

        The error itself where no file has it: it was typed, or there is no file.
        """
        field, text = error.about or ("", None)
        if self.document is None or field in self.typed:
            return error
        told = _in_keys(error.told if isinstance(error, OptionError) else str(error))
        if field not in self.given or field not in _NAMES:
            return BenchError(f"{self.place}: {told}")
        value, name = self.given[field], _NAMES[field]
        path = (*self.path, name) if field in self.own else (name,)
        if self.path and field not in self.own and isinstance(error, OptionError):
            told += f" (or not to the part that begins at line {self.document.line(*self.path)})"
        values = list(map(str, value)) if isinstance(value, tuple) else []
        return self.document.error(told, *path, item=values.index(text) if text in values else None)

    def spec(self) -> RunSpec:
        """What is to be run, checked.

        Raises:
            OptionError: something of it cannot be.
        """
        return RunSpec.read(**self.given)


@dataclass(frozen=True)
class Suite:
    """What one run measures: its parts, one after the other."""

    parts: tuple[Part, ...] = (Part({}),)
    name: str = ""
    about: str = ""

    def overridden(self, typed: Mapping[str, Any]) -> Suite:
        """With these fields of `RunSpec` in every part, in the place of its own; parts that are then equal are one.

        Raises:
            OptionError: one of them cannot be.
            BenchError: what they are added to cannot be with them.
        """
        parts: dict[RunSpec, Part] = {}
        for part in self.parts:
            changed = replace(part, given={**part.given, **typed}, typed=part.typed | frozenset(typed))
            try:
                parts.setdefault(changed.spec(), changed)
            except OptionError as error:
                if (placed := changed.placed(error)) is error:
                    raise
                raise placed from error
        return replace(self, parts=tuple(parts.values()))


def _in_keys(told: str) -> str:
    """A message about options in the words of suites: `--eps 0.1` is `eps = "0.1"` there."""

    def said(option: re.Match[str]) -> str:
        name, value = option.groups()
        if value is None:
            return f"'{name}'"
        return f"{name} = {value if KEYS[name].kind == 'number' else json.dumps(value)}"

    return _OPTION.sub(said, told)


# -- reading ---------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by their names."""
    package = Path(__file__).parent
    for folder in (package / "shipped_suites", package.parent / "suites"):  # installed, and in a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def find_suite(text: str) -> Suite:
    """Read a suite's file, or one that comes with the package.

    Args:
        text: a path with a separator or the ending .toml, or the name of a shipped suite.

    Raises:
        BenchError: there is none, or it cannot be read, and in which line.
    """
    if text.endswith(".toml") or any(each in text for each in (os.sep, os.altsep) if each):
        return read_suite(Path(text), text)
    known = shipped()
    if text not in known:
        more = "a suite's file is named with its ending (mine.toml), a learner with --learner, an attack with --attack"
        raise BenchError(f"{unknown('suite', shown(text), known)}; {more}")
    return read_suite(known[text], known[text].name)


def read_suite(path: Path, name: str | None = None) -> Suite:
    """Read a suite's file.

    Args:
        path: of the file.
        name: of it in messages; None: the path.

    Raises:
        BenchError: it cannot be read, and in which line.
    """
    return _suite(read_document(path, str(path) if name is None else name))


def parse_suite(content: bytes, name: str) -> Suite:
    """Read the content of a suite's file.

    Raises:
        BenchError: it cannot be read, and in which line.
    """
    return _suite(parse_document(content, name))


def _suite(document: Document) -> Suite:
    top = dict(document.values)
    if not top:
        example = 'learner = "maml" and attack = ["none", "fgsm"]'
        raise BenchError(f"{document.name} says nothing; expected what to measure, as in {example}")
    about, cells = _about(document, top), top.pop(CELLS, None)
    defaults = _given(document, top)
    if cells is None:
        return Suite((_part(document, defaults, "", (), {}),), document.name, about)
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise document.error(f"is {_called(cells)}; expected [[{CELLS}]], once for each part of the suite", CELLS)
    if not cells:
        raise document.error("is empty; expected at least one part, or leave it out", CELLS)
    parts = []
    for index, each in enumerate(cells):
        cell, path = dict(each), (CELLS, index)
        told = _about(document, cell, *path)
        parts.append(_part(document, defaults, told, path, _given(document, cell, *path)))
    return Suite(tuple(parts), document.name, about)


def _about(document: Document, table: dict[str, Any], *path: str | int) -> str:
    """What a table says of itself, taken out of it."""
    value = table.pop(ABOUT, "")
    if not isinstance(value, str):
        raise document.error(f"is {_called(value)}; expected a text", *path, ABOUT)
    _check_printable(document, value, *path, ABOUT)
    return value


def _given(document: Document, table: Mapping[str, Any], *path: str | int) -> dict[str, Any]:
    """The fields that a table sets."""
    given = {}
    for name, value in table.items():
        if name not in KEYS:
            raise document.error(_unknown(name, value, bool(path)), *path, name)
        key = KEYS[name]
        listed = isinstance(value, list)
        if listed and not key.repeated:
            raise document.error(f"is a list; expected {_EXPECTED[key.kind]}", *path, name)
        if listed and not value:
            raise document.error("is empty; expected at least one, or leave it out", *path, name)
        values = [
            _read(document, key, each, *path, name, item=item if listed else None)
            for item, each in enumerate(value if listed else [value])
        ]
        given[key.field] = tuple(values) if key.repeated else values[0]
    return given


def _unknown(name: str, value: Any, in_cell: bool) -> str:
    """What is told of a key that is none."""
    if name in HOW:
        return f"is not a suite's, which says what is measured, not where and how; type --{name} beside it"
    known = [*KEYS, ABOUT, *([] if in_cell else [CELLS])]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1, cutoff=0.6)
    if isinstance(value, dict) or name == CELLS:
        return f"unknown table; defaults are keys at the top of the file, and each part of it begins with [[{CELLS}]]"
    return f"unknown; did you mean '{near[0]}'?" if near else f"unknown; there is: {', '.join(known)}"


def _read(document: Document, key: Key, value: Any, *path: str | int, item: int | None) -> str | int | bool:
    """One value, of its type."""
    kind = key.kind
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and not -(2**63) <= value < 2**63:
        raise document.error("is a number of more than 64 bits; expected a smaller one", *path, item=item)
    if kind == "eps" and (number or isinstance(value, float)):
        return repr(value)
    fits = {"number": number, "switch": isinstance(value, bool)}.get(kind, isinstance(value, str))
    if not fits:
        raise document.error(f"is {_called(value)}; expected {_EXPECTED[kind]}", *path, item=item)
    if isinstance(value, str):
        if not value.strip():
            raise document.error(f"is an empty text; expected {_EXPECTED[kind]}, or leave it out", *path, item=item)
        _check_printable(document, value, *path, item=item)
    read: str | int | bool = value
    return read


def _check_printable(document: Document, text: str, *path: str | int, item: int | None = None) -> None:
    if not text.isprintable():
        raise document.error("holds a character that cannot be printed; leave it out", *path, item=item)


def _called(value: Any) -> str:
    """What a value is, in words."""
    match value:
        case bool() | int() | float():
            return shown(str(value).lower())
        case str():
            return f'the text "{shown(value)}"'
        case list():
            return "a list"
        case date() | time():
            return "a date or time"
    return "a table"


def _part(
    document: Document, defaults: Mapping[str, Any], about: str, path: tuple[str | int, ...], own: Mapping[str, Any]
) -> Part:
    """A part with the defaults filled in, checked as what is typed is."""
    part = Part({**defaults, **own}, about, document, path, frozenset(own))
    try:
        part.spec()
    except OptionError as error:
        raise part.placed(error) from error
    return part


# -- writing ---------------------------------------------------------------------------------------


def suite_text(suite: Suite) -> str:
    """The content of a file that gives this suite again: what was typed, and the profile."""
    every = [_typed(part) for part in suite.parts]
    common = {name: value for name, value in every[0].items() if all(each.get(name) == value for each in every)}
    top = common if any("profile" in each for each in every) else {**common, "profile": RunSpec().profile}
    lines = [f"# Saved by robustbench_meta {__version__}; `bench run` with the name of this file runs it."]
    lines += [setting(ABOUT, suite.about)] if suite.about else []
    lines += [setting(name, top[name]) for name in KEYS if name in top]
    for part, typed in zip(suite.parts, every, strict=True) if len(every) > 1 else ():
        lines += ["", f"[[{CELLS}]]", *([setting(ABOUT, part.about)] if part.about else [])]
        lines += [setting(name, value) for name, value in typed.items() if name not in common]
    return "\n".join(lines) + "\n"


def _typed(part: Part) -> dict[str, Any]:
    """By the names of keys, in their order: one of several values is written without a list."""
    found = {}
    for name, key in KEYS.items():
        value = part.given.get(key.field)
        if value is not None and value != ():
            found[name] = value[0] if key.repeated and len(value) == 1 else value
    return found


def save_suite(suite: Suite, path: Path) -> bool:
    """Write a suite's file that gives the same cells.

    Returns:
        False if the file was there, and gives them already.

    Raises:
        BenchError: it has another ending than .toml, says something else already, or the suite cannot be written.
        StorageError: it cannot be written there.
    """
    told = f"--save {path}"
    if path.suffix != ".toml":
        raise BenchError(f"{told}: expected a name that ends in .toml")
    text = suite_text(suite)
    try:
        same = _measured(parse_suite(text.encode(), path.name)) == _measured(suite)
    except (BenchError, UnicodeEncodeError) as error:
        raise BenchError(f"{told}: what was typed cannot be said in a suite ({error})") from error
    if not same:
        raise BenchError(f"{told}: what was typed cannot be said in a suite")
    if path.exists():
        try:
            if _measured(read_suite(path)) == _measured(suite):
                return False
        except BenchError:
            pass  # it is something else altogether
        raise BenchError(f"{told}: is there already, and says something else; choose another name, or remove it")
    write_atomically(path, lambda part: write_text(part, text.removesuffix("\n")), kept=False)
    return True


def _measured(suite: Suite) -> list[RunSpec]:
    """The specs of its parts, without where and how they are run."""
    fields = {key.field for key in KEYS.values()}
    specs = [part.spec() for part in suite.parts]
    return [RunSpec(**{name: getattr(spec, name) for name in fields}) for spec in specs]
