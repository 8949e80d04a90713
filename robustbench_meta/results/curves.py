"""Robustness curves: accuracy over ε, and the area under it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from robustbench_meta.evaluation.statistics import mean_and_ci95
from robustbench_meta.results.csv_safety import harmless_frame
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.tables import SETTING, distinct_labels, with_distinct_learners
from robustbench_meta.runtime.atomic_files import write_atomically

SCENE = ["support", "query", "surrogate", "threat_norm"]
"""What the points of a curve share besides a table's place."""
COLUMNS = [
    *SETTING, *SCENE, "learner", "attack", "warm_start", "seed", "eps", "accuracy", "ci95", "area", "area_ci95",
    "training_hash", "recipe_hash", "spec_hash",
]  # fmt: skip
"""The CSV's columns, one row a point. Accuracies and areas are fractions; `…ci95` half-widths of 95 % intervals."""


@dataclass(frozen=True)
class Curve:
    """Accuracy over ε of one learner and seed under one attack, from ε = 0 on (certificates: from the smallest)."""

    told: Mapping[str, Any]
    """Place, scene, seed, hashes, and the labels of learner and attack."""
    learner: str
    """Told apart from other versions of it."""
    attack: str
    """The same; `(warm)` where each ε starts from what the one before found."""
    eps: tuple[str, ...]
    """As tables show it."""
    values: np.ndarray
    """The numbers [points]."""
    episodes: np.ndarray
    """Accuracy of each episode [points, episodes]."""
    keys: tuple[str, ...]
    """The record of each point; of clean accuracy, the one that it was taken from."""

    def accuracy(self, point: int) -> tuple[float, float]:
        """At that point, with the half-width of its 95 % interval over episodes."""
        return mean_and_ci95(self.episodes[point])

    @property
    def area(self) -> tuple[float, float]:
        """The normalised area under the curve, with the half-width of its 95 % interval over episodes.

        The mean accuracy over ε, from 0 (of certificates, from the smallest ε) to the largest one, by trapezoids:
        (1/ε_max) ∫ accuracy dε, of each episode.
        """
        return mean_and_ci95(trapezoid(self.episodes, self.values, axis=0) / (self.values[-1] - self.values[0]))


def curves(frame: pd.DataFrame, samples: Samples) -> list[Curve]:
    """The curves of attacks that were run at several ε, in the order of the leaderboard.

    A sweep in which each ε starts from what the one before found, and independent runs, are never in one curve. Of
    two versions of a point the newest counts. Where ε = 0 was not run, it is the accuracy without attack.
    """
    found = []
    attacked = frame[frame["threat_norm"] != "none"]
    for _, part in attacked.groupby(SETTING, sort=False, dropna=False):
        named = with_distinct_learners(part)["learner"]
        for _, scene in part.assign(series=part["spec_hash"].map(samples.series)).groupby(SCENE, sort=False):
            attacks = distinct_labels(scene, "attack", "series")
            for _, same in scene.groupby(["recipe_hash", "seed", "series"], sort=False):
                learner, attack = named[same.index[0]], attacks[same.index[0]]
                found += [_curve(same, learner, attack, run, samples) for run in _runs(same, samples) if len(run) > 1]
    return found


def grouped(found: Sequence[Curve]) -> list[list[Curve]]:
    """The curves by what a table or figure of them shares: setting, scenario and list of ε."""
    groups: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in found:
        groups.setdefault((*(curve.told[name] for name in [*SETTING, *SCENE]), curve.eps), []).append(curve)
    return list(groups.values())


def over_seeds(seeds: Sequence[Curve], most: int) -> tuple[np.ndarray, np.ndarray]:
    """A line's mean over seeds and what stands behind ±, in percent: at each ε, and last of the area [points + 1].

    ± is the half-width of the 95 % interval over episodes where no line of the table has several seeds, else the
    standard deviation between seeds (n−1); NaN for one seed beside lines of several.

    Args:
        seeds: the curves of one learner and attack.
        most: the most curves that a line of the same table or figure rests on.
    """
    each = 100 * np.array([[*map(curve.accuracy, range(len(curve.eps))), curve.area] for curve in seeds])
    means = each[:, :, 0].mean(axis=0)
    if most == 1:
        return means, each[0, :, 1]
    return means, each[:, :, 0].std(axis=0, ddof=1) if len(seeds) > 1 else np.full_like(means, np.nan)


def _runs(rows: pd.DataFrame, samples: Samples) -> Iterator[dict[float, str]]:
    """The records of each curve, by ε: those that stand alone, then each sweep that no longer one contains.

    The first ε of a sweep is a record without a sweep, and so is ε = 0. Such records make no curve of what is left of
    a sweep: beside one, two more must stand alone.
    """
    newest: dict[tuple[float, ...], str] = {}
    for key in sorted(rows["spec_hash"], key=lambda key: (samples.written(key), key)):
        newest[samples.path(key)] = key
    sweeps = [
        path for path in sorted(newest)
        if len(path) > 1 and not any(len(other) > len(path) and other[: len(path)] == path for other in newest)
    ]  # fmt: skip
    alone = {path[-1]: key for path, key in sorted(newest.items()) if len(path) == 1}
    if not sweeps or len(alone.keys() - {0.0, *(path[0] for path in sweeps)}) > 1:
        yield alone
    zero = {eps: key for eps, key in alone.items() if eps == 0}
    for path in sweeps:
        steps = [path[: length + 1] for length in range(len(path))]
        yield zero | {step[-1]: newest[step] for step in steps if step in newest}


def _curve(rows: pd.DataFrame, learner: str, attack: str, points: Mapping[float, str], samples: Samples) -> Curve:
    by_key = rows.set_index("spec_hash", drop=False)
    keys, values = list(points.values()), list(points)
    texts = [str(by_key.loc[key, "eps"]) for key in keys]
    accuracies = [samples.robust(key) for key in keys]
    last = by_key.loc[keys[-1]]
    if values[0] > 0 and last["query"] != "certified":  # what is proved at 0 is less than what is right
        keys, values, texts = [keys[0], *keys], [0.0, *values], ["0", *texts]
        accuracies = [samples.clean(keys[0]), *accuracies]
    names = [*SETTING, *SCENE, "learner", "attack", "warm_start", "seed", "training_hash", "recipe_hash"]
    told = {name: last[name] for name in names}
    attack = f"{attack} (warm)" if told["warm_start"] else attack
    return Curve(told, learner, attack, tuple(texts), np.array(values), np.stack(accuracies), tuple(keys))


def to_frame(found: Sequence[Curve]) -> pd.DataFrame:
    """A row for each point of each curve."""
    rows = []
    for curve in found:
        area, area_ci95 = curve.area
        for point, (eps, key) in enumerate(zip(curve.eps, curve.keys, strict=True)):
            accuracy, ci95 = curve.accuracy(point)
            numbers = {"accuracy": accuracy, "ci95": ci95, "area": area, "area_ci95": area_ci95}
            rounded = {name: round(value, 6) for name, value in numbers.items()}
            rows.append({**curve.told, "eps": eps, **rounded, "spec_hash": key})
    return pd.DataFrame(rows, columns=COLUMNS)


def write_curves(path: Path, found: Sequence[Curve]) -> None:
    """Write the curves' CSV; without any, there is no such file."""
    if not found:
        path.unlink(missing_ok=True)
        return
    write_atomically(path, lambda part: harmless_frame(to_frame(found)).to_csv(part, index=False, lineterminator="\n"))
