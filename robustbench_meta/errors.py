"""Errors that a user reads: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """The key of the cell that was being evaluated."""


def brief(error: BaseException) -> str:
    """The kind of an error and what it says, in one line that can be printed whatever it is about."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


_PACKAGE = Path(__file__).resolve().parent
_PYTHON = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_LIBRARIES = {"robustbench_meta", "torch", "torchattacks", "torchvision", "numpy", "scipy", "pydantic", "pluggy"}


def located(error: BaseException) -> str:
    """The kind of an error, what it says, and the last line of the author's own code that it came through."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{place_of(error)}"


def place_of(error: BaseException) -> str:
    """` (line 12 of mine.py)`, of code that is neither this package, nor a library's that it needs, nor Python's."""
    known = vars(error).get("_place")
    if known is not None:
        return str(known)
    while error.__cause__ is not None and not isinstance(error.__cause__, BenchError):
        error = error.__cause__
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    return f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""


def is_library(file: str) -> bool:
    """Whether a file is Python's, this package's, or of a library that it needs."""
    parts = Path(file).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return bool(_LIBRARIES & set(parts[parts.index(folder) + 1 :][:1]))
    return file.startswith(("<frozen", *_PYTHON)) or Path(file).is_relative_to(_PACKAGE)


def traceback_of(error: BaseException) -> str:
    """The traceback of an error, as text."""
    return str(vars(error).get("_traceback") or "".join(traceback.format_exception(error)))


def keep_traceback(error: BaseException) -> None:
    """Keep in an error, as text, what is lost when it goes to another process: where it was raised."""
    vars(error).update(_traceback=traceback_of(error), _place=place_of(error))


def unknown(kind: str, given: str, known: Iterable[str], of: str = "", see: str = "bench list") -> str:
    """Word the message for an unknown name: the nearest names, or all of them, or the command that lists many."""
    names, what = sorted(known), f"unknown {kind} '{given}'{of}"
    if given.lower() in names:
        return f"{what}: did you mean '{given.lower()}'?"
    near = difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.6)
    near = near or [name for name in names if len(given) > 1 and given.lower() in name][:3]
    if near:
        return f"{what}: did you mean {' or '.join(repr(name) for name in near)}?"
    if len(names) > _MOST_LISTED:
        return f"{what}; there are {len(names)}: see `{see}`"
    listed = ", ".join(names) if names else "none"
    return f"{what}; there is: {listed}"


_BOUNDS = {
    "greater than or equal to ": "{} or more",
    "less than or equal to ": "{} or less",
    "greater than ": "more than {}",
}


def expected(message: str) -> str:
    """What pydantic says of a value, as what was expected: `expected 2 or more`."""
    if not message.startswith("Input should be "):
        message = message.removeprefix("Value error, ")
        return message[0].lower() + message[1:]
    message = message.removeprefix("Input should be ").partition(", unable to")[0]
    for said, bound in _BOUNDS.items():
        if message.startswith(said):
            message = bound.format(message.removeprefix(said))
    return f"expected {message}"
