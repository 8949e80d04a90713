"""What a results folder shows: how far a run on it has come, and whether it is as it must be."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.checkpoints import check_checkpoint
from robustbench_meta.results.leaderboard import COSTS
from robustbench_meta.results.records import read_record

_FOLDERS = ("records", "checkpoints", "progress", "failures", ".")
_PASSING = {"timings", "memory", "written"}
"""What differs in the records of two runs."""
STARTING = "starting"
TRAINING = "training, state kept"
EVALUATING = "evaluating, parts kept"
BETWEEN = "before the first is kept, or between"
TABLES = "all records written"


def temporary(results: Path) -> bool:
    """Whether a file is being written there, or was when its writer was killed."""
    return any(any((results / folder).glob(".*.part")) for folder in _FOLDERS)


def phase(results: Path, cells: int) -> str:
    """How far a run has come, from what is on disk."""
    if not (results / "records").exists():
        return STARTING
    if len(list((results / "records").glob("[!.]*.json"))) == cells:
        return TABLES
    kept = [path.name for path in (results / "progress").glob("[!.]*")]
    if any("-" in name for name in kept):
        return EVALUATING
    return TRAINING if kept else BETWEEN


def litter(results: Path) -> int:
    """How many files there are that nobody needs once all is done."""
    return len(list((results / "progress").glob("[!.]*"))) + sum(
        len(list((results / folder).glob(".*.part"))) for folder in _FOLDERS
    )


def damage(results: Path) -> list[str]:
    """What is there and not whole; touches nothing."""
    found = [f"{path.name} was set aside" for path in (results / "damaged").glob("*")]
    for path in (results / "records").glob("[!.]*.json"):
        try:
            read_record(path)
        except BenchError as error:
            found.append(str(error))
    for path in (results / "checkpoints").glob("[!.]*"):
        try:
            check_checkpoint(path.read_bytes(), path.stem)
        except BenchError as error:
            found.append(f"{path.name}: {error}")
    return found


def faults(results: Path, reference: Path) -> list[str]:
    """In what a results folder differs from that of an uninterrupted run, but for costs; and what is wrong with it."""
    return [
        *damage(results),
        *(f"failed: {path.read_text()}" for path in (results / "failures").glob("*")),
        *(f"{path.name} is still locked" for path in _locked(results / ".locks")),
        *_rows(results, reference), *_records(results, reference), *_weights(results, reference),
    ]  # fmt: skip


def board(results: Path) -> pd.DataFrame:
    """The leaderboard as text, without what differs from run to run."""
    read: pd.DataFrame = pd.read_csv(results / "leaderboard.csv", dtype=str, keep_default_na=False)
    return read.drop(columns=COSTS)


def _rows(results: Path, reference: Path) -> Iterator[str]:
    found, expected = board(results), board(reference)
    if list(found.columns) != list(expected.columns) or found.shape != expected.shape:
        yield f"leaderboard.csv has {found.shape} rows and columns instead of {expected.shape}"
    elif not found.equals(expected):
        names = [name for name in found.columns if list(found[name]) != list(expected[name])]
        yield f"leaderboard.csv differs in {', '.join(names)}"


def _records(results: Path, reference: Path) -> Iterator[str]:
    found, expected = _by_name(results / "records"), _by_name(reference / "records")
    if set(found) != set(expected):
        yield f"there are {len(found)} records instead of {len(expected)}, or others"
    for name in sorted(set(found) & set(expected)):
        mine, other = _lasting(found[name]), _lasting(expected[name])
        if mine != other:
            yield f"record {name} differs in {', '.join(key for key in other if mine.get(key) != other[key])}"


def _by_name(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.glob("[!.]*")}


def _lasting(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in record.items() if name not in {*_PASSING, "checksum"}}


def _weights(results: Path, reference: Path) -> Iterator[str]:
    found, expected = _by_name(results / "checkpoints"), _by_name(reference / "checkpoints")
    if set(found) != set(expected):
        yield f"there are {len(found)} checkpoints instead of {len(expected)}, or others"
    for name in sorted(set(found) & set(expected)):
        mine, other = load_file(found[name]), load_file(expected[name])
        if set(mine) != set(other) or not all(torch.equal(mine[key], other[key]) for key in other):
            yield f"checkpoint {name} has other weights"
        with safe_open(found[name], "pt") as a, safe_open(expected[name], "pt") as b:
            told, wanted = (json.loads(each.metadata()["training"]) for each in (a, b))
        if (told["history"], told["chosen_step"], told["plan"]) != (
            wanted["history"], wanted["chosen_step"], wanted["plan"],
        ):  # fmt: skip
            yield f"checkpoint {name} came about otherwise"


def _locked(folder: Path) -> Iterator[Path]:
    """The system's locks that somebody holds."""
    for path in folder.glob("*.lock"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path
