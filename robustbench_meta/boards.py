"""What the terminal's tables show: the leaderboard's rows, grouped by what may be compared, and ranked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

CLEAN, WORST = "clean", "worst case"
_SETTING = [
    "dataset", "way", "shot", "queries", "backbone", "norm", "inference", "precision", "episodes", "support", "query",
    "meta_steps", "tasks_per_step",
]  # fmt: skip
_EXTRAS = {"success": ("attack_success_rate", max), "worst 10 %": ("worst_decile_accuracy", min)}


@dataclass(frozen=True)
class Score:
    """A number of a table in percent: the mean over seeds, its spread (NaN: none to show), and how many seeds."""

    mean: float
    spread: float
    seeds: int
    flags: str = ""

    def text(self) -> str:
        """The mean as shown; what is bold is decided on this."""
        return "–" if math.isnan(self.mean) else f"{self.mean:.1f}"


@dataclass(frozen=True)
class Board:
    """What one table shows; learners are in order of rank."""

    setting: Mapping[str, Any]
    columns: list[str]
    scores: dict[str, dict[str, Score]]
    """By learner, by column."""
    extras: dict[str, dict[str, str]]
    """By learner: what a wide terminal shows besides."""

    @property
    def seeds(self) -> int:
        """The most seeds behind any of its numbers."""
        return max(score.seeds for row in self.scores.values() for score in row.values())

    def best(self, column: str) -> str:
        """The highest mean of a column, as shown."""
        shown = [row[column] for row in self.scores.values() if not math.isnan(row[column].mean)]
        return max(shown, key=lambda score: score.mean).text() if len(shown) > 1 else ""


def boards(frame: pd.DataFrame) -> Iterator[Board]:
    """The contents of the tables, in the order of the leaderboard."""
    setting = _SETTING
    alone = [name for name in setting if name not in {"support", "query"}]
    attacked = frame[frame["threat_norm"] != "none"]
    for _, rows in attacked.groupby([*setting, "threat_norm", "eps"], sort=False, dropna=False):
        yield _board(rows, [*setting, "threat_norm", "eps"])
    shown = attacked[[*alone, "learner", "recipe_hash"]].drop_duplicates()
    clean = frame[frame["threat_norm"] == "none"].merge(shown, how="left", indicator=True)
    clean = clean[clean["_merge"] == "left_only"]
    for _, rows in clean.groupby([*setting, "threat_norm", "eps"], sort=False, dropna=False):
        yield _board(rows, [*setting, "threat_norm", "eps"])


def _board(rows: pd.DataFrame, setting: list[str]) -> Board:
    rows = rows.assign(learner=_told_apart(rows, "learner", "recipe_hash"))
    if rows["threat_norm"].iloc[0] != "none":
        rows = rows.assign(attack=_told_apart(rows, "attack", "attack_hash"))
    attacks = [] if rows["threat_norm"].iloc[0] == "none" else list(dict.fromkeys(rows["attack"]))
    columns = [CLEAN, *attacks, *([WORST] if len(attacks) > 1 else [])]
    scores = {str(name): _scores(part, attacks) for name, part in rows.groupby("learner", sort=False)}
    extras = {str(name): _extras(part) for name, part in rows.groupby("learner", sort=False)}
    ranked = sorted(scores, key=lambda name: (-_or_last(scores[name][columns[-1]].mean), name))
    return Board(
        {name: rows[name].iloc[0] for name in setting}, columns, {name: scores[name] for name in ranked}, extras
    )


def _told_apart(rows: pd.DataFrame, name: str, version: str) -> pd.Series[str]:
    """Names of learners or attacks, with the first digits of a hash where one name stands for several versions.

    Versions differ in code or data: no number is ever a mean over them.
    """
    kinds = rows[[name, version]].drop_duplicates()
    several = rows[name].isin(kinds.loc[kinds[name].duplicated(), name])
    hashes = kinds[version].astype(str)
    digits = next((n for n in range(4, 16) if hashes.str[:n].nunique() == hashes.nunique()), 16)
    return rows[name].where(~several, rows[name] + " #" + rows[version].astype(str).str[:digits])


def _scores(rows: pd.DataFrame, attacks: list[str]) -> dict[str, Score]:
    """A learner's numbers: clean, under each attack, and the worst case of the seeds that saw all attacks."""
    seeds = rows.groupby("seed")
    scores = {CLEAN: _score(seeds["clean_accuracy"].first(), seeds["clean_ci95"].first())}
    for attack in attacks:
        part = rows[rows["attack"] == attack].set_index("seed")
        scores[attack] = _score(part["robust_accuracy"], part["robust_ci95"], " ".join(sorted(_flags(part))))
    if len(attacks) > 1:
        whole = seeds["attack"].nunique() == len(attacks)
        worst = seeds["worst_case_accuracy"].min()[whole]
        scores[WORST] = _score(worst, worst * math.nan)
    return scores


def _score(means: pd.Series[float], intervals: pd.Series[float], flags: str = "") -> Score:
    """The mean over seeds, with the interval of the one seed or the standard deviation between several."""
    spread = float(intervals.iloc[0]) if len(means) == 1 else float(means.std(ddof=1))  # NaN for none at all
    return Score(100 * float(means.mean()), 100 * spread, len(means), flags)


def _flags(rows: pd.DataFrame) -> set[str]:
    return {flag for text in rows["flags"].dropna() for flag in str(text).split()}


def _extras(rows: pd.DataFrame) -> dict[str, str]:
    found = {}
    if rows["threat_norm"].iloc[0] != "none":
        found = {name: f"{100 * choose(rows[column]):.1f}" for name, (column, choose) in _EXTRAS.items()}
    seconds = rows.drop_duplicates("seed")["train_seconds"].mean()
    return {**found, "trained": f"{seconds:,.0f} s"}


def _or_last(value: float) -> float:
    return -math.inf if math.isnan(value) else value
