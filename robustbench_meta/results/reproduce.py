"""Commands from records: `bench run` that gives a record again, or that makes its checkpoint a surrogate."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.profiles import PROFILES, Profile
from robustbench_meta.options import Choice, as_typed, exact, parse_choice, parse_eps
from robustbench_meta.registry.discovery import SESSION

_SIZES = {
    "way": "--way", "shot": "--shot", "query": "--query", "meta_steps": "--meta-steps",
    "tasks_per_step": "--tasks-per-step",
}  # fmt: skip


class _UntellableError(Exception):
    """Something of the record cannot be typed."""


def command_for(record: Mapping[str, Any]) -> str | None:
    """A line for a POSIX shell that computes the cell of a record that was read.

    With the same code and data the cell has the same key. What decides no number (the device, the folders) is not told.

    Returns:
        None where it cannot be told: a plugin was given from Python, the surrogate was a checkpoint's file, or an
        option is no plain value.
    """
    return _line(lambda: _options(record["spec"], record["labels"]))


def transfer_command(record: Mapping[str, Any], file: str) -> str | None:
    """A line for a POSIX shell that attacks another learner by way of the checkpoint of a record's training.

    The other learner is trained for the same tasks, in the same network and as long.

    Args:
        record: of any cell of that training, as it was read.
        file: the checkpoint's.

    Returns:
        None where it cannot be told, as for `command_for`.
    """
    return _line(lambda: _transfer(record["spec"]["training"], record["labels"], file))


def _line(words: Callable[[], Iterable[str]]) -> str | None:
    try:
        line = shlex.join(["bench", "run", *words()])
    except (_UntellableError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None  # the spec is what the record says: its parts may be anything
    return line if line.isprintable() else None


def _transfer(training: Mapping[str, Any], labels: Mapping[str, str], file: str) -> Iterator[str]:
    _check_tellable(training["learner"])  # it must be found to read its weights
    name, profile = _profile(training)
    yield from _place(training, labels, name, profile)
    yield from ("--learner", "adml" if training["learner"]["name"] == "maml" else "maml", "--attack", "pgd")
    yield from ("--scenario", "clean/transfer", "--surrogate", file)
    yield from _sizes(training, profile)


def _options(spec: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    training, attack = spec["training"], spec["attack"]
    _check_tellable(attack["plugin"], training["learner"])
    name, profile = _profile(training)
    yield from _place(training, labels, name, profile)
    yield from ("--learner", _typed(training["learner"], labels["learner"], profile.learner))
    yield from ("--attack", _typed(attack["plugin"], labels["attack"], {}))
    if attack["norm"] != "none":
        for eps in attack["sweep"]:
            yield from ("--eps", exact(eps))
        yield from ("--eps", labels["eps"] if _is(labels["eps"], attack["eps"]) else exact(attack["eps"]))
        yield from ("--scenario", f"{spec['support']}/{spec['query']}")
    if spec["surrogate"] is not None:
        _check_tellable(spec["surrogate"]["learner"])
        if spec["surrogate"]["trained"].startswith("file "):
            raise _UntellableError
        yield from ("--surrogate", _typed(spec["surrogate"]["learner"], labels["surrogate"], profile.learner))
    yield from _sizes(training, profile)
    if spec["episodes"] != profile.episodes:
        yield from ("--episodes", str(int(spec["episodes"])))
    yield from ("--seed", str(int(training["seed"])))
    if training["precision"] != "float32":
        yield from ("--precision", str(training["precision"]))
    if not spec["checks"]:
        yield "--no-checks"


def _check_tellable(*plugins: Mapping[str, Any]) -> None:
    if any(plugin["code"].startswith(SESSION) for plugin in plugins):
        raise _UntellableError


def _place(
    training: Mapping[str, Any], labels: Mapping[str, str], name: str, profile: Profile
) -> Iterator[str]:  # fmt: skip
    _check_tellable(training["dataset"], training["backbone"])
    yield from ("--profile", name)
    yield from ("--dataset", _typed(training["dataset"], labels["dataset"], profile.dataset))
    yield from ("--backbone", _typed(training["backbone"], labels["backbone"], profile.backbone))


def _sizes(training: Mapping[str, Any], profile: Profile) -> Iterator[str]:
    for size, option in _SIZES.items():
        if training[size] != getattr(profile, size):
            yield from (option, str(int(training[size])))


def _profile(training: Mapping[str, Any]) -> tuple[str, Profile]:
    """The profile of the record: validations cannot be typed, and differ between profiles."""
    wanted = training["validations"], training["validation_tasks"]
    for name, profile in PROFILES.items():
        if (profile.validations, profile.validation_tasks) == wanted:
            return name, profile
    raise _UntellableError


def _typed(plugin: Mapping[str, Any], label: str, filled: Mapping[str, str]) -> str:
    """A plugin as typed: with the options that its label has, and those that the profile would fill in."""
    options = plugin["options"]
    try:
        told = parse_choice(label).options
    except BenchError:
        told = options
    return str(Choice(plugin["name"], {
        name: _value(value) for name, value in options.items() if name in told or name in filled
    }))  # fmt: skip


def _value(value: Any) -> str:
    readable = value.strip() == value != "" and "," not in value if isinstance(value, str) else True
    if readable and isinstance(value, str | int | float | None):
        return as_typed(value)
    raise _UntellableError


def _is(text: str, eps: float) -> bool:
    try:
        return parse_eps(text).value == eps
    except BenchError:
        return False
