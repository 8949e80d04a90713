"""Accuracy over ε, learning curves and costs: figures, and the tables of numbers behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from robustbench_meta.reporting.figures.curves import draw_curves
from robustbench_meta.reporting.figures.learning_curves import draw_learning
from robustbench_meta.reporting.html.embedded_figures import Drawings
from robustbench_meta.reporting.table import Table, TableCell, curve_table, number_cell
from robustbench_meta.reporting.wording import sides, threat
from robustbench_meta.results.curves import Curve, grouped
from robustbench_meta.results.learning_curves import learning_curves
from robustbench_meta.results.tables import SETTING, with_distinct_learners


class Sweep(NamedTuple):
    """The curves of one setting and scenario at the same ε."""

    setting: Mapping[str, Any]
    heading: str
    figures: list[Markup]
    table: Table
    spread: str
    """What bands and ± are."""


def sweeps(curves: Sequence[Curve], frame: pd.DataFrame, drawings: Drawings) -> Iterator[Sweep]:
    """All curves of a leaderboard's rows, those together that share a table of it but for ε."""
    for group in grouped(curves):
        setting, episodes = group[0].told, f"{group[0].episodes.shape[1]:,} episodes"
        lines = [(curve.learner, curve.attack) for curve in group]
        seeds = max(map(lines.count, lines))
        yield Sweep(
            setting, f"{threat(setting)} · {sides(setting)}",
            [drawings.embed(each) for each in draw_curves(group, frame, drawings.look)], curve_table(group),
            f"95 % intervals over {episodes}" if seeds == 1
            else f"standard deviation of {seeds} seeds ({episodes} each); * rests on fewer seeds",
        )  # fmt: skip


class LearningCurves(NamedTuple):
    """The learning curves of one setting."""

    setting: Mapping[str, Any]
    figures: list[Markup]
    table: Table
    seeds: int
    against: list[str]
    """Which learners were trained against an attack, and which."""


def learning_sections(
    frame: pd.DataFrame, records: Sequence[Mapping[str, Any]], drawings: Drawings
) -> Iterator[LearningCurves]:
    """Of each setting in which something was trained."""
    curves = learning_curves(records)
    chosen = {str(record["training"]): record.get("chosen_step") for record in records}
    for _, part in frame.groupby([name for name in SETTING if name != "episodes"], sort=False, dropna=False):
        rows = with_distinct_learners(part).drop_duplicates("training_hash")
        rows = rows[rows["training_hash"].isin(curves)].sort_values(["learner", "seed"])
        if rows.empty:
            continue
        steps = [(row, each) for row in rows.to_dict("records") for each in curves[row["training_hash"]]]
        table = Table({"learner": [row["learner"] for row, _ in steps]}, {
            "seed": [TableCell(str(row["seed"])) for row, _ in steps],
            "meta-step": [TableCell(f"{each.step:,}", value=each.step) for _, each in steps],
            "loss": [number_cell(each.loss, 3) for _, each in steps],
            "accuracy": [number_cell(100 * each.accuracy) for _, each in steps],
            "validation loss": [number_cell(each.validation_loss, 3) for _, each in steps],
            "validation accuracy": [number_cell(100 * each.validation_accuracy) for _, each in steps],
            "kept": [TableCell("kept" if each.step == chosen[row["training_hash"]] else "") for row, each in steps],
        }, frozenset({"kept"}))  # fmt: skip
        attacked = rows[rows["training_attack"] != "none"].drop_duplicates("learner").to_dict("records")
        yield LearningCurves(
            _first(rows), [drawings.embed(each) for each in draw_learning(part, records, drawings.look)], table,
            int(rows.groupby("learner")["seed"].nunique().max()),
            [f"{row['learner']} ({row['training_attack']}, ε = {row['training_eps']})" for row in attacked],
        )  # fmt: skip


class Costs(NamedTuple):
    """Of one place and device."""

    setting: Mapping[str, Any]
    learners: Table
    attacks: Table


def costs(frame: pd.DataFrame) -> Iterator[Costs]:
    """What training, adapting and attacking took, at each place and device, in the order of the leaderboard."""
    for _, part in frame.groupby([*SETTING, "device"], sort=False, dropna=False):
        rows = with_distinct_learners(part)
        learners = rows.groupby("learner", sort=True)
        trained = rows.drop_duplicates(["learner", "training_hash"]).groupby("learner", sort=True)
        attacked = rows[rows["threat_norm"] != "none"]
        keys = ["attack", "support", "query", "surrogate", "learner"]
        attacks = attacked.groupby(keys, sort=True)
        names: Any = attacks.size().reset_index()[keys].to_dict("records")
        yield Costs(
            _first(rows),
            Table({"learner": [str(name) for name in learners.groups]}, {
                "parameters": _means(learners["parameters"], 0),
                "meta-training, s": _means(trained["train_seconds"]),
                "adaptation, ms a task": _means(learners["adapt_ms_per_task"], 2),
                "checks, ms a task": _means(learners["check_ms_per_task"], 0),
                "peak memory, MB": _means(learners["peak_memory_mb"], 0),
            }),
            Table({
                "attack": [name["attack"] for name in names], "attacked": [sides(name) for name in names],
                "learner": [name["learner"] for name in names],
            }, {
                "ms a task": _means(attacks["attack_ms_per_task"]),
                "forward passes an image": _means(attacks["forward_per_image"]),
                "gradients an image": _means(attacks["gradients_per_image"]),
            }),
        )  # fmt: skip


def _means(groups: Any, digits: int = 1) -> list[TableCell]:
    return [number_cell(mean, digits) for mean in groups.mean()]


def _first(rows: pd.DataFrame) -> dict[str, Any]:
    return {str(name): value for name, value in rows.iloc[0].items()}
