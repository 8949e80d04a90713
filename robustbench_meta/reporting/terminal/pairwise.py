"""Comparisons of two learners for a terminal: a table a pair and threat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from robustbench_meta.evaluation.statistics import Paired
from robustbench_meta.reporting.terminal.layout import WIDE, draw_table, folded, portions, title
from robustbench_meta.reporting.terminal.leaderboard import POINTER, doubts, worst_text
from robustbench_meta.results.pairwise import Comparison, PairedTest, tests_text
from robustbench_meta.results.tables import WORST, LeaderboardTable, Score, shown


def comparison_tables(found: Sequence[Comparison], width: int = 80) -> list[RenderableType]:
    """A table for each two learners and threat, a row a column of the leaderboard; then what it all means."""
    contrasts = [contrast for pair in found for contrast in pair.contrasts.values()]
    spread = any(len(sample.by_seed) > 1 for contrast in contrasts for sample in (contrast.first, contrast.second))
    luck = any(not math.isnan(contrast.seeds_p) for contrast in contrasts)
    drawn = [_comparison_table(pair, width, luck) for pair in found]
    return [*drawn, Text(_comparison_caption(found, spread, luck), style="dim")]


def _comparison_table(pair: Comparison, width: int, luck: bool) -> RenderableType:
    rows = pair.contrasts
    first = {"under": {column: folded(column, 14) for column in rows}}
    room = 12 if width < WIDE else 40
    board = pair.board
    cells = {
        "A": _shares(board, {column: pair.scores[column][0] for column in rows}),
        "B": _shares(board, {column: pair.scores[column][1] for column in rows}),
        "A − B": {column: _difference(contrast.paired) for column, contrast in rows.items()},
        "p": {column: Text(_p(contrast.corrected)) for column, contrast in rows.items()},
    }
    if luck:
        cells["p seeds"] = {column: Text(_p(contrast.seeds_p)) for column, contrast in rows.items()}
    ahead = {column: _ahead(pair, contrast, room) for column, contrast in rows.items()}
    cells["ahead"] = {column: Text(told) for column, told in ahead.items()}
    if len(list(portions(first, cells, width))) > 1:
        cells["ahead"] = {column: Text(folded(told, 12)) for column, told in ahead.items()}
    parts: list[RenderableType] = [Text(line, style="bold") for line in title(pair.setting)]
    parts += [
        Text.assemble((f"{letter} ", "bold"), name)
        for letter, name in zip("AB", (pair.first, pair.second), strict=True)
    ]
    for chunk in portions(first, cells, width):
        parts += [draw_table(first, {column: cells[column] for column in chunk}), Text("")]
    told = "\n".join(doubts(board)[:-1])
    return Group(*parts, *([Text(told, style="dim"), Text("")] if told else []))


def _shares(board: LeaderboardTable, scores: Mapping[str, Score]) -> dict[str, Text]:
    """`66.9`, of several seeds with the standard deviation between them; `!` where the number is flagged."""
    flagged = {column: bool(score.flags - board.shared) for column, score in scores.items()}
    found = {}
    for column, score in scores.items():
        text = Text(score.text())
        if score.seeds > 1:
            text.append(f" ±{shown(score.spread)}", style="dim")
        found[column] = text.append(("!" if flagged[column] else " ") * any(flagged.values()), style="yellow")
    return found


def _difference(result: Paired) -> Text:
    points = 100 * result.difference
    text = Text(f"{points:+.1f}".replace("-", "−") if abs(points) >= 0.05 else "0.0", style="bold")
    return text if math.isnan(result.ci95) else text.append(f" ±{shown(100 * result.ci95)}", style="not bold dim")


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _ahead(pair: Comparison, contrast: PairedTest, room: int) -> str:
    """The better learner by its name, or by its letter where names are long."""
    if not contrast.ahead:
        return "cannot be told apart"
    letters = max(len(pair.first), len(pair.second)) > room
    first, second = ("A", "B") if letters else (pair.first, pair.second)
    return first if contrast.ahead > 0 else second


def _comparison_caption(found: Sequence[Comparison], spread: bool, luck: bool) -> str:
    episodes = sorted({int(pair.setting["episodes"]) for pair in found})
    lines = [
        "A, B: accuracy in %" + ("; ± standard deviation between seeds, where there are several." if spread else "."),
        "A − B: in points, mean over the same episodes; ± half of its 95 % interval over "
        + f"{' or '.join(f'{number:,}' for number in episodes)} episodes.",
        f"p: paired t-test over episodes, by Holm's correction for {tests_text(found)}, all that are printed.",
    ]
    if luck:
        lines.append("p seeds: Welch's t-test over the means of the seeds; – where one learner has a single seed.")
    needs = "p is" if not luck else "p, and p seeds where there is one, are"
    lines.append(f"Ahead: the better one if {needs} below 0.05.")
    worst = {worst_text(pair.setting, "right under every attack that the two were under"): None
             for pair in found if WORST in pair.contrasts}  # fmt: skip
    lines += worst if len(worst) < 2 else [
        "Worst case: right under every attack that the two were under, and, with clean support, without any."
    ]  # fmt: skip
    seeds = [min(len(contrast.first.by_seed), len(contrast.second.by_seed))
             for pair in found for contrast in pair.contrasts.values()]  # fmt: skip
    if 1 in seeds:
        some = " where a learner has one seed" if spread else ""
        lines.append(f"Comparisons rest on one training each{some}: its luck is not in p.")
    if any(doubts(pair.board) for pair in found):
        lines.append(POINTER)
    return " ".join(lines)
