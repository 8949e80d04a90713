"""What is given to the Python API, read as the command line reads what is typed."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.experiment.run_options import fields_of
from robustbench_meta.experiment.suite import Suite, find_suite, read_suite
from robustbench_meta.options import SCENARIOS, THROUGH_ADAPTATION, exact
from robustbench_meta.registry.in_memory import GivenPlugins

Folder = str | os.PathLike[str]
P = ParamSpec("P")
R = TypeVar("R")


def several(name: str, given: Any) -> list[Any]:
    """One or several, as a list; a text is one. None is not given.

    Raises:
        BenchError: a list with nothing in it.
    """
    if given is None:
        return []
    if isinstance(given, np.ndarray):
        given = np.atleast_1d(given)
        given = given.tolist() if np.issubdtype(given.dtype, np.integer) else list(given)
    if not isinstance(given, (list, tuple, range)):
        return [given]
    if not given:
        raise BenchError(f"invalid {name} {given!r}: expected one or more, or leave {name} out")
    return list(given)


def misspelt(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose TypeError for an unknown argument says which one may be meant."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        for name in named:
            if name not in known:
                raise TypeError(f"{function.__name__}(): {unknown('argument', name, known)}")
        return function(*given, **named)

    return call


def read_options(options: Mapping[str, Any], given: GivenPlugins) -> dict[str, Any]:
    """The fields of `RunSpec` that arguments of `run` give, by their names; plugins among them go to `given`.

    Raises:
        BenchError: a list with nothing in it, or a plugin of another kind.
    """
    read = {**options, **{name: several(name, options.get(name)) for name in ("eps", "scenario", "seed")}}
    read["eps"] = [eps_text(each) for each in read["eps"]]
    for name in ("learner", "attack"):
        read[name] = [given.typed(name, each) for each in several(name, options.get(name))]
    for name, kind in {"dataset": "dataset", "backbone": "backbone", "surrogate": "learner"}.items():
        read[name] = options.get(name) and given.typed(kind, options[name])
    return fields_of(read)


def eps_text(given: str | float) -> str:
    """As one would type it: the shortest text that is exactly this number, a ratio of 255 where that is shorter."""
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    return exact(float(given)) if is_number else str(given)


def suite_of(given: Folder | None) -> Suite:
    """A suite of that file or name; None: one of which nothing is said.

    Raises:
        BenchError: there is none, or it cannot be read.
    """
    if given is None:
        return Suite()
    return find_suite(given) if isinstance(given, str) else read_suite(Path(given))


def folder_of(given: Folder) -> Path:
    """A folder; nothing at all is none, where pathlib would take the current one.

    Raises:
        BenchError: nothing is given.
    """
    if not str(given).strip():
        raise BenchError("invalid folder '': expected its path, or '.' for the current one")
    return Path(given)


def maybe_folder(given: Folder | None) -> Path | None:
    """The same, or None."""
    return None if given is None else folder_of(given)


def without_poison(scenarios: Sequence[str], *, transfer: bool) -> list[str]:
    """The scenarios, `all` written out, without those that go through adaptation.

    Raises:
        BenchError: one of them was asked for.
    """
    poisoned = [name for name in scenarios if SCENARIOS.get(name, ("",))[0] in THROUGH_ADAPTATION]
    if poisoned:
        raise BenchError(
            f"scenario {poisoned[0]} goes through adaptation by its gradient, which a model of your own need not have; "
            "leave it out, or write a learner (docs/plugins.md)"
        )
    if "all" not in scenarios:
        return list(scenarios)
    return [
        name for name, (support, query) in SCENARIOS.items()
        if support not in THROUGH_ADAPTATION and (transfer or query != "transfer")
    ]  # fmt: skip
