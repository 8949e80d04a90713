"""The leaderboard: derived from the records, and from nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta.evaluation.statistics import mean_and_ci95, worst_decile
from robustbench_meta.results.corruptions import kind_tables, write_corruptions
from robustbench_meta.results.cross_row_flags import flags_between
from robustbench_meta.results.csv_safety import harmless_frame
from robustbench_meta.results.curves import curves, write_curves
from robustbench_meta.results.episode_accuracies import Samples, surrogate_of
from robustbench_meta.results.pairwise import ranks
from robustbench_meta.results.store import Store, unpack
from robustbench_meta.results.tables import SETTING, distinct_labels
from robustbench_meta.runtime.atomic_files import write_atomically
from robustbench_meta.runtime.digest import digest_of

COLUMNS = [
    "dataset", "way", "shot", "backbone", "norm", "learner", "attack", "threat_norm", "eps", "support", "query", "seed",
    "episodes", "clean_accuracy", "clean_ci95", "robust_accuracy", "robust_ci95", "worst_case_accuracy",
    "attack_success_rate", "worst_decile_accuracy", "inference", "flags", "train_seconds", "adapt_ms_per_task",
    "attack_ms_per_task", "parameters", "device", "version", "spec_hash",
    "queries", "meta_steps", "tasks_per_step", "training_attack", "training_eps",
    "training_hash", "recipe_hash", "attack_hash", "precision", "peak_memory_mb",
    "surrogate", "warm_start", "check_ms_per_task", "worst_case_ci95", "rank", "black_box_accuracy",
    "forward_per_image", "gradients_per_image", "data_hash", "copies",
]  # fmt: skip
"""The CSV's columns, in order. Accuracies are fractions; `…_ci95` are half-widths of 95 % intervals over episodes."""

TIMINGS = ["train_seconds", "adapt_ms_per_task", "attack_ms_per_task", "check_ms_per_task"]
COSTS = [*TIMINGS, "peak_memory_mb"]
"""The columns that differ from run to run."""

_ORDER = [
    "dataset", "way", "shot", "backbone", "inference", "eps", "support", "query", "surrogate", "learner", "attack",
    "recipe_hash", "attack_hash", "seed", "episodes",
]  # fmt: skip
"""Rows that agree in all of it tell the same cell; the newest of them comes first."""


def build(store: Store, keys: Collection[str] | None = None) -> pd.DataFrame:
    """One row a record (of these keys only, if any are given), in an order that does not depend on when it was made.

    But of several records of one cell, with and without checks, the newest comes first. `surrogate` has the first
    digits of a hash behind a name that stands for several models, and `dataset` behind one of several versions.

    `worst_case_accuracy`, `rank` and the flags that come from comparing rows are over the rows that are built.
    """
    return read(store, keys)[0]


def read(store: Store, keys: Collection[str] | None = None) -> tuple[pd.DataFrame, Samples]:
    """The same rows, with what each episode gave."""
    return rows_of([record for record in store.records() if keys is None or record["key"] in keys])


def rows_of(records: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, Samples]:
    """The rows of these records, with what each episode gave."""
    samples, flags = Samples(records), flags_between(records)
    rows = [_row(record, samples, flags.get(record["key"], [])) for record in records]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    if rows:
        models = [digest_of(surrogate_of(record["spec"])) for record in records]
        frame["surrogate"] = distinct_labels(frame.assign(model=models), "surrogate", "model")
        frame["dataset"] = _data_apart(frame, [record["episodes_digest"] for record in records])
        dated = frame.assign(written=[record["written"] for record in records])
        ascending = [*([True] * len(_ORDER)), False, True]
        frame = dated.sort_values([*_ORDER, "written", "spec_hash"], ascending=ascending, ignore_index=True)[COLUMNS]
    return frame.assign(rank=ranks(frame, samples)), samples


def _data_apart(frame: pd.DataFrame, episodes: Sequence[str]) -> pd.Series[str]:
    """Data sets, with digits of a hash behind a name whose images were changed in between, or of whose episodes.

    So rows of other images or episodes share no table, figure, mean, rank or comparison.
    """
    frame = frame.assign(dataset=distinct_labels(frame, "dataset", "data_hash"), episodes_hash=episodes)
    several = frame.groupby(SETTING, dropna=False)["episodes_hash"].transform("nunique") > 1
    return frame["dataset"].where(~several, frame["dataset"] + " @" + frame["episodes_hash"].str[:4])


def write(store: Store) -> Path:
    """Write `leaderboard.csv` into the results folder.

    Beside it `curves.csv` if an attack was run at several ε, and `corruptions.csv` if several kinds of them were run.
    """
    path = store.root / "leaderboard.csv"
    with store.locks.alone("leaderboard"):  # else another run, which read the records earlier, might write later
        frame, samples = read(store)
        write_atomically(path, lambda part: harmless_frame(frame).to_csv(part, index=False, lineterminator="\n"))
        write_curves(store.root / "curves.csv", curves(frame, samples))
        write_corruptions(store.root / "corruptions.csv", kind_tables(frame, samples))
    return path


def _row(record: Mapping[str, Any], samples: Samples, flags: Collection[str]) -> dict[str, Any]:
    """A record's row, but for its rank; `flags` are those that come from comparing it with others."""
    spec, labels, timings = record["spec"], record["labels"], record["timings"]
    clean, robust = unpack(record["clean"]), unpack(record["robust"])
    clean_accuracy, clean_ci95 = mean_and_ci95(clean.mean(1))
    robust_accuracy, robust_ci95 = mean_and_ci95(robust.mean(1))
    worst_case, worst_case_ci95 = mean_and_ci95(samples.worst(record["key"]))
    return {
        **{name: labels[name] for name in ("dataset", "backbone", "learner", "attack")},
        "way": spec["training"]["way"], "shot": spec["training"]["shot"], "norm": record["norm_layer"],
        "threat_norm": spec["attack"]["norm"], "eps": labels["eps"], "support": spec["support"], "query": spec["query"],
        "seed": spec["training"]["seed"], "episodes": spec["episodes"],
        "clean_accuracy": round(clean_accuracy, 6), "clean_ci95": round(clean_ci95, 6),
        "robust_accuracy": round(robust_accuracy, 6), "robust_ci95": round(robust_ci95, 6),
        "worst_case_accuracy": round(worst_case, 6),
        "attack_success_rate": round(success_rate(clean, robust), 6),
        "worst_decile_accuracy": round(worst_decile(robust.mean(1)), 6),
        "inference": record["inference"], "flags": " ".join(sorted({*record["flags"], *flags})),
        **{name: round(timings.get(name, 0.0), 3) for name in TIMINGS},
        "parameters": record["parameters"], "device": record["device"],
        "version": record["versions"]["robustbench_meta"], "spec_hash": record["key"],
        "queries": spec["training"]["query"], "meta_steps": spec["training"]["meta_steps"],
        "tasks_per_step": spec["training"]["tasks_per_step"],
        "training_attack": labels["training_attack"], "training_eps": labels["training_eps"],
        "training_hash": record["training"],
        "recipe_hash": digest_of({name: value for name, value in spec["training"].items() if name != "seed"}),
        "attack_hash": digest_of(
            {"attack": spec["attack"], "code": spec.get("code"), "surrogate": surrogate_of(spec)}
        ),
        "precision": record["precision"], "peak_memory_mb": _peak(record.get("memory") or {}),
        "surrogate": labels.get("surrogate", "none"), "warm_start": labels.get("warm_start", ""),
        "worst_case_ci95": round(worst_case_ci95, 6),
        "black_box_accuracy": float((record.get("checks") or {}).get("accuracies", {}).get("black box", "nan")),
        **{
            name: round(float((record.get("cost") or {}).get(name, "nan")), 3)
            for name in ("forward_per_image", "gradients_per_image")
        },
        "data_hash": digest_of({"fingerprint": spec["training"].get("fingerprint", "")}),
        "copies": labels.get("copies", ""),
    }  # fmt: skip


def _peak(memory: Mapping[str, int | None]) -> float:
    """The larger of training's and evaluation's peak in MB of 2²⁰ bytes; NaN where it is not known."""
    known = [count for count in memory.values() if count is not None]
    return round(max(known) / 2**20, 1) if known else float("nan")


def success_rate(clean: np.ndarray, robust: np.ndarray) -> float:
    """Share of the queries that are right without the attack and wrong with it; NaN if none is right without."""
    return float((clean & ~robust).sum() / clean.sum()) if clean.any() else float("nan")
