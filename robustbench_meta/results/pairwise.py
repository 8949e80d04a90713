"""Who is better, beyond chance: learners on the same episodes, in pairs, corrected for the number of comparisons."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd

from robustbench_meta.errors import BenchError
from robustbench_meta.evaluation.statistics import Paired, holm, paired, separated, welch
from robustbench_meta.results.episode_accuracies import Sample, Samples
from robustbench_meta.results.selection import not_there
from robustbench_meta.results.tables import (
    CLEAN,
    DISQUALIFYING,
    SETTING,
    THREAT,
    WORST,
    LeaderboardTable,
    Score,
    attacks_of,
    boards,
    columns_of,
    groups,
    scores_of,
    with_distinct_attacks,
    with_distinct_learners,
    without_duplicates,
)

_NO_THREAT = {"support": "clean", "query": "clean", "surrogate": "none", "threat_norm": "none", "eps": "0"}

_VERSION = r" [#@][0-9a-f]{4,}$"
"""Behind the name of a data set of which there are several versions."""


@dataclass(frozen=True)
class PairedTest:
    """Two learners in one column: how far the first is ahead, and whether that is more than chance."""

    first: Sample
    second: Sample
    paired: Paired
    """Over the episodes that both saw, each the mean over its learner's seeds."""
    corrected: float
    """The p-value over episodes, by Holm's correction for all contrasts that were made together."""
    seeds_p: float
    """Welch's p-value over the means of the seeds; NaN unless both have several."""
    tests: int
    """The distinct contrasts that were made together, for which it is corrected."""

    @property
    def ahead(self) -> int:
        """1: the first is better, −1: the second is, 0: they cannot be told apart."""
        if not separated(self.corrected, self.seeds_p):
            return 0
        return 1 if self.paired.difference > 0 else -1


def contrasts(pairs: Sequence[tuple[Sample, Sample]]) -> list[PairedTest]:
    """The contrasts of these pairs, corrected together; equal numbers, as at ε = 0 and without attack, are one test.

    Raises:
        ValueError: a pair saw different episodes.
    """
    keys = [(_content(first), _content(second)) for first, second in pairs]
    distinct = dict(zip(keys, pairs, strict=True))
    found = {}
    for key, (first, second) in distinct.items():
        if first.digest != second.digest or len(first.episodes) != len(second.episodes):
            raise ValueError("two learners on different episodes cannot be paired")
        result = paired(first.episodes, second.episodes)
        found[key] = PairedTest(first, second, result, result.p, welch(first.means, second.means), len(distinct))
    for key, p in zip(found, holm([contrast.corrected for contrast in found.values()]), strict=True):
        found[key] = replace(found[key], corrected=float(p))
    return [found[key] for key in keys]


def _content(sample: Sample) -> Hashable:
    return sample.digest, *((seed, values.tobytes()) for seed, values in sorted(sample.by_seed.items()))


def tests_text(found: Iterable[Comparison]) -> str:
    """For how many comparisons these are corrected: `5 comparisons`, or `3 different comparisons among 5`."""
    all_of = [contrast for pair in found for contrast in pair.contrasts.values()]
    tests = all_of[0].tests if all_of else 0
    return (
        f"{tests:,} comparisons" if tests == len(all_of) else f"{tests:,} different comparisons among {len(all_of):,}"
    )


def ranked(samples: Mapping[str, Sample]) -> dict[str, int]:
    """1 + the number of learners that are significantly better, by learner: equal ranks cannot be told apart.

    Raises:
        ValueError: they saw different episodes.
    """
    names = list(combinations(samples, 2))
    ranks = dict.fromkeys(samples, 1)
    pairs = [(samples[first], samples[second]) for first, second in names]
    for (first, second), contrast in zip(names, contrasts(pairs), strict=True):
        if contrast.ahead:
            ranks[second if contrast.ahead > 0 else first] += 1
    return ranks


def judged(frame: pd.DataFrame, samples: Samples) -> Iterator[LeaderboardTable]:
    """The contents of the tables, as `boards` has them, with the leaders of every column.

    Leaders are the learners than which none is significantly better; there are none without two learners. All pairs of
    a column are tested together, as for the table's ranks, which are those of its last column.
    """
    for rows, board in zip(groups(frame), boards(frame), strict=True):
        leaders = {}
        for column in board.columns:
            ranks = _ranks(rows, board.scores, column, samples)
            leaders[column] = {name for name, rank in ranks.items() if rank == 1 and len(ranks) > 1}
        yield replace(board, leaders=leaders)


def ranks(frame: pd.DataFrame, samples: Samples) -> pd.Series[Any]:
    """The rank of each row's learner in the table that shows the row, by the table's last column.

    Empty where several attacks have no worst case; for a learner without a number there, or with one that its flags
    deny; and for clean accuracies that no table has for itself.
    """
    found = pd.Series(pd.NA, index=frame.index, dtype="Int64")
    for rows in groups(frame):
        columns = columns_of(rows)
        if len(columns) > 2 and columns[-1] != WORST:  # attacks among which none is the worst
            continue
        parts = {str(name): part for name, part in rows.groupby("learner", sort=False)}
        scores = {name: scores_of(part, columns) for name, part in parts.items()}
        for name, rank in _ranks(rows, scores, columns[-1], samples).items():
            found.loc[parts[name].index] = rank
    return found


def _ranks(
    rows: pd.DataFrame, scores: Mapping[str, Mapping[str, Score]], column: str, samples: Samples
) -> dict[str, int]:  # fmt: skip
    """By one column of a table, of the learners that have a number there which their flags do not deny."""
    attacks = attacks_of(rows)
    known = {
        str(name): sample for name, part in rows.groupby("learner", sort=False)
        if not scores[str(name)][column].flags & DISQUALIFYING
        and (sample := samples.of(part, column, attacks)) is not None
    }  # fmt: skip
    return ranked(known)


# -- all that a results folder allows to compare -----------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two learners at one threat: a contrast for each column that both have."""

    setting: Mapping[str, Any]
    """As of a table of the leaderboard."""
    first: str
    second: str
    contrasts: Mapping[str, PairedTest]
    """By column: clean, an attack, or the worst case."""
    scores: Mapping[str, tuple[Score, Score]]
    """By column: the two's numbers as the leaderboard shows them, with their flags."""

    @property
    def board(self) -> LeaderboardTable:
        """The two as a table of the leaderboard, of the columns that both have."""
        rows = {
            name: {column: pair[which] for column, pair in self.scores.items()}
            for which, name in enumerate((self.first, self.second))
        }
        return LeaderboardTable(self.setting, list(self.scores), rows, {})


def compare_learners(
    frame: pd.DataFrame, samples: Samples, first: str | None = None, second: str | None = None
) -> list[Comparison]:
    """All contrasts of two learners of a leaderboard, or of all pairs when none are named; corrected together.

    Args:
        frame: the leaderboard's rows.
        samples: of its records.
        first: a learner as the column `learner` names it, with digits of its recipe's hash (`maml#3f2a`) where the
            name stands for several versions.
        second: another one.

    Raises:
        BenchError: a learner is unknown, or its name stands for several; or there is nothing to compare, and why.
    """
    places = [
        with_distinct_learners(rows) for _, rows in without_duplicates(frame).groupby(SETTING, sort=False, dropna=False)
    ]
    wanted = (
        None if first is None or second is None else (_chosen(frame, places, first), _chosen(frame, places, second))
    )
    if wanted is not None and wanted[0] & wanted[1]:
        raise BenchError(f"'{first}' and '{second}' are the same learner; name two")
    drafts: list[tuple[dict[str, Any], str, str, dict[str, tuple[Sample, Sample]], dict[str, tuple[Score, Score]]]] = []
    numbers = _Numbers(samples)
    for rows in places:
        for one, two in _pairs(rows, wanted):
            for setting, column, pair, scores in _columns(one, two, numbers):
                names = str(one["learner"].iloc[0]), str(two["learner"].iloc[0])
                if drafts and drafts[-1][:3] == (setting, *names):
                    drafts[-1][3][column], drafts[-1][4][column] = pair, scores
                else:
                    drafts.append((setting, *names, {column: pair}, {column: scores}))
    if not drafts:
        raise BenchError(_nothing(frame, places, wanted, (first, second)))
    done = iter(contrasts([pair for *_, pairs, _ in drafts for pair in pairs.values()]))
    return [
        Comparison(setting, one, two, {column: next(done) for column in pairs}, scores)
        for setting, one, two, pairs, scores in drafts
    ]


def _chosen(frame: pd.DataFrame, places: list[pd.DataFrame], typed: str) -> set[str]:
    """The recipes that a typed learner stands for: at most one in each place.

    Raises:
        BenchError: there is no such learner, or several of that name.
    """
    known = frame.drop_duplicates("recipe_hash")
    name, digits = typed.strip(), ""
    if name not in set(known["learner"]) and (told := re.fullmatch(r"(.+?) ?#([0-9a-f]+)", name)):
        name, digits = told[1], told[2]
    if name not in set(known["learner"]):
        raise not_there("learner", name, set(known["learner"]))
    recipes = known.loc[known["learner"] == name, "recipe_hash"]
    chosen = {str(recipe) for recipe in recipes if str(recipe).startswith(digits)}
    versions = [
        sorted(set(rows.loc[rows["recipe_hash"].isin(recipes), "learner"].str.replace(" #", "#"))) for rows in places
    ]
    if not chosen:
        told_of = sorted({version for names in versions for version in names if "#" in version}) or sorted(
            f"{name}#{recipe[:4]}" for recipe in recipes
        )
        raise BenchError(f"no recipe of '{name}' begins with {digits}; there is: {', '.join(told_of)}")
    for rows, names in zip(places, versions, strict=True):
        if rows.loc[rows["recipe_hash"].isin(chosen), "recipe_hash"].nunique() > 1:
            raise BenchError(
                f"'{typed}' stands for several versions, from before and after an edit: say which by the digits of its "
                f"recipe_hash, as the tables show them: {' or '.join(names)}"
            )
    return chosen


def _pairs(rows: pd.DataFrame, wanted: tuple[set[str], set[str]] | None) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    if wanted is not None:
        one, two = (rows[rows["recipe_hash"].isin(recipes)] for recipes in wanted)
        if not one.empty and not two.empty:
            yield one, two
        return
    parts = [part for _, part in rows.groupby("recipe_hash", sort=False)]
    yield from combinations(sorted(parts, key=lambda part: str(part["learner"].iloc[0])), 2)


class _Numbers:
    """A learner's samples and scores, taken once: it meets the same columns in most pairs."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._known: dict[Hashable, tuple[dict[str, Sample | None], dict[str, Score]]] = {}

    def of(self, rows: pd.DataFrame, columns: list[str]) -> tuple[dict[str, Sample | None], dict[str, Score]]:
        """By column, of a learner's rows in a table with these columns."""
        key = *rows["spec_hash"], *rows["attack"], *columns
        if key not in self._known:
            attacks = [column for column in columns if column not in {CLEAN, WORST}]
            taken = {column: self._samples.of(rows, column, attacks) for column in columns}
            self._known[key] = taken, scores_of(rows, columns)
        return self._known[key]

    def clean(self, rows: pd.DataFrame) -> tuple[Sample | None, Score]:
        """A learner's clean accuracy, with the flags of its rows without attack."""
        key = CLEAN, *rows["spec_hash"]
        if key not in self._known:
            alone = scores_of(rows[rows["threat_norm"] == "none"], [CLEAN])[CLEAN]
            score = replace(scores_of(rows, [CLEAN])[CLEAN], flags=alone.flags)
            self._known[key] = {CLEAN: self._samples.of(rows, CLEAN, [])}, {CLEAN: score}
        taken, scores = self._known[key]
        return taken[CLEAN], scores[CLEAN]


def _columns(
    one: pd.DataFrame, two: pd.DataFrame, numbers: _Numbers
) -> Iterator[tuple[dict[str, Any], str, tuple[Sample, Sample], tuple[Score, Score]]]:
    """The setting, column, samples and numbers of all that both have: clean, then each threat's attacks, worst case."""
    place = {name: one[name].iloc[0] for name in SETTING}
    (sample, score), (other, others) = numbers.clean(one), numbers.clean(two)
    if sample is not None and other is not None:
        yield {**place, **_NO_THREAT}, CLEAN, (sample, other), (score, others)
    both = pd.concat([one, two])
    for _, group in both[both["threat_norm"] != "none"].groupby(THREAT, sort=False, dropna=False):
        rows = with_distinct_attacks(group)
        setting = {**place, **{name: rows[name].iloc[0] for name in THREAT}}
        mine, theirs = (rows[rows["recipe_hash"] == part["recipe_hash"].iloc[0]] for part in (one, two))
        columns = columns_of(rows)
        (taken, first), (their, second) = numbers.of(mine, columns), numbers.of(theirs, columns)
        for column in columns[1:]:
            sample, other = taken[column], their[column]
            if sample is not None and other is not None:
                yield setting, column, (sample, other), (first[column], second[column])


def _nothing(
    frame: pd.DataFrame, places: list[pd.DataFrame], wanted: tuple[set[str], set[str]] | None,
    typed: tuple[str | None, str | None],
) -> str:  # fmt: skip
    apart = ""
    if frame["dataset"].str.contains(_VERSION, regex=True).any():
        apart = " (# and @ tell versions of the data apart: they were changed in between; run both learners again)"
    if wanted is None:
        learners = ", ".join(sorted(set(frame["learner"])))
        return f"nothing can be compared: no two learners share a setting{apart}; there is: {learners}"
    told = []
    for name, recipes in zip(typed, wanted, strict=True):
        where = {_place(rows) for rows in places if rows["recipe_hash"].isin(recipes).any()}
        told.append(f"{name} is in {'; '.join(sorted(where))}")
    return f"nothing can be compared: the two learners share no setting{apart}: {', and '.join(told)}"


def _place(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (
        f"{first['dataset']} {first['way']}-way {first['shot']}-shot, {first['queries']} queries, {first['backbone']}, "
        f"{first['meta_steps']:,} × {first['tasks_per_step']} meta-steps, {first['episodes']:,} episodes, "
        f"{first['inference']}, {first['precision']}"
    )
