"""Tidy frames for pandas: one row an episode, a query, a validation, a comparison or a failure, in documented columns.

What tells cells apart is categorical, in the order of the tables, so that groups, pivots and plots keep that order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta.options import parse_eps
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.learning_curves import learning_curve
from robustbench_meta.results.pairwise import Comparison
from robustbench_meta.results.records import unpack
from robustbench_meta.results.tables import SETTING, THREAT

CELL = [
    "dataset", "way", "shot", "backbone", "norm", "inference", "learner", "attack", "threat_norm", "eps", "eps_value",
    "support", "query", "surrogate", "seed", "recipe_hash", "spec_hash",
]  # fmt: skip
"""What tells cells apart, named as in the leaderboard; `eps_value` is `eps` as a number."""
EPISODES = [*CELL, "episode", "clean_accuracy", "robust_accuracy", "worst_case_accuracy"]
QUERIES = ["learner", "attack", "eps", "eps_value", "support", "query", "seed", "spec_hash", "episode", "image",
           "clean_correct", "robust_correct"]  # fmt: skip
TRAINING = ["dataset", "backbone", "learner", "seed", "training_hash", "step", "loss", "accuracy", "validation_loss",
            "validation_accuracy", "chosen"]  # fmt: skip
COMPARISONS = [*SETTING, *THREAT, "column", "first", "second", "first_accuracy", "second_accuracy", "difference",
               "ci95", "p", "corrected_p", "seeds_p", "ahead"]  # fmt: skip
FAILED = ["learner", "attack", "eps", "support", "query", "seed", "spec_hash", "reason", "before"]
_SUPPORT, _QUERY = ("clean", "adv", "poisoned", "asp", "swap"), ("clean", "adv", "transfer", "certified")


def categorical(frame: pd.DataFrame, board: pd.DataFrame) -> pd.DataFrame:
    """The frame with its names as ordered categories.

    Learners from the best rank on and then by name, `none` before the other attacks, ε by its size.

    Args:
        frame: with some of the columns `CELL`.
        board: the leaderboard's rows, whose order is kept where there is no better one.
    """
    orders: dict[str, list[str]] = {
        "learner": _learners(board),
        "attack": sorted(board["attack"].unique(), key=lambda name: name != "none"),
        "eps": sorted(board["eps"].unique(), key=_size),
        "support": [name for name in _SUPPORT if name in set(board["support"])],
        "query": [name for name in _QUERY if name in set(board["query"])],
        **{name: list(board[name].unique()) for name in
           ("dataset", "backbone", "norm", "inference", "threat_norm", "surrogate", "recipe_hash", "spec_hash")},
    }  # fmt: skip
    made = {
        name: pd.Categorical(frame[name], order, ordered=True)
        for name, order in orders.items()
        if name in frame.columns
    }
    return frame.assign(**made)


def _learners(board: pd.DataFrame) -> list[str]:
    attacked = board[board["rank"].notna()]
    means = attacked.assign(rank=attacked["rank"].astype(float)).groupby("learner")["rank"].mean()
    return sorted(board["learner"].unique(), key=lambda name: (float(means.get(name, np.inf)), name))


def _size(text: str) -> tuple[float, str]:
    return parse_eps(text).value, text


def episodes(board: pd.DataFrame, samples: Samples) -> pd.DataFrame:
    """A row for each cell and test episode, in the leaderboard's order; accuracies are fractions of the queries."""

    def gathered(row: Mapping[Hashable, Any]) -> dict[str, np.ndarray]:
        key = row["spec_hash"]
        robust = samples.robust(key)
        return {
            "episode": np.arange(len(robust)), "clean_accuracy": samples.clean(key), "robust_accuracy": robust,
            "worst_case_accuracy": samples.worst(key),
        }  # fmt: skip

    return _long(board, gathered, EPISODES)


def queries(board: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each cell, test episode and query image, and whether it is answered rightly with and without attack."""

    def gathered(row: Mapping[Hashable, Any]) -> dict[str, np.ndarray]:
        record = records[row["spec_hash"]]
        clean, robust = unpack(record["clean"]), unpack(record["robust"])
        places = np.indices(robust.shape)
        return {
            "episode": places[0].ravel(), "image": places[1].ravel(), "clean_correct": clean.ravel(),
            "robust_correct": robust.ravel(),
        }  # fmt: skip

    return _long(board, gathered, QUERIES)


def _long(
    board: pd.DataFrame, gathered: Callable[[Mapping[Hashable, Any]], dict[str, np.ndarray]], columns: Sequence[str]
) -> pd.DataFrame:
    """The leaderboard's rows, each as often as what is gathered for it is long."""
    rows = board.assign(eps_value=board["eps"].map(lambda text: parse_eps(text).value).astype(float))
    rows = categorical(rows, board)
    parts = [gathered(row) for row in board.to_dict("records")]
    if not parts:
        return pd.DataFrame(columns=list(columns))
    lengths = [len(part["episode"]) for part in parts]
    repeated = rows.loc[rows.index.repeat(lengths)].reset_index(drop=True)
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return repeated.assign(**values)[list(columns)]


def training(board: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each meta-training and validation of it; `chosen`: the weights of this step are those that are tested.

    Empty for learners that were not meta-trained here. See `learning.Validation` for what is meant by the numbers.
    """
    rows = []
    for row in board.drop_duplicates("training_hash").to_dict("records"):
        record = records[row["spec_hash"]]
        about = {name: row[name] for name in ("dataset", "backbone", "learner", "seed", "training_hash")}
        for entry in learning_curve(record):
            rows.append({**about, **entry._asdict(), "chosen": entry.step == record.get("chosen_step")})
    return categorical(pd.DataFrame(rows, columns=TRAINING), board)


def comparisons(comparisons: Iterable[Comparison]) -> pd.DataFrame:
    """A row for each two learners, threat and column of a table; `ahead` names the better one, or is empty.

    Accuracies and `difference` (first − second) are fractions, `ci95` half of its 95 % interval; `p` is of the paired
    test over episodes, `corrected_p` by Holm's correction for all rows (equal ones are one test), `seeds_p` of the test
    over seeds (NaN unless both have several). They are told apart where `ahead` is not empty.
    """
    rows = []
    for pair in comparisons:
        for column, contrast in pair.contrasts.items():
            one, two = pair.scores[column]
            accuracies = {"first_accuracy": one.mean / 100, "second_accuracy": two.mean / 100}
            tests = {**contrast.paired._asdict(), "corrected_p": contrast.corrected, "seeds_p": contrast.seeds_p}
            ahead = {1: pair.first, -1: pair.second}.get(contrast.ahead, "")
            names = {"column": column, "first": pair.first, "second": pair.second}
            rows.append({**pair.setting, **names, **accuracies, **tests, "ahead": ahead})
    return pd.DataFrame(rows, columns=COMPARISONS)


def failed(told: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each cell that failed, and why; `before`: in an earlier run, and not tried again in this one."""
    rows = [{name: _printable(value) for name, value in row.items()} for row in told]
    return pd.DataFrame(rows, columns=FAILED)


def failure_text(row: Mapping[Any, Any]) -> str:
    """A row of the frame of failed cells in one line: which cell, and why."""
    eps, support, query, seed = ("" if pd.isna(row[name]) else str(row[name]) for name in FAILED[2:6])
    threat = f" eps={eps} {support}/{query}" if eps else ""
    return f"{row['attack']}{threat} on {row['learner']}{f' (seed {seed})' if seed else ''}: {row['reason']}"


def failures_in(folder: Path) -> pd.DataFrame:
    """The same of a results folder; a note that is damaged is left out."""
    found = [told for path in sorted((folder / "failures").glob("[!.]*.json")) if (told := _failure(path)) is not None]
    return failed(found)


def _failure(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        labels = {name: str(note["labels"][name]) for name in ("learner", "attack", "eps", "support", "query")}
        about = {"spec_hash": str(note["key"]), "reason": str(note["reason"]), "before": True}
        return {**labels, "seed": int(note["labels"]["seed"]), **about}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _printable(value: Any) -> Any:
    """A text without what would steer a terminal; anything else as it is."""
    return "".join(each if each.isprintable() else " " for each in value) if isinstance(value, str) else value
