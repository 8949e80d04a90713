"""`python -m benchmarks.intervals`: do 95 % intervals hold the truth in 95 of 100 cases, and tests err in 5?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_meta.results.episode_accuracies import Samples

MEANS = (0.05, 0.35, 0.85, 0.98)
"""Accuracies of an undefended learner under attack, of a defended one, without attack, and of an easy data set."""
QUERIES = (25, 75)
EPISODES = (200, 600)
SPREAD = 15.0
"""a + b of the beta distribution of a task's accuracy: with 75 queries, an episode's standard deviation is 0.10 at a
mean of 0.85, as of MAML and ADML on Omniglot (results/published)."""
LUCK = 0.02
"""Standard deviation between seeds of a learner's accuracy, in the simulation of training luck."""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw episodes from the records of this results folder, too.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=100, help="Simulated results for each figure.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
) -> None:
    """Measure the coverage of the 95 % interval and the error rates of the tests, by simulation."""
    console = Console(highlight=False)
    real = None if results is None else _read(results)
    rng = np.random.default_rng(seed)
    error = 100 * np.sqrt(0.05 * 0.95 / repeats)
    console.print(f"{repeats:,} repeats: a rate of 5 or 95 % is known to ±{1.96 * error:.1f} points.\n", markup=False)
    for measure in (_coverage, _false_positives, _families, _luck):
        _show(measure(repeats, rng), console)
    if real is not None:
        _show(_from_records(*real, repeats, rng), console)


def _read(results: Path) -> tuple[pd.DataFrame, Samples]:
    from robustbench_meta.results.leaderboard import read  # noqa: PLC0415
    from robustbench_meta.results.store import Store  # noqa: PLC0415

    if not (results / "records").is_dir():
        raise typer.BadParameter(f"{results} holds no records; name a folder that `bench run --results DIR` wrote to")
    return read(Store(results))


def episodes(mean: float, count: int, queries: int, rng: np.random.Generator, learners: int = 1) -> np.ndarray:
    """Accuracies [learners, count] of equally good learners: tasks differ in hardness, for all learners alike."""
    chance = rng.beta(mean * SPREAD, (1 - mean) * SPREAD, size=count)
    return rng.binomial(queries, chance, size=(learners, count)) / queries


def _settings() -> Iterator[tuple[float, int, int]]:
    for mean in MEANS:
        for queries in QUERIES:
            for count in EPISODES:
                yield mean, queries, count


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show(table: Table, console: Console) -> None:
    """The title on a line of its own, which may be wider than the table."""
    title, table.title = str(table.title), None
    console.print(title, style="bold", markup=False)
    console.print(table)
    console.print()


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def covered(drawn: Iterable[np.ndarray], truth: float) -> float:
    """The share of intervals that hold the truth."""
    from robustbench_meta.evaluation.statistics import mean_and_ci95  # noqa: PLC0415  # --help needs no scipy

    held = [abs(mean - truth) <= ci95 for mean, ci95 in map(mean_and_ci95, drawn)]
    return sum(held) / len(held)


def distinguished(pairs: Iterable[np.ndarray]) -> float:
    """The share of pairs of learners [2, episodes] that the paired test alone tells apart."""
    from robustbench_meta.evaluation.statistics import LEVEL, paired  # noqa: PLC0415

    found = [paired(one, two).p < LEVEL for one, two in pairs]
    return sum(found) / len(found)


def _coverage(repeats: int, rng: np.random.Generator) -> Table:
    table = _table("95 % intervals that hold the truth", "accuracy", "queries", "episodes", "% of intervals")
    for mean, queries, count in _settings():
        share = covered((episodes(mean, count, queries, rng)[0] for _ in range(repeats)), mean)
        table.add_row(f"{mean:g}", f"{queries}", f"{count}", _percent(share))
    return table


def _false_positives(repeats: int, rng: np.random.Generator) -> Table:
    table = _table("Pairs of equals with p < 0.05", "accuracy", "queries", "episodes", "% of pairs")
    for mean, queries, count in _settings():
        share = distinguished(episodes(mean, count, queries, rng, 2) for _ in range(repeats))
        table.add_row(f"{mean:g}", f"{queries}", f"{count}", _percent(share))
    return table


def _families(repeats: int, rng: np.random.Generator) -> Table:
    """All pairs of equal learners: how often anything is found, without a correction and with Holm's."""
    from robustbench_meta.evaluation.statistics import LEVEL, holm, paired  # noqa: PLC0415

    table = _table(
        "Families of equals with any p < 0.05 (0.35, 25 queries, 200 episodes)", "learners", "comparisons",
        "% uncorrected", "% with Holm",
    )  # fmt: skip
    for learners in (2, 3, 5):
        pairs = list(combinations(range(learners), 2))
        raw = corrected = 0
        for _ in range(repeats):
            seen = episodes(0.35, 200, 25, rng, learners)
            p_values = [paired(seen[i], seen[j]).p for i, j in pairs]
            raw += min(p_values) < LEVEL
            corrected += holm(p_values).min() < LEVEL
        table.add_row(f"{learners}", f"{len(pairs)}", _percent(raw / repeats), _percent(corrected / repeats))
    return table


def _luck(repeats: int, rng: np.random.Generator) -> Table:
    """Equal methods whose trainings differ by luck: how often they are told apart."""
    from robustbench_meta.evaluation.statistics import LEVEL, paired, separated, welch  # noqa: PLC0415

    table = _table(
        f"Equal methods, ±{100 * LUCK:g} points of luck a training, told apart (0.6, 25 queries, 200 episodes)",
        "seeds each", "% by episodes alone", "% by episodes and seeds",
    )  # fmt: skip
    few = max(100, repeats // 4)
    for seeds in (1, 2, 3, 5):
        alone = both = 0
        for _ in range(few):
            hardness = rng.beta(0.6 * SPREAD, 0.4 * SPREAD, size=200)
            skill = rng.normal(0, LUCK, size=(2, seeds, 1))
            seen = rng.binomial(25, np.clip(hardness + skill, 0, 1)) / 25
            p = paired(*seen.mean(1)).p
            alone += p < LEVEL
            both += separated(p, welch(*seen.mean(2)))
        table.add_row(f"{seeds}", _percent(alone / few), _percent(both / few))
    return table


def _from_records(frame: pd.DataFrame, samples: Samples, repeats: int, rng: np.random.Generator) -> Table:
    """The same with episodes drawn from real ones, with replacement; one seed, one surrogate, the first ε.

    Pairs of equals are two learners whose names are swapped in each episode by a coin.
    """
    table = _table("Episodes drawn from the records", "learner", "attack", "scenario", "accuracy", "% of intervals",
                   "% of pairs")  # fmt: skip
    once = frame[frame["seed"] == frame["seed"].min()]
    for names, rows in once.groupby(["dataset", "support", "query", "attack"], sort=False):
        real = {str(row["learner"]): samples.robust(row["spec_hash"]) for _, row in rows.iterrows()}
        count = min(map(len, real.values()))
        for learner, values in real.items():
            share = covered((rng.choice(values, count) for _ in range(repeats)), float(values.mean()))
            rival = next((other[:count] for name, other in real.items() if name != learner), None)
            pairs = "–" if rival is None else _percent(distinguished(_swapped(values[:count], rival, repeats, rng)))
            table.add_row(learner, names[3], f"{names[1]}/{names[2]}", f"{values.mean():.3f}", _percent(share), pairs)
    return table


def _swapped(one: np.ndarray, two: np.ndarray, repeats: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    both = np.stack([one, two])
    for _ in range(repeats):
        drawn = both[:, rng.integers(len(one), size=len(one))]
        yield np.where(rng.random(len(one)) < 0.5, drawn, drawn[::-1])


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.intervals")
