"""What the terminal's tables show: the leaderboard's rows, grouped by what may be compared, and ranked."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from robustbench_meta.errors import BenchError
from robustbench_meta.options import parse_eps

CLEAN, WORST = "clean", "worst case"
SETTING = [
    "dataset", "way", "shot", "queries", "backbone", "norm", "inference", "precision", "episodes", "meta_steps",
    "tasks_per_step",
]  # fmt: skip
"""What learners must share to be compared at all."""
THREAT = ["support", "query", "surrogate", "threat_norm", "eps"]
"""What their attacks must share besides."""
MODEL_FLAGS = frozenset({
    "probabilities", "random-outputs", "remembers", "zero-gradients", "masked-gradients", "flat-in-eps",
    "robust-at-full-range",
})  # fmt: skip
"""Flags of the model or its gradients: from the row of any attack they reach the worst case as well."""
DISQUALIFYING = frozenset({
    "remembers", "zero-gradients", "no-effect", "weaker-than-noise", "weaker-than-fgsm", "above-clean",
    "masked-gradients", "flat-in-eps", "robust-at-full-range",
})  # fmt: skip
"""Flags that say that a number is too high: its learner has no rank by it."""
_EXTRAS = {"success": ("attack_success_rate", "max"), "worst 10 %": ("worst_decile_accuracy", "min")}
"""What wide tables tell besides: a column, and which of the attacks' counts; a mean over seeds."""


@dataclass(frozen=True)
class Score:
    """A number of a table in percent: the mean over seeds, its spread (NaN: none to show), and how many seeds."""

    mean: float
    spread: float
    seeds: int
    flags: frozenset[str] = frozenset()
    black_box: float = math.nan
    """What the black-box probe left, in percent, where gradients are masked and it left less; else NaN."""

    def text(self) -> str:
        """The mean as shown."""
        return "–" if math.isnan(self.mean) else shown(self.mean)


def shown(points: float) -> str:
    """A percentage or points, as every table shows them: by the six decimals that the CSV has of the fraction."""
    return f"{round(points, 4):.1f}"


@dataclass(frozen=True)
class LeaderboardTable:
    """What one table shows; learners are in order of rank, equal ranks in order of their means."""

    setting: Mapping[str, Any]
    columns: list[str]
    scores: dict[str, dict[str, Score]]
    """By learner, by column."""
    extras: dict[str, dict[str, str]]
    """By learner: what a wide terminal shows besides."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """By learner; a learner without a number in the last column has none."""
    leaders: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By column: the learners than which none is significantly better, in bold. Of rows alone only the last column's
    are known, by their ranks; `pairwise.judged` knows those of all."""

    @property
    def seeds(self) -> int:
        """The most seeds behind any of its numbers."""
        return max(score.seeds for row in self.scores.values() for score in row.values())

    def leads(self, name: str, column: str) -> bool:
        """Whether a learner's number is known to be no worse than any other of its column, but for chance."""
        return name in self.leaders.get(column, ())

    def fewer(self, score: Score) -> bool:
        """Whether a number rests on fewer seeds than others of the table: it gets a `*`."""
        return 0 < score.seeds < self.seeds

    def spread(self, score: Score) -> float:
        """What stands behind ±, in percent; NaN: nothing, as for one seed beside numbers of several."""
        return math.nan if self.fewer(score) and score.seeds == 1 else score.spread

    def marks(self, score: Score) -> list[str]:
        """The flags of a number that not all numbers of the table have: it gets a `!`."""
        return sorted(score.flags - self.shared)

    @property
    def shared(self) -> frozenset[str]:
        """The flags of all numbers that can have any."""
        flags = [
            score.flags for row in self.scores.values() for name, score in row.items() if self._judged(name, score)
        ]
        return frozenset.intersection(*flags) if flags else frozenset()

    def doubts(self) -> dict[str, dict[str, list[str]]]:
        """By flag that not all numbers share, by column: the learners."""
        found: dict[str, dict[str, list[str]]] = {}
        for column in self.columns:
            for name, row in self.scores.items():
                for flag in sorted(row[column].flags - self.shared):
                    found.setdefault(flag, {}).setdefault(column, []).append(name)
        return dict(sorted(found.items()))

    def throughout(self, flag: str) -> list[str]:
        """The learners that have a flag under every attack and at the worst case."""
        judged = [column for column in self.columns if column != CLEAN]
        if WORST not in judged:
            return []
        return [name for name, row in self.scores.items() if all(flag in row[column].flags for column in judged)]

    def searched(self, name: str) -> float:
        """What the black-box probe left of a learner whose gradients are masked, in percent; NaN: nothing to tell."""
        return min((score.black_box for score in self.scores[name].values() if score.black_box >= 0), default=math.nan)

    def measured(self, column: str) -> list[str]:
        """The learners with a number in that column."""
        return [name for name, row in self.scores.items() if not math.isnan(row[column].mean)]

    def _judged(self, column: str, score: Score) -> bool:
        """Whether a number is what the flags are about: an attack's, or the clean one where there is no attack."""
        return not math.isnan(score.mean) and (column not in {CLEAN, WORST} or self.columns == [CLEAN])


def boards(frame: pd.DataFrame) -> Iterator[LeaderboardTable]:
    """The contents of the tables, in the order of the leaderboard."""
    for rows in groups(frame):
        yield _board(rows)


def groups(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of each table, in the order of the leaderboard, the versions of one name told apart.

    Clean accuracies make a table of their own only for learners that nothing attacked.
    """
    frame = without_duplicates(frame)
    attacked = frame[frame["threat_norm"] != "none"]
    shown = attacked[[*SETTING, "learner", "recipe_hash"]].drop_duplicates()
    clean = frame[frame["threat_norm"] == "none"].reset_index().merge(shown, how="left", indicator=True)
    clean = clean[clean["_merge"] == "left_only"].drop(columns="_merge").set_index("index")
    for part in (attacked, clean):
        for _, rows in part.groupby([*SETTING, *THREAT], sort=False, dropna=False):
            yield with_distinct_attacks(with_distinct_learners(rows))


def eps_of(setting: Mapping[str, Any]) -> float:
    """The size of ε; infinite where it cannot be read."""
    try:
        return parse_eps(str(setting["eps"])).value
    except BenchError:
        return math.inf


def all_scores(found: Iterable[LeaderboardTable]) -> list[Score]:
    """All numbers of these boards."""
    return [score for board in found for row in board.scores.values() for score in row.values()]


def with_comparable_spreads(found: Iterable[LeaderboardTable], pictured: Iterable[Score]) -> list[LeaderboardTable]:
    """The boards of a picture, without the intervals of single seeds if any of the numbers in it is of several seeds.

    They would be intervals over episodes beside deviations between seeds, in one panel or in two.
    """
    if max((score.seeds for score in pictured), default=1) <= 1:
        return list(found)

    def bare(score: Score) -> Score:
        return replace(score, spread=math.nan) if score.seeds == 1 else score

    return [
        replace(board, scores={name: {column: bare(score) for column, score in row.items()}
                               for name, row in board.scores.items()})
        for board in found
    ]  # fmt: skip


def clean_table(group: Iterable[LeaderboardTable]) -> LeaderboardTable:
    """The clean accuracies of boards that differ in the threat alone: each learner's where it rests on most seeds."""
    boards = list(group)
    rows: dict[str, dict[str, Score]] = {}
    for board in boards:
        for name, row in board.scores.items():
            if name not in rows or row[CLEAN].seeds > rows[name][CLEAN].seeds:
                rows[name] = {CLEAN: row[CLEAN]}
    return replace(boards[0], columns=[CLEAN], scores=rows)


def without_duplicates(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without those that tell again what another does: the first checked one stays, else the first.

    The leaderboard has the newest of them first.
    """
    same = [*SETTING, *THREAT, "learner", "recipe_hash", "attack", "attack_hash", "seed"]
    unchecked = frame["flags"].fillna("").str.split().map(lambda flags: "unchecked" in flags)
    kept = frame.assign(unchecked=unchecked).sort_values("unchecked", kind="stable").drop_duplicates(same)
    return frame.loc[frame.index.isin(kept.index)]


def with_distinct_learners(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the first digits of the recipe's hash behind the name of a learner of several versions."""
    return rows.assign(learner=distinct_labels(rows, "learner", "recipe_hash"))


def with_distinct_attacks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one threat model with the versions of an attack told apart in their names.

    An attack that started from what smaller ε found is `pgd (warm)` beside the same one that did not; other versions
    have the first digits of their hash.
    """
    warm = rows["warm_start"].fillna("") != ""
    both = rows["attack"].isin(set(rows.loc[warm, "attack"]) & set(rows.loc[~warm, "attack"]))
    rows = rows.assign(attack=rows["attack"].where(~(warm & both), rows["attack"] + " (warm)"))
    attacked = rows["threat_norm"] != "none"
    return rows.assign(attack=rows["attack"].where(~attacked, distinct_labels(rows, "attack", "attack_hash")))


def attacks_of(rows: pd.DataFrame) -> list[str]:
    """The attacks of a table's rows, in order; none where there are clean accuracies only."""
    return list(dict.fromkeys(rows.loc[rows["threat_norm"] != "none", "attack"]))


def columns_of(rows: pd.DataFrame) -> list[str]:
    """A table's columns: clean, each attack, and the worst case if there are several that have one."""
    attacks = attacks_of(rows)
    several = len(attacks) > 1 and has_worst_case(rows["threat_norm"].iloc[0], rows["query"].iloc[0])
    return [CLEAN, *attacks, *([WORST] if several else [])]


def has_worst_case(norm: str, query: str) -> bool:
    """Whether an attacker chooses among attacks: not among natural corruptions, nor among certificates."""
    return norm != "severity" and query != "certified"


def under(rows: pd.DataFrame, column: str, attacks: list[str]) -> pd.DataFrame:
    """A learner's rows that a column's number rests on, one a seed, by seed.

    The worst case rests on the seeds that saw all of these attacks.
    """
    if column == CLEAN:
        return rows.drop_duplicates("seed").set_index("seed")
    if column == WORST:
        whole = rows.groupby("seed")["attack"].nunique() == len(set(attacks))
        return rows[rows["seed"].isin(whole.index[whole])].drop_duplicates("seed").set_index("seed")
    return rows[rows["attack"] == column].set_index("seed")


def _board(rows: pd.DataFrame) -> LeaderboardTable:
    columns = columns_of(rows)
    parts = {str(name): part for name, part in rows.groupby("learner", sort=False)}
    scores = {name: scores_of(part, columns) for name, part in parts.items()}
    ranks = {name: int(part["rank"].iloc[0]) for name, part in parts.items() if part["rank"].notna().iloc[0]}
    means = {name: row[columns[-1]].mean for name, row in scores.items()}
    ordered = sorted(
        scores, key=lambda name: (ranks.get(name, math.inf), -np.nan_to_num(means[name], nan=-math.inf), name)
    )
    extras = {name: _extras(part) for name, part in parts.items()}
    setting = {name: rows[name].iloc[0] for name in [*SETTING, *THREAT]}
    first = {name for name, rank in ranks.items() if rank == 1} if len(ranks) > 1 else set()
    return LeaderboardTable(
        setting, columns, {name: scores[name] for name in ordered}, extras, ranks, {columns[-1]: first}
    )


def distinct_labels(rows: pd.DataFrame, name: str, version: str) -> pd.Series[str]:
    """Names of learners or attacks, with the first digits of a hash where one name stands for several versions.

    Versions differ in code or data: no number is ever a mean over them.
    """
    kinds = rows[[name, version]].drop_duplicates()
    several = rows[name].isin(kinds.loc[kinds[name].duplicated(), name])
    hashes = kinds[version].astype(str)
    digits = next((n for n in range(4, 16) if hashes.str[:n].nunique() == hashes.nunique()), 16)
    return rows[name].where(~several, rows[name] + " #" + rows[version].astype(str).str[:digits])


_NUMBERS = {CLEAN: ("clean_accuracy", "clean_ci95"), WORST: ("worst_case_accuracy", "worst_case_ci95")}
_NEEDED = [
    "seed", "attack", "clean_accuracy", "clean_ci95", "worst_case_accuracy", "worst_case_ci95", "robust_accuracy",
    "robust_ci95", "black_box_accuracy", "flags",
]  # fmt: skip


def scores_of(rows: pd.DataFrame, columns: list[str]) -> dict[str, Score]:
    """A learner's numbers: clean, under each attack, and the worst case.

    The worst case has the flags of the model from any of its attacks, and those that all of its attacks have.
    """
    attacks = [name for name in columns if name not in {CLEAN, WORST}]
    rows = rows[_NEEDED]  # narrow frames are taken apart several times as fast
    scores = {}
    for column in columns:
        part = under(rows, column, attacks)
        accuracy, ci95 = _NUMBERS.get(column, ("robust_accuracy", "robust_ci95"))
        flags: frozenset[str] = _flags(part) if column in attacks or not attacks else frozenset()
        if column == WORST and not part.empty:
            whole = rows[rows["seed"].isin(part.index)]
            each = [_flags(under(whole, attack, attacks)) for attack in attacks]
            flags = frozenset.intersection(*each) | (frozenset.union(*each) & MODEL_FLAGS)
        searched = _searched(part) if column in attacks else math.nan
        scores[column] = _score(part[accuracy], part[ci95], flags, searched)
    return scores


def _searched(rows: pd.DataFrame) -> float:
    """What the black-box probe left, in percent, over the rows that it shows to be masked; NaN if it shows none."""
    masked = rows["flags"].fillna("").str.split().map(lambda flags: "masked-gradients" in flags).astype(bool)
    found = rows[masked & (rows["black_box_accuracy"] < rows["robust_accuracy"])]
    return 100 * float(found["black_box_accuracy"].mean())


def _score(means: pd.Series[float], intervals: pd.Series[float], flags: frozenset[str], searched: float) -> Score:
    """The mean over seeds, with the interval of the one seed or the standard deviation between several."""
    spread = float(intervals.iloc[0]) if len(means) == 1 else float(means.std(ddof=1))  # NaN for none at all
    return Score(100 * float(means.mean()), 100 * spread, len(means), flags, searched)


def _flags(rows: pd.DataFrame) -> frozenset[str]:
    return frozenset(flag for text in rows["flags"].dropna() for flag in str(text).split())


def _extras(rows: pd.DataFrame) -> dict[str, str]:
    found: dict[str, str] = {}
    if rows["threat_norm"].iloc[0] != "none":
        for name, (column, of_attacks) in _EXTRAS.items():
            found[name] = shown(100 * float(rows.groupby("seed")[column].agg(of_attacks).mean()))
    seconds = rows.drop_duplicates("seed")["train_seconds"].mean()
    return {**found, "trained": f"{seconds:,.0f} s"}
