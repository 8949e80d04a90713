"""TOML files that people write: read with the line of each key, and written."""

from __future__ import annotations

import bisect
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustbench_meta.errors import BenchError

MOST_BYTES, MOST_LINES = 2**16, 2000
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_LONGEST = 100
"""Of a line that is written, before a list goes over several."""


@dataclass(frozen=True)
class Document:
    """A file's content; `path` of its keys is as in `("cells", 0, "eps")`."""

    name: str
    text: str
    values: Mapping[str, Any]

    def error(self, told: str, *path: str | int, item: int | None = None) -> BenchError:
        """What to raise about a key, or about an item of its list: file, line, key, what is wrong."""
        key = f"key '{shown(str(path[-1]))}': " if path and isinstance(path[-1], str) else ""
        line = None if item is None else self._item_line(path, item)
        return BenchError(f"{self.place(*path) if line is None else f'{self.name}:{line}'}: {key}{told}")

    def place(self, *path: str | int) -> str:
        """`quick.toml:12`; the file alone for the whole of it, or what is not in it."""
        line = self.line(*path)
        return self.name if line is None else f"{self.name}:{line}"

    def line(self, *path: str | int) -> int | None:
        """The line where what gives this key begins, from 1 on; None if nothing does."""
        if not path or not _holds(self.values, path):
            return None
        ends = self._ends
        first = bisect.bisect_left(ends, True, key=lambda end: _holds(tomllib.loads(self._until(end)), path))
        return ends[first - 1] + 1 if first else 1

    def _item_line(self, path: Sequence[str | int], item: int) -> int | None:
        """The line where an item of a list ends: the first after which the list, closed there, has it."""
        start = self.line(*path)
        if start is None:
            return None
        for end in range(start, len(self._lines) + 1):
            for closed in ("", "]"):
                try:
                    values = tomllib.loads(self._until(end) + closed)
                except tomllib.TOMLDecodeError:
                    continue
                if _holds(values, [*path, item]):
                    return end
        return None

    @cached_property
    def _lines(self) -> list[str]:
        return self.text.split("\n")

    def _until(self, end: int) -> str:
        return "\n".join(self._lines[:end]) + "\n"

    @cached_property
    def _ends(self) -> list[int]:
        """After how many lines each statement ends: a line, or as many as parse together."""
        ends, start = [], 0
        for end in range(1, len(self._lines) + 1):
            try:
                tomllib.loads("\n".join(self._lines[start:end]) + "\n")
            except tomllib.TOMLDecodeError:
                continue
            ends.append(end)
            start = end
        return ends


def _holds(values: Any, path: Sequence[str | int]) -> bool:
    for step in path:
        if isinstance(step, int):
            if not isinstance(values, list) or step >= len(values):
                return False
        elif not isinstance(values, dict) or step not in values:
            return False
        values = values[step]
    return True


def read_document(path: Path, name: str) -> Document:
    """Read a file of at most 64 KiB.

    Raises:
        BenchError: it is not there, no file, cannot be read, or is no TOML, and where.
    """
    if path.is_dir():
        raise BenchError(f"{name} is a folder; expected a file in TOML")
    try:
        if path.exists() and not path.is_file():
            raise BenchError(f"{name} is no plain file; expected a file in TOML")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = error.strerror if isinstance(error, OSError) else "its name cannot be that of a file"
        raise BenchError(f"{shown(name, 200)} cannot be read ({reason})") from error
    return parse_document(content, name)


def parse_document(content: bytes, name: str) -> Document:
    """Parse a file's content.

    Raises:
        BenchError: it is too large, not UTF-8 or no TOML, and where.
    """
    name = shown(name, 200)
    if len(content) > MOST_BYTES:
        raise BenchError(f"{name} is larger than {MOST_BYTES >> 10} KiB; expected a file that a person has written")
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BenchError(f"{name}:{line}: this is not UTF-8; save the file as UTF-8 text") from error
    if text.count("\n") > MOST_LINES:
        raise BenchError(f"{name} has more than {MOST_LINES:,} lines; expected a file that a person has written")
    try:
        return Document(name, text, tomllib.loads(text))
    except ValueError as error:  # TOMLDecodeError, or of an integer with thousands of digits
        found = _PLACE.search(str(error))
        end = f"{text.count(chr(10)) + 1}:1"
        place = f":{':'.join(found.groups()) if found[1] else end}" if found else ""
        told = _PLACE.sub("", str(error))
        raise BenchError(f"{name}{place}: this is no TOML: {shown(told, 200)}") from error
    except RecursionError as error:
        raise BenchError(f"{name}: it is nested too deeply") from error


def shown(text: str, most: int = 60) -> str:
    """A text that may be anything, for a message: printable, in one line, not too long."""
    text = "".join(letter if letter.isprintable() else "�" for letter in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}…"


def setting(key: str, value: str | int | bool | Sequence[str | int]) -> str:
    """The line, or lines, that give a bare key a value."""
    if isinstance(value, str | int):
        return f"{key} = {_value(value)}"
    values = [_value(each) for each in value]
    line = f"{key} = [{', '.join(values)}]"
    return line if len(line) <= _LONGEST else "\n".join([f"{key} = [", *(f"    {each}," for each in values), "]"])


def _value(value: str | int | bool) -> str:
    """A basic string is one of JSON, but that TOML wants DEL escaped, too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)
