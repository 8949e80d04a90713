"""What a run or a results folder gave, as frames for pandas and as tables to look at."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from robustbench_meta.errors import BenchError
from robustbench_meta.reporting.table import export_table
from robustbench_meta.reporting.terminal.tables import all_tables
from robustbench_meta.reporting.wording import export_notes, title
from robustbench_meta.results import frames
from robustbench_meta.results.curves import Curve, curves, to_frame
from robustbench_meta.results.leaderboard import rows_of
from robustbench_meta.results.pairwise import compare_learners, judged
from robustbench_meta.results.store import Store

_WIDTH = 100
_MOST_TABLES = 20
"""In a notebook."""


class Results:
    """Finished cells: their leaderboard, what each episode gave, comparisons; a notebook shows the tables.

    The worst case, ranks and the flags that come from comparing rows are over these cells. Frames are made when they
    are first asked for, and are yours to change.

    Args:
        records: of the cells, as `store.Store.records` gives them.
        failed: a row for each cell that failed, see `frames.FAILED`.
        path: the results folder; None if there is none.
    """

    def __init__(
        self, records: Iterable[Mapping[str, Any]], failed: pd.DataFrame | None = None, path: Path | None = None
    ) -> None:
        self._records = {record["key"]: record for record in records}
        self._frame, self._samples = rows_of(list(self._records.values()))
        self.failed: pd.DataFrame = frames.failed([]) if failed is None else failed
        """A row for each cell that failed, with its `reason`; empty if all is well."""
        self.path: Path | None = path
        """The results folder; None if nothing is kept."""

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """A row for each cell, with the columns and the order of `leaderboard.csv`; accuracies are fractions."""
        return self._frame.copy()

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """A row for each cell and test episode: `clean_accuracy`, `robust_accuracy` and `worst_case_accuracy`.

        The same `episode` is the same task for all learners and attacks of a data set, way, shot and number of queries.
        """
        return frames.episodes(self._frame, self._samples)

    @cached_property
    def queries(self) -> pd.DataFrame:
        """A row for each cell, episode and query image: whether it is answered rightly without and with the attack."""
        return frames.queries(self._frame, self._records)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row for each point of an accuracy-over-ε curve, with the columns of `curves.csv`; empty without a sweep."""
        return to_frame(self._curves)

    @cached_property
    def training(self) -> pd.DataFrame:
        """A row for each validation in the meta-trainings behind these cells: loss and accuracy by step."""
        return frames.training(self._frame, self._records)

    def comparisons(self, first: str | None = None, second: str | None = None) -> pd.DataFrame:
        """Compare learners in pairs, episode by episode; see `frames.comparisons` for the columns.

        Args:
            first: a learner as the tables name it; None, as `second`: all pairs.
            second: another one.

        Raises:
            BenchError: an unknown learner, one name alone, or no two learners share a setting.
        """
        if (first is None) != (second is None):
            raise BenchError(f"one learner was named, '{first or second}'; name two to compare, or none for all pairs")
        return frames.comparisons(compare_learners(self._frame, self._samples, first, second))

    @cached_property
    def _curves(self) -> Sequence[Curve]:
        return curves(self._frame, self._samples)

    def __len__(self) -> int:
        """How many cells are finished."""
        return len(self._frame)

    def __repr__(self) -> str:
        """In one line."""
        kept = "nothing kept" if self.path is None else f"path={str(self.path)!r}"
        return f"<Results: {len(self)} finished, {len(self.failed)} failed, {kept}>"

    def __str__(self) -> str:
        """The tables, as `bench leaderboard` shows them."""
        console = Console(file=io.StringIO(), width=_WIDTH, force_terminal=False, color_system=None, record=True)
        for table in all_tables(self._frame, self._samples, _WIDTH):
            console.print(table)
        text = "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip()
        told = [f"failed: {frames.failure_text(row)}" for row in self.failed.to_dict("records")]
        return "\n".join([text, *told] if text else told) or repr(self)

    def _repr_html_(self) -> str:
        """The tables, in a notebook."""
        boards = list(judged(self._frame, self._samples))
        notes = [export_notes(board) for board in boards]
        everywhere = [note for note in notes[0] if all(note in others for others in notes)] if notes else []
        shown = [
            (title(board.setting), export_table(board), [note for note in mine if note not in everywhere])
            for board, mine in zip(boards[:_MOST_TABLES], notes, strict=False)
        ]
        environment = Environment(
            loader=PackageLoader("robustbench_meta.reporting.html"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        return environment.get_template("notebook.html.jinja").render(
            tables=shown,
            more=len(boards) - len(shown),
            everywhere=everywhere,
            failed=[frames.failure_text(row) for row in self.failed.to_dict("records")],
        )


def load_results(folder: str | os.PathLike[str] = "results") -> Results:
    """Read all finished cells of a results folder; nothing is written there.

    Args:
        folder: one that `run`, `evaluate` or `bench run` wrote to.

    Raises:
        BenchError: there is no such folder, it holds no records, or no cell in it is finished.

    Examples:
        >>> from robustbench_meta import load_results
        >>> results = load_results("results")
        >>> means = results.episodes.groupby(["learner", "attack"], observed=True)["robust_accuracy"].mean()
        >>> bool(means["maml", "fgsm"] <= means["maml", "none"])
        True
    """
    path = Path(folder)
    if not str(folder).strip() or not (path / "records").is_dir():
        state = "is a file" if path.is_file() else "holds no records" if path.is_dir() else "does not exist"
        raise BenchError(f"the folder {str(folder)!r} {state}; name one that `bench run --results DIR` wrote to")
    found = Results(Store(path, write=False).records(), frames.failures_in(path), path)
    if not len(found) and found.failed.empty:
        raise BenchError(f"the folder {str(folder)!r} holds no finished cells: `bench run --results DIR` makes some")
    return found
