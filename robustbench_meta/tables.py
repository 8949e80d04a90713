"""The leaderboard for a terminal: one table a setting, a row a learner, the attacks as columns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

CLEAN, WORST = "clean", "worst case"
_SETTING = ["dataset", "way", "shot", "backbone", "norm", "inference", "episodes", "support", "query"]
_RECIPE = ["queries", "meta_steps", "tasks_per_step"]
"""Columns that also tell settings apart, where the leaderboard has them."""
_EXTRAS = {"success": ("attack_success_rate", max), "worst 10 %": ("worst_decile_accuracy", min)}
_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_SIDES = {"clean": "clean", "adv": "attacked"}
_WIDE = 120
_GAP = 3
"""Blanks between two columns."""


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


def tables(frame: pd.DataFrame, width: int = 80) -> list[RenderableType]:
    """Tables of a leaderboard that fit `width` columns; too many attacks continue in another table below.

    Transductive and inductive learners, other threat models, scenarios or data are never in one table.
    """
    return [_drawn(board, width) for board in boards(frame)]


def boards(frame: pd.DataFrame) -> Iterator[Board]:
    """The contents of the tables, in the order of the leaderboard."""
    recipe = [name for name in _RECIPE if name in frame.columns]
    setting = [*_SETTING, *recipe]
    alone = [name for name in setting if name not in {"support", "query"}]
    attacked = frame[frame["threat_norm"] != "none"]
    for _, rows in attacked.groupby([*setting, "threat_norm", "eps"], sort=False, dropna=False):
        yield _board(rows, [*setting, "threat_norm", "eps"])
    shown = attacked[[*alone, "learner"]].drop_duplicates()
    clean = frame[frame["threat_norm"] == "none"].merge(shown, how="left", indicator=True)
    for _, rows in clean[clean["_merge"] == "left_only"].groupby([*setting, "threat_norm", "eps"], sort=False):
        yield _board(rows, [*setting, "threat_norm", "eps"])


def _board(rows: pd.DataFrame, setting: list[str]) -> Board:
    rows = rows.assign(learner=_rows_named(rows))
    attacks = [] if rows["threat_norm"].iloc[0] == "none" else list(dict.fromkeys(rows["attack"]))
    columns = [CLEAN, *attacks, *([WORST] if len(attacks) > 1 else [])]
    scores = {str(name): _scores(part, attacks) for name, part in rows.groupby("learner", sort=False)}
    extras = {str(name): _extras(part) for name, part in rows.groupby("learner", sort=False)}
    ranked = sorted(scores, key=lambda name: (-_or_last(scores[name][columns[-1]].mean), name))
    return Board(
        {name: rows[name].iloc[0] for name in setting}, columns, {name: scores[name] for name in ranked}, extras
    )


def _rows_named(rows: pd.DataFrame) -> pd.Series[str]:
    """Learners' names; one that was trained in several ways in this setting is never averaged over them."""
    twice = rows.duplicated(["learner", "attack", "seed"], keep=False)
    several = rows["learner"].isin(rows.loc[twice, "learner"])
    told = (
        rows["learner"]
        + " (seed "
        + rows["seed"].astype(str)
        + ", trained in "
        + rows["train_seconds"].map("{:.1f} s)".format)
    )
    return rows["learner"].where(~several, told)


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


def _drawn(board: Board, width: int) -> RenderableType:
    names = {name: _folded(name, max(16, width // 3)) for name in board.scores}
    cells = {
        column: {name: _cell(board, row[column], column) for name, row in board.scores.items()}
        for column in board.columns
    }
    more = {
        extra: {name: Text(row[extra], style="dim") for name, row in board.extras.items()}
        for extra in next(iter(board.extras.values()))
    }
    chunks = list(_chunks(names, cells | more, width))
    wide = width >= _WIDE and len(chunks) == 1
    parts: list[RenderableType] = [Text(line, style="bold") for line in _title(board)]
    for chunk in chunks if wide else _chunks(names, cells, width):
        parts += [_table(names, {column: (cells | more)[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_caption(board, wide), style="dim"), Text(""))


def _table(names: Mapping[str, str], cells: Mapping[str, Mapping[str, Text]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    table.add_column("learner", no_wrap=True, vertical="bottom")
    for column in cells:
        table.add_column(_folded(column, 12), justify="right", no_wrap=True)
    for learner, shown in names.items():
        table.add_row(Text(shown), *(column[learner] for column in cells.values()))
    return table


def _chunks(names: Mapping[str, str], cells: Mapping[str, Mapping[str, Text]], width: int) -> Iterator[list[str]]:
    """The columns in portions that fit beside the learners' names."""
    first = max(_widest(name) for name in ["learner", *names.values()])
    chunk: list[str] = []
    used = first
    for column, texts in cells.items():
        need = _GAP + max(_widest(_folded(column, 12)), *(text.cell_len for text in texts.values()))
        if chunk and used + need > width:
            yield chunk
            chunk, used = [], first
        chunk.append(column)
        used += need
    yield chunk


def _cell(board: Board, score: Score, column: str) -> Text:
    """`85.3 ±1.2`, the best of the column in bold, `!` where the number is flagged, `*` where seeds are missing."""
    spreads = [row[column].spread for row in board.scores.values()]
    digits = max((len(f"{spread:.1f}") for spread in spreads if not math.isnan(spread)), default=0)
    text = Text(score.text(), style="bold" if score.text() == board.best(column) else "")
    if digits:
        alone = math.isnan(score.spread) or (score.seeds < board.seeds and score.seeds == 1)
        text.append("".ljust(digits + 2) if alone else f" ±{score.spread:.1f}".ljust(digits + 2), style="not bold dim")
    if any(row[column].flags or row[column].seeds < board.seeds for row in board.scores.values()):
        text.append("!" if score.flags else "*" if score.seeds < board.seeds else " ", style="not bold yellow")
    return text


def _title(board: Board) -> list[str]:
    told = board.setting
    first = f"{told['dataset']} · {told['way']}-way {told['shot']}-shot · {told['backbone']}"
    if "meta_steps" in told:
        first += f" · {told['meta_steps']:,} meta-steps"
    inference = f"{told['inference']} ({told['norm']} norm)"
    if told["threat_norm"] == "none":
        return [first, f"no attack · {inference}"]
    sides = f"{_SIDES[told['support']]} support, {_SIDES[told['query']]} query"
    return [first, f"{_NORMS.get(told['threat_norm'], told['threat_norm'])} ε = {told['eps']} · {sides} · {inference}"]


def _caption(board: Board, wide: bool) -> str:
    episodes = board.setting["episodes"]
    if board.seeds == 1:
        lines = [f"Accuracy in %; ± half of the 95 % interval over {episodes:,} episodes."]
    else:
        lines = [
            f"Accuracy in %, mean of {board.seeds} seeds ({episodes:,} episodes each); ± standard deviation of the seeds."
        ]
        if any(score.seeds < board.seeds for row in board.scores.values() for score in row.values()):
            lines.append("* rests on fewer seeds.")
    if WORST in board.columns:
        lines.append("Worst case: right under every attack of the table.")
    if wide and len(board.columns) > 1:
        lines.append("Success: of the attack that turned most right answers wrong. Worst 10 %: of the episodes.")
    flags = [
        f"! {name} under {column}: {score.flags}."
        for name, row in board.scores.items()
        for column, score in row.items()
        if score.flags
    ]
    return "\n".join([" ".join(lines), *flags])


def _folded(label: str, width: int) -> str:
    """A label broken after ':' and ',' and at blanks, where it is longer than `width`."""
    lines = [""]
    for piece in re.findall(r"[^:, ]+[:, ]*|[:, ]+", label):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _widest(text: str) -> int:
    return max(len(line) for line in text.split("\n"))
