"""A results folder named on the command line, read for a command that shows what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robustbench_meta.errors import BenchError

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_meta.samples import Samples
    from robustbench_meta.store import Store


_NOTHING = "the folder {0} holds no finished cells: `bench run --results {0}` makes some"


class Results(NamedTuple):
    """What a folder holds: a row a finished cell, and what each episode gave."""

    store: Store
    frame: pd.DataFrame
    samples: Samples


def read_results(folder: Path) -> Results:
    """Read the finished cells of a results folder.

    Raises:
        BenchError: there is no such folder, it is none of `bench run`, or no cell in it is finished.
    """
    if not (folder / "records").is_dir():
        if folder.is_file():
            raise BenchError(f"{folder} is a file; name a folder that `bench run --results DIR` wrote to")
        state = "holds no records" if folder.is_dir() else "does not exist"
        raise BenchError(f"the folder {folder} {state}; name one that `bench run --results DIR` wrote to")
    if not any((folder / "records").glob("*.json")):
        raise BenchError(_NOTHING.format(folder))
    from robustbench_meta.leaderboard import read
    from robustbench_meta.store import Store

    store = Store(folder)
    frame, samples = read(store)
    if frame.empty:
        raise BenchError(_NOTHING.format(folder))
    return Results(store, frame, samples)
