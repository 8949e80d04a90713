"""What a look at a machine finds."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "note", "wrong"]
LEAST_BYTES = 2 * 2**30
"""Of free memory, and of disk space: with less, the profile `quick` may not come to its end."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    about: str
    state: State
    """`wrong`: a run cannot work as it is; `note`: it can, and there is something to know."""
    seen: str
    mend: str = ""
    """What to do, as a sentence or a command."""


def one_line(text: str) -> str:
    """Text of others, on one line and printable."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def size(count: int) -> str:
    """`1.5 GiB`."""
    return f"{count / 2**30:.1f} GiB"
