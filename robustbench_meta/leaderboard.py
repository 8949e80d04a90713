"""The leaderboard: derived from the records, and from nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta.files import write_atomically
from robustbench_meta.statistics import mean_and_ci95, worst_decile
from robustbench_meta.store import Store, unpack

COLUMNS = [
    "dataset", "way", "shot", "backbone", "norm", "learner", "attack", "threat_norm", "eps", "support", "query", "seed",
    "episodes", "clean_accuracy", "clean_ci95", "robust_accuracy", "robust_ci95", "worst_case_accuracy",
    "attack_success_rate", "worst_decile_accuracy", "inference", "flags", "train_seconds", "adapt_ms_per_task",
    "attack_ms_per_task", "parameters", "device", "version", "spec_hash",
    "queries", "meta_steps", "tasks_per_step", "training_attack", "training_eps",
    "training_hash", "recipe_hash", "attack_hash", "precision", "peak_memory_mb",
]  # fmt: skip
"""The CSV's columns, in order. Accuracies are fractions; `…_ci95` are half-widths of 95 % intervals over episodes."""

TIMINGS = ["train_seconds", "adapt_ms_per_task", "attack_ms_per_task"]
COSTS = [*TIMINGS, "peak_memory_mb"]
"""The columns that differ from run to run."""

_ORDER = [
    "dataset",
    "way",
    "shot",
    "backbone",
    "inference",
    "eps",
    "support",
    "query",
    "learner",
    "attack",
    "recipe_hash",
    "attack_hash",
    "seed",
    "spec_hash",
]


def build(store: Store, keys: Collection[str] | None = None) -> pd.DataFrame:
    """One row a record (of these keys only, if any are given), in an order that does not depend on when it was made.

    `worst_case_accuracy` is over the attacks of the rows that are built.
    """
    records = [record for record in store.records() if keys is None or record["key"] in keys]
    worst = _worst_cases(records)
    rows = [_row(record, worst[_rivals(record)]) for record in records]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values(_ORDER, ignore_index=True) if rows else frame


def write(store: Store) -> Path:
    """Write `leaderboard.csv` into the results folder."""
    path = store.root / "leaderboard.csv"
    frame = build(store)
    write_atomically(path, lambda part: frame.to_csv(part, index=False, lineterminator="\n"))
    return path


def _rivals(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows must share for their attacks to count into one worst case: learner, ε, norm, scenario, episodes."""
    spec = record["spec"]
    attack = spec["attack"]
    return record["training"], attack["norm"], attack["eps"], spec["support"], spec["query"], spec["episodes"]


def _worst_cases(records: list[dict[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Per group of rivals: the share of queries that stay right under every one of its attacks.

    Of an attack whose code was changed, only the newest record counts.
    """
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: (record["written"], record["key"])):
        plugin = record["spec"]["attack"]["plugin"]
        newest[*_rivals(record), plugin["name"], json.dumps(plugin["options"], sort_keys=True)] = record
    survivors: dict[tuple[Any, ...], np.ndarray] = {}
    for record in newest.values():
        robust, group = unpack(record["robust"]), _rivals(record)
        survivors[group] = survivors[group] & robust if group in survivors else robust
    return {group: float(robust.mean()) for group, robust in survivors.items()}


def _row(record: Mapping[str, Any], worst_case: float) -> dict[str, Any]:
    spec, labels, timings = record["spec"], record["labels"], record["timings"]
    clean, robust = unpack(record["clean"]), unpack(record["robust"])
    clean_accuracy, clean_ci95 = mean_and_ci95(clean.mean(1))
    robust_accuracy, robust_ci95 = mean_and_ci95(robust.mean(1))
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
        "inference": record["inference"], "flags": " ".join(record["flags"]),
        **{name: round(timings[name], 3) for name in TIMINGS},
        "parameters": record["parameters"], "device": record["device"],
        "version": record["versions"]["robustbench_meta"], "spec_hash": record["key"],
        "queries": spec["training"]["query"], "meta_steps": spec["training"]["meta_steps"],
        "tasks_per_step": spec["training"]["tasks_per_step"],
        "training_attack": labels["training_attack"], "training_eps": labels["training_eps"],
        "training_hash": record["training"],
        "recipe_hash": _digest({name: value for name, value in spec["training"].items() if name != "seed"}),
        "attack_hash": _digest(spec["attack"]),
        "precision": record["precision"], "peak_memory_mb": _peak(record.get("memory") or {}),
    }  # fmt: skip


def _peak(memory: Mapping[str, int | None]) -> float:
    """The larger of training's and evaluation's peak in MB of 2²⁰ bytes; NaN where it is not known."""
    known = [count for count in memory.values() if count is not None]
    return round(max(known) / 2**20, 1) if known else float("nan")


def _digest(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def success_rate(clean: np.ndarray, robust: np.ndarray) -> float:
    """Share of the queries that are right without the attack and wrong with it; NaN if none is right without."""
    return float((clean & ~robust).sum() / clean.sum()) if clean.any() else float("nan")
