"""Where the command line writes: results to stdout, errors and progress to stderr."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def out() -> Console:
    """Stdout; without control codes when it is not a terminal."""
    return Console(highlight=False)


def err() -> Console:
    """Stderr."""
    return Console(stderr=True, highlight=False)


def tell_error(message: str) -> None:
    """One message on stderr; names between quotes and options are not taken for markup."""
    console = err()
    console.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=not console.is_terminal)


def counted(count: int, noun: str) -> str:
    """`1 cell`, `3 cells`, `1,200 cells`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
