"""The flags that come from rows standing beside each other: what one attack found that another did not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from robustbench_meta.evaluation.statistics import SURE, above
from robustbench_meta.results.records import unpack
from robustbench_meta.results.tables import has_worst_case


def flags_between(records: Collection[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The flags that come from rows standing beside each other, by the key of the record.

    `fgsm-alone`: no attack of more than one step was run on this learner at this threat. `masked-gradients`: an
    attack that is transferred, or asks for no gradient, does more harm than all white-box ones.
    """
    found: dict[str, list[str]] = {}
    for group in _beside_each_other(records):
        spec = group[0]["spec"]
        if not has_worst_case(spec["attack"]["norm"], spec["query"]):
            continue  # nobody attacks
        white = [record for record in group if record["spec"]["query"] != "transfer"]
        if all(record["method"] in {"single-step", "random"} for record in white):
            for record in white:
                found.setdefault(record["key"], []).append("fgsm-alone")
        others = [record for record in group if record not in white or record["method"] == "black-box"]
        gradient = [record for record in white if record["method"] in {"single-step", "iterative"}]
        iterative = any(record["method"] == "iterative" for record in gradient)
        if not iterative or spec["query"] == "clean" or spec["attack"]["eps"] == 0:
            continue
        worst = np.logical_and.reduce([unpack(record["robust"]) for record in gradient]).mean(1)
        level = SURE / max(len(others), 1)
        if any(above(worst - unpack(record["robust"]).mean(1), 0.0, level) for record in others):
            for record in gradient:
                found.setdefault(record["key"], []).append("masked-gradients")
    return found


def _beside_each_other(records: Collection[Mapping[str, Any]]) -> Iterable[list[Mapping[str, Any]]]:
    """The attacked records of one learner, threat, support and number of episodes; transferred queries among them."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        spec = record["spec"]
        attack, query = spec["attack"], "adv" if spec["query"] == "transfer" else spec["query"]
        if attack["norm"] != "none":
            threat = record["training"], attack["norm"], attack["eps"], spec["support"], query, spec["episodes"]
            groups.setdefault(threat, []).append(record)
    return groups.values()
