"""Names and numbers of cells, as trackers log them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robustbench_meta.runtime.digest import digest_of


def cell_key(cell: Mapping[str, Any]) -> str:
    """The key of a cell that failed, or of its training, from the event's `cell` or `cell["training"]`."""
    return digest_of(cell)


def cell_title(spec: Mapping[str, Any], attack: str, eps: str) -> str:
    """`pgd eps=0.1 clean/adv`: what tells a cell from others of its training; the scenario is that of its `spec`."""
    return f"{attack} eps={eps} {spec['support']}/{spec['query']}"


def results_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a finished cell under the names of the leaderboard's columns, but for those that are NaN."""
    from robustbench_meta.evaluation.statistics import mean_and_ci95  # noqa: PLC0415  # with scipy
    from robustbench_meta.results.leaderboard import success_rate  # noqa: PLC0415  # with pandas, which few commands need
    from robustbench_meta.results.records import unpack  # noqa: PLC0415

    clean, robust = unpack(record["clean"]), unpack(record["robust"])
    clean_accuracy, clean_ci95 = mean_and_ci95(clean.mean(1))
    robust_accuracy, robust_ci95 = mean_and_ci95(robust.mean(1))
    found = {
        "clean_accuracy": clean_accuracy,
        "clean_ci95": clean_ci95,
        "robust_accuracy": robust_accuracy,
        "robust_ci95": robust_ci95,
        "attack_success_rate": success_rate(clean, robust),
        **record["timings"],
    }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def settings_of(spec: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What decides a training, flat: `learner.alpha`, `way`, `meta_steps`, … from its `spec`."""
    found: dict[str, Any] = {}
    for part in ("learner", "dataset", "backbone"):
        found[part] = spec[part]["name"]
        found |= {f"{part}.{name}": value for name, value in spec[part]["options"].items()}
    found |= {name: value for name, value in spec.items() if not isinstance(value, dict | list)}
    if spec["attack"] is not None:
        found |= {"training_attack": spec["attack"]["plugin"]["name"], "training_eps": spec["attack"]["eps"]}
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in found.items()}
    return {name: value for name, value in plain.items() if name not in {"attack", "surrogate", "protocol"}}
