"""What intervals, tests, ranks and curves rest on: the accuracy of each test episode, out of the records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta.results.records import unpack
from robustbench_meta.results.tables import CLEAN, WORST, has_worst_case, under
from robustbench_meta.runtime.digest import digest_of


@dataclass(frozen=True)
class Sample:
    """A learner in one column of a table: by seed, the accuracy of each episode [episodes]."""

    by_seed: Mapping[int, np.ndarray]
    digest: str
    """Of the episodes: what belongs to others cannot be paired with it."""

    @property
    def episodes(self) -> np.ndarray:
        """The mean over seeds of each episode, which is the same for all seeds [episodes]."""
        return np.asarray(np.stack(list(self.by_seed.values())).mean(axis=0))

    @property
    def means(self) -> np.ndarray:
        """The accuracy of each seed [seeds]."""
        return np.array([values.mean() for values in self.by_seed.values()])

    @property
    def mean(self) -> float:
        """The accuracy, over episodes and seeds."""
        return float(self.means.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracies between seeds (n−1); NaN for one seed."""
        return float(self.means.std(ddof=1)) if len(self.by_seed) > 1 else float("nan")


class Samples:
    """The accuracies of each episode, by the records' keys.

    The worst case is over the attacks of the records that it was made of.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._records = {record["key"]: record for record in records}
        self._survivors = _worst_cases(self._records.values())

    def clean(self, key: str) -> np.ndarray:
        """Without any attack [episodes]."""
        return self._accuracies(unpack(self._records[key]["clean"]))

    def robust(self, key: str) -> np.ndarray:
        """In the record's scenario [episodes]."""
        return self._accuracies(unpack(self._records[key]["robust"]))

    def worst(self, key: str) -> np.ndarray:
        """Share of the queries that stay right under every attack of this learner, ε and scenario [episodes].

        With clean support they must be right without any as well: the unchanged query is in every attack's reach. A
        natural corruption and a certificate have no worst case but their own.
        """
        return self._accuracies(self._survivors[_rivals(self._records[key])])

    def plugin(self, key: str) -> Mapping[str, Any]:
        """The attack of a record: its plugin's name, options and code."""
        found: Mapping[str, Any] = self._records[key]["spec"]["attack"]["plugin"]
        return found

    def series(self, key: str) -> str:
        """A hash of the attack of a record whatever its ε: the plugin, its options and code, and its norm."""
        attack = self._records[key]["spec"]["attack"]
        return digest_of([attack["plugin"], attack["norm"]])

    def path(self, key: str) -> tuple[float, ...]:
        """The ε of a record, after the smaller ones through which its attack came there."""
        attack = self._records[key]["spec"]["attack"]
        return *attack["sweep"], attack["eps"]

    def written(self, key: str) -> str:
        """When the record was written, as text that sorts."""
        return str(self._records[key]["written"])

    def of(self, rows: pd.DataFrame, column: str, attacks: list[str]) -> Sample | None:
        """What a learner's number in a column rests on; None if it has none.

        Args:
            rows: the learner's, of one table.
            column: `clean`, an attack, or `worst case`.
            attacks: over which the worst case is.
        """
        values = {CLEAN: self.clean, WORST: self.worst}.get(column, self.robust)
        part = under(rows, column, attacks)
        keys = [str(key) for key in part["spec_hash"]]
        digests = {str(self._records[key]["episodes_digest"]) for key in keys}
        if len(digests) != 1:  # none, or seeds that saw different episodes
            return None
        return Sample(
            {int(seed): values(key) for seed, key in zip(part.index.tolist(), keys, strict=True)}, digests.pop()
        )

    @staticmethod
    def _accuracies(correct: np.ndarray) -> np.ndarray:
        return np.asarray(correct.mean(1), dtype=np.float64)


def surrogate_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What tells the models apart on which a row's attack was made; empty if it was made on the learner itself.

    Learner and backbone, and of a file its content: the seeds of a surrogate that the run trained are one model.
    """
    if spec["surrogate"] is None:
        return {}
    found: dict[str, Any] = dict(spec["surrogate"])
    if not found["trained"].startswith("file "):
        del found["trained"]
    return found


def _rivals(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows share whose attacks count into one worst case: learner, ε, norm, scenario, surrogate, episodes."""
    spec = record["spec"]
    attack = spec["attack"]
    surrogate = json.dumps(surrogate_of(spec), sort_keys=True)
    support, query = spec["support"], spec["query"]
    if not has_worst_case(attack["norm"], query):
        query = json.dumps([query, attack["plugin"]], sort_keys=True)
    return record["training"], attack["norm"], attack["eps"], support, query, surrogate, spec["episodes"]


def _age(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["written"], record["key"]


def _worst_cases(records: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], np.ndarray]:
    """Per group of rivals: which queries stay right under every one of its attacks [episodes, queries].

    With clean support the weights are those without attack, and each threat model holds the unchanged query: one that
    is wrong without attack is never right. Other support makes other weights, of which that is not known.
    Of an attack whose code was changed, only the newest record counts; of one cell with and without checks, the
    newest with them.
    """
    shown: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for record in sorted(records, key=lambda record: ("unchecked" not in record["flags"], *_age(record))):
        same = json.dumps([record["spec"]["attack"], record["spec"]["code"]], sort_keys=True)
        shown[*_rivals(record), same] = record
    newest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for record in sorted(shown.values(), key=_age):
        attack = record["spec"]["attack"]
        told = attack["plugin"]["name"], attack["plugin"]["options"], attack["sweep"]
        newest[*_rivals(record), json.dumps(told, sort_keys=True)] = record
    survivors: dict[tuple[Any, ...], np.ndarray] = {}
    for record in newest.values():
        robust, group = unpack(record["robust"]), _rivals(record)
        spec = record["spec"]
        if spec["support"] == "clean" and has_worst_case(spec["attack"]["norm"], spec["query"]):
            robust = robust & unpack(record["clean"])
        survivors[group] = survivors[group] & robust if group in survivors else robust
    return survivors
