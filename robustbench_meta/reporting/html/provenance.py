"""Where the numbers come from: the commands that give them again, the versions and devices, and what failed."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from robustbench_meta.results.reproduce import command_for

_REPEATED = ("--seed", "--scenario", "--attack", "--learner")
"""Options that may be given several times, and whose values then span a grid."""
_ORDER = ("--profile", "--dataset", "--backbone", "--learner", "--attack", "--eps", "--scenario", "--surrogate")
_Options = frozenset[tuple[str, tuple[str, ...]]]
"""Of a command line: the names, each with its values."""


class ReproduceCommands(NamedTuple):
    """Command lines which together give the cells."""

    lines: list[str]
    cells: int
    untold: int
    """Cells of which no command can be told."""


class Versions(NamedTuple):
    """What some of the cells were made with."""

    versions: list[tuple[str, str]]
    device: str
    precision: str
    cells: int
    first: str
    last: str


def commands(records: Iterable[Mapping[str, Any]]) -> ReproduceCommands:
    """As few lines as exactly span the cells, by seeds, scenarios, attacks and learners."""
    told = [command_for(record) for record in records]
    lines = [shlex.split(line) for line in told if line is not None]
    return ReproduceCommands(joined(lines), len(lines), len(told) - len(lines))


def joined(lines: Iterable[Sequence[str]]) -> list[str]:
    """Command lines in words, joined where they differ in the values of one option that may be repeated.

    A line whose ε are the first ones of another's, which is otherwise the same, is part of that one.
    """
    options = {
        frozenset({*rest, ("--eps", eps)} if eps else rest)
        for rest, sweeps in _by_option(map(_options, lines), "--eps").items() for eps in sweeps
        if not any(len(other) > len(eps) and other[: len(eps)] == eps for other in sweeps)
    }  # fmt: skip
    for name in _REPEATED:
        options = {
            frozenset({*rest, (name, values)} if values else rest)
            for rest, found in _by_option(options, name).items()
            for values in [tuple(dict.fromkeys(itertools.chain(*found)))]
        }
    return sorted(map(_line, options))


def _options(words: Sequence[str]) -> _Options:
    found: dict[str, list[str]] = {}
    name = ""
    for word in words[2:]:  # behind `bench run`
        if word.startswith("--") and not (name and not found[name]):
            name = word
            found.setdefault(name, [])
        else:
            found[name].append(word)
            name = ""
    return frozenset((option, tuple(values)) for option, values in found.items())


def _by_option(lines: Iterable[_Options], name: str) -> dict[_Options, list[tuple[str, ...]]]:
    """By the other options of a line: the values of one; () where it is not given."""
    found: dict[_Options, list[tuple[str, ...]]] = {}
    for options in sorted(lines, key=_line):
        rest = frozenset(option for option in options if option[0] != name)
        found.setdefault(rest, []).append(dict(options).get(name, ()))
    return found


def _line(options: _Options) -> str:
    words = ["bench", "run"]
    for name, values in sorted(options, key=lambda each: ([*_ORDER, each[0]].index(each[0]), each[0])):
        words += [word for value in values for word in (name, value)] if values else [name]
    return shlex.join(words)


def versions(records: Iterable[Mapping[str, Any]]) -> list[Versions]:
    """What the cells were made with, most cells first."""
    found: Counter[tuple[Any, ...]] = Counter()
    dates: dict[tuple[Any, ...], list[str]] = {}
    for record in records:
        made = tuple(sorted((str(name), str(value)) for name, value in record["versions"].items()))
        same = made, record["device"], record["precision"]
        found[same] += 1
        dates.setdefault(same, []).append(record["written"])
    return [
        Versions(list(same[0]), same[1], same[2], count, min(dates[same]), max(dates[same]))
        for same, count in found.most_common()
    ]
