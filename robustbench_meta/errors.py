"""Errors that a user reads: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class BenchError(Exception):
    """A mistake in the input or the environment, told in one message; the command line exits with 2."""

    about: tuple[str, str | None] | None = None
    """The field of a run's spec that it is about, and which of several values, as typed; None: of no field alone."""


@contextmanager
def about(field: str, text: str | None = None) -> Iterator[None]:
    """What is found wrong inside is wrong with this field of a run's spec, and with this one of its values."""
    try:
        yield
    except BenchError as error:
        if error.about is None:
            error.about = field, text
        raise


class PluginError(BenchError):
    """A plugin could not be loaded, or its contract is broken."""


class DataError(BenchError):
    """A data set is missing, damaged or does not fit what was asked of it."""


class StorageError(BenchError):
    """Results cannot be written; nothing that was written before is lost."""


class ViolationError(BenchError):
    """An attack returned something outside its threat model, or touched what it must not touch."""


_MOST_LISTED = 20


class DeviceLostError(BenchError):
    """After an error on the CUDA device nothing more can be computed on it in this process."""

    cell: str | None = None
    """The key of the cell that was under way."""


def brief(error: BaseException) -> str:
    """The kind of an error and what it says, in one line that can be printed whatever it is about."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """Word the message for an unknown name: the nearest names, or all of them when none is near."""
    names = sorted(known)
    if given.lower() in names:
        return f"unknown {kind} '{given}': did you mean '{given.lower()}'?"
    near = difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.6)
    if near:
        return f"unknown {kind} '{given}': did you mean {' or '.join(repr(name) for name in near)}?"
    if len(names) > _MOST_LISTED:
        return f"unknown {kind} '{given}'; there are {len(names)}: see `bench list`"
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} '{given}'; there is: {listed}"
