"""Suites: files that say what a run measures. They are data: nothing in them is executed."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from robustbench_meta import __version__
from robustbench_meta.errors import BenchError, expected, unknown
from robustbench_meta.experiment.run_options import option_of
from robustbench_meta.experiment.spec import OptionError, RunSpec
from robustbench_meta.runtime.atomic_files import write_atomically, write_text

_WHERE = ("device", "compile", "chunk")
"""Fields of `RunSpec` that identify no number: they are typed, and no keys."""
KEYS = {option_of(field): field for field in RunSpec.model_fields if field not in _WHERE}
"""The fields of `RunSpec` by the keys that set them, which are named as the options of `bench run`."""
_MOST_BYTES = 2**16


class _Table(RunSpec):
    """A table of a suite's file: fields of `RunSpec` by their keys."""

    model_config = ConfigDict(alias_generator=option_of, strict=True)

    about: str = ""

    @field_validator("learners", "attacks", "eps", "scenarios", "seeds", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        """One value is a list of it, and a number is a text where ε is wanted."""
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError("expected at least one, or leave it out")
        is_eps = info.field_name == "eps"
        return tuple(repr(each) if is_eps and type(each) in (int, float) else each for each in values)

    @field_validator(*_WHERE, mode="before")
    @classmethod
    def _is_typed(cls, value: Any, info: ValidationInfo) -> Any:
        raise ValueError(f"a suite says what is measured, not where and how; type --{info.field_name} beside it")

    @field_validator("*")
    @classmethod
    def _printable(cls, value: Any, info: ValidationInfo) -> Any:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not (text.isprintable() and (text.strip() or info.field_name == "about")):
                raise ValueError("expected text of characters that can be printed")
        return value

    def given(self) -> dict[str, Any]:
        """The fields that it sets."""
        return {field: getattr(self, field) for field in KEYS.values() if field in self.model_fields_set}


class _File(_Table):
    """The whole: defaults, and parts in which other values take their place."""

    parts: list[_Table] = Field(default_factory=list)


@dataclass(frozen=True)
class SuitePart:
    """A grid of a suite."""

    given: Mapping[str, Any]
    """Fields of `RunSpec`, as typed; what is not here has its default."""
    about: str = ""
    file: str = ""
    """The name of the file that it is of, if it is of one."""
    path: str = ""
    """Where in the file: `parts[1]`; empty: it is all of the file."""
    own: frozenset[str] = frozenset()
    """The fields that it sets itself; the others that are given are defaults at the top of the file."""
    typed: frozenset[str] = frozenset()
    """The fields that were typed over those of the file."""

    @property
    def place(self) -> str:
        """`mine.toml: parts[1]`."""
        return f"{self.file}: {self.path}" if self.path else self.file

    def placed(self, error: BenchError) -> BenchError:
        """The error with the place in the file of what it is about: `mine.toml: parts[1].eps[0]: …`.

        The error itself where no file has it: it was typed, or there is no file.
        """
        field, text = error.about or ("", None)
        if not self.file or field in self.typed:
            return error
        told = error.told if isinstance(error, OptionError) else str(error)
        if field not in self.given:
            return BenchError(f"{self.place}: {told}")
        value, is_own = self.given[field], field in self.own
        values = [str(each) for each in value] if isinstance(value, tuple) else []
        index = [values.index(text)] if text in values and len(values) > 1 else []
        if self.path and not is_own and isinstance(error, OptionError):
            told += f" (or not to {self.path})"
        place = _place([*([self.path] if self.path and is_own else []), option_of(field), *index])
        return BenchError(f"{self.file}: {place}: {told}")

    def spec(self) -> RunSpec:
        """What is to be run, checked.

        Raises:
            OptionError: something of it cannot be.
        """
        return RunSpec.read(**self.given)


@dataclass(frozen=True)
class Suite:
    """What one run measures: its parts, one after the other."""

    parts: tuple[SuitePart, ...] = (SuitePart({}),)
    name: str = ""
    about: str = ""

    def overridden(self, typed: Mapping[str, Any]) -> Suite:
        """With these fields of `RunSpec` in every part, in the place of its own; parts that are then equal are one.

        Raises:
            OptionError: one of them cannot be.
            BenchError: what they are added to cannot be with them.
        """
        parts: dict[RunSpec, SuitePart] = {}
        for part in self.parts:
            changed = replace(part, given={**part.given, **typed}, typed=part.typed | frozenset(typed))
            try:
                parts.setdefault(changed.spec(), changed)
            except OptionError as error:
                if (placed := changed.placed(error)) is error:
                    raise
                raise placed from error
        return replace(self, parts=tuple(parts.values()))


def _place(path: Sequence[str | int]) -> str:
    """`parts[1].eps[0]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


# -- reading ---------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by their names."""
    package = Path(__file__).parents[1]
    for folder in (package / "shipped_suites", package.parent / "suites"):  # installed, and in a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def find_suite(text: str) -> Suite:
    """Read a suite's file, or one that comes with the package.

    Args:
        text: a path with a separator or the ending .toml, or the name of a shipped suite.

    Raises:
        BenchError: there is none, or it cannot be read, and where.
    """
    if text.endswith(".toml") or any(each in text for each in (os.sep, os.altsep) if each):
        return read_suite(Path(text), text)
    known = shipped()
    if text not in known:
        more = "a suite's file is named with its ending (mine.toml), a learner with --learner, an attack with --attack"
        raise BenchError(f"{unknown('suite', _shown(text), known)}; {more}")
    return read_suite(known[text], known[text].name)


def read_suite(path: Path, name: str | None = None) -> Suite:
    """Read a suite's file of at most 64 KiB.

    Args:
        path: of the file.
        name: of it in messages; None: the path.

    Raises:
        BenchError: it cannot be read, and where.
    """
    name = _shown(str(path) if name is None else name, 200)
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise BenchError(f"{name} is a folder or device; expected a file in TOML")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = error.strerror if isinstance(error, OSError) else "its name cannot be that of a file"
        raise BenchError(f"cannot read {name} ({reason})") from error
    return parse_suite(content, name)


def parse_suite(content: bytes, name: str) -> Suite:
    """Read the content of a suite's file.

    Raises:
        BenchError: it cannot be read, and where.
    """
    if len(content) > _MOST_BYTES:
        raise BenchError(f"{name} is larger than {_MOST_BYTES >> 10} KiB; expected a file that a person has written")
    try:
        values = tomllib.loads(content.decode("utf-8-sig"))
        table = _File.model_validate(values)
    except ValidationError as error:
        raise BenchError(f"{name}: {_explained(error, values)}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BenchError(f"{name}: invalid UTF-8 in line {line}: save the file as UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number of thousands of digits
        raise BenchError(f"{name}: invalid TOML: {_shown(str(error), 200)}") from error
    if not values:
        example = 'learner = "maml" and attack = ["none", "fgsm"]'
        raise BenchError(f"{name} says nothing; expected what to measure, as in {example}")
    defaults, parts = table.given(), [SuitePart(table.given(), file=name, own=frozenset(table.given()))]
    if table.parts:
        parts = [
            SuitePart({**defaults, **each.given()}, each.about, name, f"parts[{index}]", frozenset(each.given()))
            for index, each in enumerate(table.parts)
        ]
    for part in parts:
        try:
            part.spec()
        except OptionError as error:
            raise part.placed(error) from error
    return Suite(tuple(parts), name, table.about)


def _explained(error: ValidationError, values: Any) -> str:
    """The first mistake, with its place in the file."""
    issue = error.errors()[0]
    path: list[str | int] = []
    for step in issue["loc"]:
        if isinstance(step, str) or isinstance(values, list):  # not the index of a value that was made a list
            path.append(step)
            values = values[step]
    place, key = _place([_shown(step) if isinstance(step, str) else step for step in path]), str(path[-1])
    if issue["type"] == "extra_forbidden":
        keys = [*KEYS, "about", *(["parts"] if len(path) == 1 else [])]
        return f"{place}: {unknown('key', _shown(key), keys)}"
    return f"{place}: invalid {_shown(repr(issue['input']))}: {expected(issue['msg'])}"


def _shown(text: str, most: int = 60) -> str:
    """A text that may be anything, for a message: printable, in one line, not too long."""
    text = "".join(letter if letter.isprintable() else "�" for letter in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}…"


# -- writing ---------------------------------------------------------------------------------------


def suite_text(suite: Suite) -> str:
    """The content of a file that gives this suite again: what was typed, and the profile."""
    every = [_typed(part) for part in suite.parts]
    common = {name: value for name, value in every[0].items() if all(each.get(name) == value for each in every)}
    top = common if any("profile" in each for each in every) else {**common, "profile": RunSpec().profile}
    if suite.about:
        top = {"about": suite.about, **top}
    if len(every) > 1:
        top["parts"] = [
            {**({"about": part.about} if part.about else {}), **{k: v for k, v in typed.items() if k not in common}}
            for part, typed in zip(suite.parts, every, strict=True)
        ]
    head = f"# Saved by robustbench_meta {__version__}; `bench run` with the name of this file runs it."
    return f"{head}\n{tomli_w.dumps(top)}"


def _typed(part: SuitePart) -> dict[str, Any]:
    """By the names of keys, in their order: one of several values is written without a list."""
    given = {key: part.given[field] for key, field in KEYS.items() if part.given.get(field) not in (None, ())}
    return {key: value[0] if isinstance(value, tuple) and len(value) == 1 else value for key, value in given.items()}


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
    where = {field: RunSpec.model_fields[field].default for field in _WHERE}
    return [part.spec().model_copy(update=where) for part in suite.parts]
