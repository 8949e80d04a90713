"""A results folder named on the command line, read for a command that shows what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from robustbench_meta.errors import BenchError

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_meta.results.episode_accuracies import Samples
    from robustbench_meta.results.store import Store


SHOWN = "What is shown (as the tables name it; repeat an option for several)"
Learners = Annotated[
    list[str] | None, typer.Option("--learner", "-l", metavar="NAME", rich_help_panel=SHOWN, help="Only this learner.")
]
Attacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attack", "-a", metavar="NAME", rich_help_panel=SHOWN,
        help="Only this attack; the worst case is then over those that are shown.",
    ),
]  # fmt: skip
Eps = Annotated[list[str] | None, typer.Option("--eps", metavar="EPS", rich_help_panel=SHOWN, help="Only this ε.")]
Scenarios = Annotated[
    list[str] | None,
    typer.Option("--scenario", metavar="SUPPORT/QUERY", rich_help_panel=SHOWN, help="Only this scenario."),
]

_NOTHING = "the folder {0} holds no finished cells: `bench run --results {0}` makes some"


class FolderResults(NamedTuple):
    """What a folder holds: a row a finished cell, and what each episode gave."""

    store: Store
    frame: pd.DataFrame
    samples: Samples


def read_results(folder: Path) -> FolderResults:
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
    from robustbench_meta.results.leaderboard import read
    from robustbench_meta.results.store import Store

    store = Store(folder)
    frame, samples = read(store)
    if frame.empty:
        raise BenchError(_NOTHING.format(folder))
    return FolderResults(store, frame, samples)


def read_selected(
    folder: Path, learners: list[str] | None, attacks: list[str] | None, eps: list[str] | None,
    scenarios: list[str] | None,
) -> tuple[list[str], FolderResults]:  # fmt: skip
    """Read part of a results folder: the names of all its learners, and the finished cells that were chosen.

    Worst cases, ranks and flags that come from comparing rows are over the chosen cells.

    Raises:
        BenchError: as of `read_results`; or nothing in it is what was chosen.
    """
    results = read_results(folder)
    names = sorted(set(results.frame["learner"]))
    from robustbench_meta.results.leaderboard import read
    from robustbench_meta.results.selection import Selection

    chosen = Selection(learners or (), attacks or (), eps or (), scenarios or ())
    if chosen.everything:
        return names, results
    return names, FolderResults(results.store, *read(results.store, chosen.keys(results.frame)))
