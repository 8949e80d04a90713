"""Where the numbers come from: the commands that give them again, the versions and devices, and what failed."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from robustbench_meta.results.reproduce import command_for

_REPEATED = ("--seed", "--scenario", "--attack", "--learner")
"""Options that may be given several times, and whose values then span a grid."""


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
    options = _without_prefixes({_options(words) for words in lines})
    for name in _REPEATED:
        groups: dict[tuple[Any, ...], list[tuple[str, ...]]] = {}
        for each in sorted(options, key=repr):
            rest = tuple((option, values) for option, values in each if option != name)
            groups.setdefault(rest, []).append(dict(each).get(name, ()))
        options = {
            _with(rest, name, tuple(dict.fromkeys(value for values in found for value in values)))
            for rest, found in groups.items()
        }
    return sorted(_line(each) for each in options)


def _options(words: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The options of `bench run …`, with the values of each, in the order of the first of each."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words[2:]:
        if word.startswith("--") and not (name and not found[name]):
            name = word
            found.setdefault(name, [])
        else:
            found[name].append(word)
            name = ""
    return tuple((option, tuple(values)) for option, values in found.items())


def _with(rest: tuple[Any, ...], name: str, values: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(sorted([*rest, (name, values)], key=_order)) if values else tuple(sorted(rest, key=_order))


_ORDER = ("--profile", "--dataset", "--backbone", "--learner", "--attack", "--eps", "--scenario", "--surrogate")


def _order(option: tuple[str, tuple[str, ...]]) -> tuple[int, str]:
    return _ORDER.index(option[0]) if option[0] in _ORDER else len(_ORDER), option[0]


def _without_prefixes(options: set[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    groups: dict[tuple[Any, ...], list[tuple[str, ...]]] = {}
    for each in options:
        rest = tuple((option, values) for option, values in each if option != "--eps")
        groups.setdefault(rest, []).append(dict(each).get("--eps", ()))
    return {
        _with(rest, "--eps", eps) for rest, found in groups.items() for eps in found
        if not any(len(other) > len(eps) and other[: len(eps)] == eps for other in found)
    }  # fmt: skip


def _line(options: tuple[Any, ...]) -> str:
    words = ["bench", "run"]
    for name, values in options:
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
