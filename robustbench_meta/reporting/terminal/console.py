"""Where the command line writes: results to stdout, errors and progress to stderr."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.text import Text


def out() -> Console:
    """Stdout; without control codes when it is not a terminal."""
    return Console(highlight=False)


def err() -> Console:
    """Stderr."""
    return Console(stderr=True, highlight=False)


def is_screen(console: Console) -> bool:
    """Whether what is written can be written over: a terminal that can, not a file that only wants colours."""
    return console.is_interactive and not console.is_dumb_terminal and console.file.isatty()


def working(on: str) -> AbstractContextManager[Any]:
    """Something that turns while something takes long; nothing where there is no terminal."""
    console = err()
    return console.status(on) if is_screen(console) else nullcontext()


def print_error(message: str) -> None:
    """One message on stderr; names between quotes and options are not taken for markup."""
    console = err()
    console.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=not console.is_terminal)


def counted(count: int, noun: str) -> str:
    """`1 cell`, `3 cells`, `1,200 cells`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
