"""Accuracy under natural corruptions by kind, over the severities that were run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta.evaluation.statistics import mean_and_ci95
from robustbench_meta.results.csv_safety import harmless_frame
from robustbench_meta.results.curves import SCENE
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.tables import CLEAN, SETTING, with_distinct_learners, without_duplicates
from robustbench_meta.runtime.atomic_files import write_atomically

MEAN, DRAWN = "mean", "all"
"""The mean over kinds, each counted once; and one kind drawn for each image, which is not in it."""
COLUMNS = [*SETTING, *SCENE, "learner", "kind", "seed", "severities", "accuracy", "ci95"]
"""The CSV's columns. Accuracies are fractions; `ci95` half-widths of 95 % intervals over episodes."""
_ATTACK = "corruption"


@dataclass(frozen=True)
class KindTable:
    """Learners under several kinds of corruption in one setting and scenario."""

    told: Mapping[str, Any]
    """Place and scene."""
    severities: tuple[str, ...]
    """Over which the numbers are means, but for the clean ones."""
    kinds: tuple[str, ...]
    """`clean` first; the mean last, if there are two kinds."""
    episodes: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]
    """By learner, seed and kind: the accuracy of each episode [episodes]. A kind that was not run at every severity
    is left out, and a mean that lacks a kind."""

    def number(self, learner: str, kind: str) -> tuple[float, float, int]:
        """Mean over seeds and what stands behind ±, in percent, and the number of seeds; NaN: not known.

        ± is the half-width of the 95 % interval over episodes where all learners have one seed, else the standard
        deviation between seeds (n−1).
        """
        seeds = [100 * values[kind] for values in self.episodes[learner].values() if kind in values]
        if not seeds:
            return np.nan, np.nan, 0
        if self.seeds == 1:
            return *mean_and_ci95(seeds[0]), 1
        means = [values.mean() for values in seeds]
        return float(np.mean(means)), float(np.std(means, ddof=1)) if len(seeds) > 1 else np.nan, len(seeds)

    @property
    def seeds(self) -> int:
        """The most seeds of a learner."""
        return max(map(len, self.episodes.values()))


def kind_tables(frame: pd.DataFrame, samples: Samples) -> list[KindTable]:
    """A table for each setting and scenario in which several kinds were run, in the order of the leaderboard."""
    found = []
    rows = without_duplicates(frame[frame["threat_norm"] == "severity"])
    for _, place in rows.groupby(SETTING, sort=False, dropna=False):
        for _, scene in with_distinct_learners(place).groupby(SCENE, sort=False):
            plugins = [samples.plugin(key) for key in scene["spec_hash"]]
            named = scene.assign(kind=[plugin["options"].get("kind", DRAWN) for plugin in plugins])
            ours = named[[plugin["name"] == _ATTACK for plugin in plugins]]
            if ours["kind"].nunique() > 1:
                found.append(_table(ours, samples))
    return found


def _table(scene: pd.DataFrame, samples: Samples) -> KindTable:
    severities = sorted(set(scene["eps"]), key=float)
    kinds = sorted(set(scene["kind"]), key=lambda kind: (kind == DRAWN, kind))
    single = [kind for kind in kinds if kind != DRAWN]
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for (learner, seed), mine in scene.groupby(["learner", "seed"], sort=False):
        values = {CLEAN: samples.clean(mine["spec_hash"].iloc[0])}
        newest = mine.sort_values("spec_hash", key=lambda keys: keys.map(samples.written))
        for kind, cells in newest.drop_duplicates(["kind", "eps"], keep="last").groupby("kind"):
            if set(cells["eps"]) == set(severities):
                values[str(kind)] = np.mean([samples.robust(key) for key in cells["spec_hash"]], axis=0)
        if values.keys() >= set(single):
            values[MEAN] = np.mean([values[kind] for kind in single], axis=0)
        found.setdefault(str(learner), {})[int(str(seed))] = values
    told = {name: scene[name].iloc[0] for name in [*SETTING, *SCENE]}
    return KindTable(told, tuple(severities), (CLEAN, *kinds, *[MEAN] * (len(single) > 1)), found)


def kinds_frame(found: Sequence[KindTable]) -> pd.DataFrame:
    """A row for each learner, seed and kind of each table."""
    rows = []
    for table in found:
        for learner, seeds in table.episodes.items():
            for seed, values in seeds.items():
                for kind in [kind for kind in table.kinds if kind in values]:
                    accuracy, ci95 = mean_and_ci95(values[kind])
                    named = {"learner": learner, "kind": kind, "seed": seed, "severities": " ".join(table.severities)}
                    rows.append({**table.told, **named, "accuracy": round(accuracy, 6), "ci95": round(ci95, 6)})
    return pd.DataFrame(rows, columns=COLUMNS)


def write_corruptions(path: Path, found: Sequence[KindTable]) -> None:
    """Write the tables' CSV; without any, there is no such file."""
    if not found:
        path.unlink(missing_ok=True)
        return
    write_atomically(
        path, lambda part: harmless_frame(kinds_frame(found)).to_csv(part, index=False, lineterminator="\n")
    )
