"""Leaderboards, curves over ε and comparisons as tables that fit a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from robustbench_meta.reporting.table import (
    Table,
    TableCell,
    comparison_table,
    corruption_table,
    curve_table,
    leaderboard_table,
)
from robustbench_meta.reporting.wording import (
    accuracy_text,
    fewer_text,
    flag_lines,
    folded,
    kinds_text,
    luck_text,
    meaning_at_zero,
    size_name,
    title,
    worst_text,
)
from robustbench_meta.results.corruptions import kind_tables
from robustbench_meta.results.curves import Curve, curves, grouped
from robustbench_meta.results.episode_accuracies import Samples
from robustbench_meta.results.pairwise import Comparison, judged, tests_text
from robustbench_meta.results.tables import WORST, LeaderboardTable, boards

POINTER = "What the flags mean: docs/flags.md."
"""Below a table with flags."""
WIDE = 120
"""From so many columns on a terminal is wide."""
_GAP = 3
"""Blanks between two columns."""


def tables(frame: pd.DataFrame, width: int = 80, samples: Samples | None = None) -> list[RenderableType]:
    """Tables of a leaderboard that fit `width` columns; too many attacks continue in another table below.

    Transductive and inductive learners, other threat models, scenarios or data are never in one table. Bold is what
    cannot be told apart from the best of its column; without samples only the last column is known, by its ranks.
    """
    return [_leaderboard(board, width) for board in (boards(frame) if samples is None else judged(frame, samples))]


def all_tables(frame: pd.DataFrame, samples: Samples, width: int = 80) -> list[RenderableType]:
    """The same, then curves over ε, then corruptions by kind."""
    found = [*tables(frame, width, samples), *curve_tables(curves(frame, samples), width)]
    for kinds in kind_tables(frame, samples):
        parts = _drawn(title(kinds.told), corruption_table(kinds), width)
        found.append(Group(*parts[:-1], _dim(kinds_text(kinds)), Text("")))
    return found


def curve_tables(found: Sequence[Curve], width: int = 80) -> list[RenderableType]:
    """Tables of accuracies by ε, and of the area under them, that fit `width` columns."""
    return [_curves(group, width) for group in grouped(found)]


def comparison_tables(pairs: Sequence[Comparison], width: int = 80) -> list[RenderableType]:
    """A table for each two learners and threat, a row a column of the leaderboard; then what it all means."""
    tests = [test for pair in pairs for test in pair.contrasts.values()]
    seeds = any(not math.isnan(test.seeds_p) for test in tests)
    return [*(_comparison(pair, width, seeds) for pair in pairs), _dim(_comparison_caption(pairs, seeds))]


def _leaderboard(board: LeaderboardTable, width: int) -> RenderableType:
    table = leaderboard_table(board)
    extras = {
        name: [TableCell(board.extras[row][name]) for row in table.names] for name in next(iter(board.extras.values()))
    }
    whole = replace(table, columns=table.columns | extras)
    wide = width >= WIDE and len(list(_portions(whole, width))) == 1
    parts = _drawn(title(board.setting), whole if wide else table, width, dim=tuple(extras))
    lines = [accuracy_text(board), *fewer_text(board), *worst_text([board], "of the table")]
    if WORST in board.columns and any(board.fewer(row[WORST]) for row in board.scores.values()):
        lines.append("With * it is over the seeds that saw all attacks: the other columns have more.")
    if "#" in table.heads:
        lines.append(
            "#: 1 + how many learners are significantly better in the last column; equal # cannot be told apart."
        )
        if set(board.measured(board.columns[-1])) - set(board.ranks):
            lines.append("No rank (–) where flags deny the number.")
        lines += luck_text([board])
    if wide and len(board.columns) > 1:
        lines.append("Success: of the attack that turned most right answers wrong. Worst 10 %: of the episodes.")
    flags = flag_lines(board)
    return Group(*parts[:-1], _dim("\n".join([" ".join(lines), *flags, *[POINTER] * bool(flags)])), Text(""))


def _curves(group: list[Curve], width: int) -> RenderableType:
    table = curve_table(group)
    points = {name: [cell._replace(spread="") for cell in cells] for name, cells in table.columns.items()}
    table = Table(
        dict(zip(("learner", "attack"), table.heads.values(), strict=True)), points | {"area": table.columns["area"]}
    )
    seeds = max(len([1 for other in group if (other.learner, other.attack) == (curve.learner, curve.attack)])
                for curve in group)  # fmt: skip
    episodes, over = f"{group[0].episodes.shape[1]:,} episodes", size_name(group[0].told["threat_norm"])
    zero = f" (0: {meaning_at_zero(group[0].told)})" if group[0].values[0] == 0 else ""
    caption = (
        f"Accuracy in % at each {over}{zero}. Area: under the curve, over {group[0].eps[-1]}: the mean over {over}; ± "
    )
    caption += (
        f"half of the 95 % interval over {episodes}." if seeds == 1
        else f"standard deviation of {seeds} seeds ({episodes} each); * rests on fewer seeds."
    )  # fmt: skip
    return Group(*_drawn(title(group[0].told), table, width)[:-1], _dim(caption), Text(""))


def _comparison(pair: Comparison, width: int, seeds: bool) -> RenderableType:
    table = comparison_table(pair, seeds=seeds)
    letters = max(len(pair.first), len(pair.second)) > (12 if width < WIDE else 40)
    short = {pair.first: "A", pair.second: "B"} if letters else {}
    ahead = [short.get(cell.text, cell.text) or "cannot be told apart" for cell in table.columns["ahead"]]
    table.columns["ahead"] = [TableCell(name) for name in ahead]
    if len(list(_portions(table, width))) > 1:
        table.columns["ahead"] = [TableCell(folded(name, 12)) for name in ahead]
    names = (
        Text.assemble((f"{letter} ", "bold"), name)
        for letter, name in zip("AB", (pair.first, pair.second), strict=True)
    )
    above, *parts = _drawn(title(pair.setting), table, width, names)
    flags = flag_lines(pair.board)
    return Group(above, *parts, *([_dim("\n".join(flags)), Text("")] if flags else []))


def _comparison_caption(pairs: Sequence[Comparison], seeds: bool) -> str:
    tests = [test for pair in pairs for test in pair.contrasts.values()]
    counts = {len(sample.by_seed) for test in tests for sample in (test.first, test.second)}
    several = max(counts) > 1
    episodes = " or ".join(f"{number:,}" for number in sorted({int(pair.setting["episodes"]) for pair in pairs}))
    lines = [
        "A, B: accuracy in %" + ("; ± standard deviation between seeds, where there are several." if several else "."),
        f"A − B: in points, mean over the same episodes; ± half of its 95 % interval over {episodes} episodes.",
        f"p: paired t-test over episodes, by Holm's correction for {tests_text(pairs)}, all that are printed.",
    ]
    if seeds:
        lines.append("p seeds: Welch's t-test over the means of the seeds; – where one learner has a single seed.")
    needs = "p, and p seeds where there is one, are" if seeds else "p is"
    lines.append(f"Ahead: the better one if {needs} below 0.05.")
    lines += worst_text([pair.board for pair in pairs], "that the two were under")
    if 1 in counts:
        some = " where a learner has one seed" if several else ""
        lines.append(f"Comparisons rest on one training each{some}: its luck is not in p.")
    if any(flag_lines(pair.board) for pair in pairs):
        lines.append(POINTER)
    return " ".join(lines)


# -- drawing ---------------------------------------------------------------------------------------


def _drawn(
    above: Sequence[str], table: Table, width: int, more: Iterable[Text] = (), dim: Sequence[str] = ()
) -> list[RenderableType]:  # fmt: skip
    """Lines in bold, then the table, in several where it is wider than the terminal; an empty line behind each."""
    parts: list[RenderableType] = [*(Text(line, style="bold") for line in above), *more]
    names = _names(table, width)
    for chosen in _portions(table, width):
        drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
        for head in names:
            drawn.add_column(head, no_wrap=True)
        for column in chosen:
            drawn.add_column(folded(column, 12), justify="right", no_wrap=True)
        cells = [[_text(cell, table.columns[column], dim=column in dim) for cell in table.columns[column]]
                 for column in chosen]  # fmt: skip
        for row in zip(*(map(Text, each) for each in names.values()), *cells, strict=True):
            drawn.add_row(*row)
        parts += [drawn, Text("")]
    return parts


def _names(table: Table, width: int) -> dict[str, list[str]]:
    widths = {"learner": max(16, width // (4 if "attack" in table.heads else 3)), "attack": max(12, width // 5)}
    return {head: [folded(name, widths.get(head, 14)) for name in names] for head, names in table.heads.items()}


def _portions(table: Table, width: int) -> Iterator[list[str]]:
    """The columns in portions that fit beside the names of the rows."""
    beside = sum(max(map(_widest, [head, *names])) + _GAP for head, names in _names(table, width).items()) - _GAP
    chosen: list[str] = []
    used = beside
    for column, cells in table.columns.items():
        need = _GAP + max(_widest(folded(column, 12)), *(_widest(_text(cell, cells).plain) for cell in cells))
        if chosen and used + need > width:
            yield chosen
            chosen, used = [], beside
        chosen.append(column)
        used += need
    yield chosen


def _text(cell: TableCell, column: Sequence[TableCell], *, dim: bool = False) -> Text:
    """`85.3 ±1.2!`; numbers, ± and marks of a column stand below each other."""
    text = Text(cell.text, style="bold" if cell.bold else "dim" if dim else "")
    digits = max(len(other.spread) for other in column)
    if digits:
        text.append((f" ±{cell.spread}" if cell.spread else "").ljust(digits + 2), style="not bold dim")
    return text.append(cell.marks.ljust(max(len(other.marks) for other in column)), style="not bold yellow")


def _widest(text: str) -> int:
    return max(map(len, text.split("\n")))


def _dim(text: str) -> Text:
    return Text(text, style="dim")
