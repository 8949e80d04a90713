"""The leaderboard for a terminal: one table a setting, a row a learner, the attacks as columns; and curves over ε."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robustbench_meta.boards import CLEAN, PLACE, WORST, Board, Score, boards, shown
from robustbench_meta.checks import BLACK_BOX_QUERIES
from robustbench_meta.comparison import Contrast, Duel
from robustbench_meta.curves import SCENE, Curve
from robustbench_meta.statistics import Paired

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
_SIDES = {"clean": "clean", "adv": "attacked", "poisoned": "poisoned"}
_POINTER = "What the flags mean: docs/flags.md."
_WIDE = 120
_GAP = 3
"""Blanks between two columns."""


def tables(frame: pd.DataFrame, width: int = 80) -> list[RenderableType]:
    """Tables of a leaderboard that fit `width` columns; too many attacks continue in another table below.

    Transductive and inductive learners, other threat models, scenarios or data are never in one table.
    """
    return [_drawn(board, width) for board in boards(frame)]


def _drawn(board: Board, width: int) -> RenderableType:
    names = {name: folded(name, max(16, width // 3)) for name in board.scores}
    cells = {
        column: {name: _cell(board, row[column], column) for name, row in board.scores.items()}
        for column in board.columns
    }
    more = {
        extra: {name: Text(row[extra], style="dim") for name, row in board.extras.items()}
        for extra in next(iter(board.extras.values()))
    }
    first = {"learner": names}
    if len(names) > 1 and board.ranks:
        first = {"#": {name: str(board.ranks.get(name, "–")) for name in names}, **first}
    chunks = list(_chunks(first, cells | more, width))
    wide = width >= _WIDE and len(chunks) == 1
    parts: list[RenderableType] = [Text(line, style="bold") for line in title(board.setting)]
    for chunk in chunks if wide else _chunks(first, cells, width):
        parts += [_table(first, {column: (cells | more)[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_caption(board, wide, "#" in first), style="dim"), Text(""))


def _table(first: Mapping[str, Mapping[str, str]], cells: Mapping[str, Mapping[str, Text]]) -> Table:
    """A table whose first columns say what each row is."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    for column in first:
        table.add_column(column, no_wrap=True)
    for column in cells:
        table.add_column(folded(column, 12), justify="right", no_wrap=True)
    for row in next(iter(first.values())):
        named = (Text(shown[row]) for shown in first.values())
        table.add_row(*named, *(column[row] for column in cells.values()))
    return table


def _chunks(
    first: Mapping[str, Mapping[str, str]], cells: Mapping[str, Mapping[str, Text]], width: int
) -> Iterator[list[str]]:
    """The columns in portions that fit beside the first ones."""
    beside = sum(max(_widest(text) for text in [column, *shown.values()]) + _GAP for column, shown in first.items())
    chunk: list[str] = []
    used = beside - _GAP
    for column, texts in cells.items():
        need = _GAP + max(_widest(folded(column, 12)), *(_widest(text.plain) for text in texts.values()))
        if chunk and used + need > width:
            yield chunk
            chunk, used = [], beside - _GAP
        chunk.append(column)
        used += need
    yield chunk


def _cell(board: Board, score: Score, column: str) -> Text:
    """`85.3 ±1.2`, the best of the column in bold, `!` where the number is flagged, `*` where seeds are missing."""
    scores = [row[column] for row in board.scores.values()]
    digits = max((len(shown(other.spread)) for other in scores if not math.isnan(other.spread)), default=0)
    text = Text(score.text(), style="bold" if score.text() == board.best(column) else "")
    if digits:
        alone = math.isnan(score.spread) or (_fewer(score, board) and score.seeds == 1)
        text.append(("" if alone else f" ±{shown(score.spread)}").ljust(digits + 2), style="not bold dim")
    room = max(len(_mark(board, other)) for other in scores)
    return text.append(_mark(board, score).ljust(room), style="not bold yellow")


def _mark(board: Board, score: Score) -> str:
    return ("!" if score.flags - board.shared else "") + ("*" if _fewer(score, board) else "")


def _fewer(score: Score, board: Board) -> bool:
    return 0 < score.seeds < board.seeds


def title(told: Mapping[str, Any]) -> list[str]:
    """Two lines: the data, tasks and recipe; the threat model, what is attacked, and the inference."""
    first = f"{told['dataset']} · {told['way']}-way {told['shot']}-shot · {told['backbone']}"
    first += f" · {told['meta_steps']:,} meta-steps"
    if told["precision"] != "float32":
        first += f" · {told['precision']}"
    inference = f"{told['inference']} ({'no' if told['norm'] == 'none' else told['norm']} norm)"
    if told["threat_norm"] == "none":
        return [first, f"no attack · {inference}"]
    query = f"{_SIDES[told['query']]} query" if told["query"] != "transfer" else f"query from {told['surrogate']}"
    sides = f"{_SIDES[told['support']]} support, {query}"
    threat = _NORMS.get(told["threat_norm"], told["threat_norm"])
    eps = f"ε = {told['eps']}" if "eps" in told else "over ε"
    return [first, f"{threat} {eps} · {sides} · {inference}"]


def _caption(board: Board, wide: bool, ranked: bool) -> str:
    episodes = board.setting["episodes"]
    if board.seeds == 1:
        lines = [f"Accuracy in %; ± half of the 95 % interval over {episodes:,} episodes."]
    else:
        lines = [f"Accuracy in %, mean of {board.seeds} seeds ({episodes:,} episodes each)"]
        lines[0] += "; ± standard deviation of the seeds."
        if any(_fewer(score, board) for row in board.scores.values() for score in row.values()):
            lines.append("* rests on fewer seeds.")
    if WORST in board.columns:
        lines.append(_worst_told(board.setting, "right under every attack of the table"))
        if any(_fewer(row[WORST], board) for row in board.scores.values()):
            lines.append("With * it is over the seeds that saw all attacks: the other columns have more.")
    if ranked:
        lines.append(
            "#: 1 + how many learners are significantly better in the last column; equal # cannot be told apart."
        )
        trained = {board.scores[name][board.columns[-1]].seeds for name in board.ranks}
        if 1 in trained:
            some = " where a learner has one seed" if len(trained) > 1 else ""
            lines.append(f"Ranks rest on one training each{some}: its luck is not in them.")
    if wide and len(board.columns) > 1:
        lines.append("Success: of the attack that turned most right answers wrong. Worst 10 %: of the episodes.")
    return "\n".join([" ".join(lines), *_doubts(board)])


def _worst_told(setting: Mapping[str, Any], told: str) -> str:
    """What the worst case is; attacked support makes other weights, of which no unattacked answer is known."""
    return f"Worst case: {told}, and without any." if setting["support"] == "clean" else f"Worst case: {told}."


def _doubts(board: Board) -> list[str]:
    """The flags: those that all numbers share at once, the others with the numbers that have them; where to read on."""
    lines = [f"All: {', '.join(sorted(board.shared))}{_searches(board, board.shared)}."] if board.shared else []
    for flag, columns in board.doubts().items():
        throughout = board.throughout(flag)
        told = list(throughout)
        for column, flagged in columns.items():
            names = [name for name in flagged if name not in throughout]
            if len(names) > 1 and set(names) == set(board.measured(column)):
                told.append(f"all under {column}")
            else:
                told += [name if column == CLEAN else f"{name} under {column}" for name in names]
        lines.append(f"! {flag}: {', '.join(told)}{_searches(board, {flag})}.")
    return [*lines, _POINTER] if lines else []


def _searches(board: Board, flags: Collection[str]) -> str:
    """Behind masked gradients: what the probe without gradients left, of each learner where it left less."""
    if "masked-gradients" not in flags:
        return ""
    left = {name: board.searched(name) for name in board.scores}
    told = {name: f"{shown(points)} %" for name, points in left.items() if not math.isnan(points)}
    if not told:
        return ""
    flagged = [
        name for name, row in board.scores.items() if any("masked-gradients" in score.flags for score in row.values())
    ]
    each = ", ".join(points if len(flagged) == 1 else f"{points} of {name}" for name, points in told.items())
    return f" (a {BLACK_BOX_QUERIES}-query search leaves {each})"


# -- comparisons ---------------------------------------------------------------------------------------


def duel_tables(found: Sequence[Duel], width: int = 80) -> list[RenderableType]:
    """A table for each two learners and threat, a row a column of the leaderboard; then what it all means."""
    contrasts = [contrast for duel in found for contrast in duel.contrasts.values()]
    spread = any(len(sample.by_seed) > 1 for contrast in contrasts for sample in (contrast.first, contrast.second))
    luck = any(not math.isnan(contrast.seeds_p) for contrast in contrasts)
    drawn = [_duel_drawn(duel, width, luck) for duel in found]
    return [*drawn, Text(_duel_caption(found, len(contrasts), spread, luck), style="dim")]


def _duel_drawn(duel: Duel, width: int, luck: bool) -> RenderableType:
    rows = duel.contrasts
    first = {"under": {column: folded(column, 14) for column in rows}}
    room = 12 if width < _WIDE else 40
    board = duel.board
    cells = {
        "A": _shares(board, {column: duel.scores[column][0] for column in rows}),
        "B": _shares(board, {column: duel.scores[column][1] for column in rows}),
        "A − B": {column: _difference(contrast.paired) for column, contrast in rows.items()},
        "p": {column: Text(_p(contrast.corrected)) for column, contrast in rows.items()},
    }
    if luck:
        cells["p seeds"] = {column: Text(_p(contrast.seeds_p)) for column, contrast in rows.items()}
    cells["ahead"] = {column: Text(folded(_ahead(duel, contrast, room), room)) for column, contrast in rows.items()}
    parts: list[RenderableType] = [Text(line, style="bold") for line in title(duel.setting)]
    parts += [
        Text.assemble((f"{letter} ", "bold"), name)
        for letter, name in zip("AB", (duel.first, duel.second), strict=True)
    ]
    for chunk in _chunks(first, cells, width):
        parts += [_table(first, {column: cells[column] for column in chunk}), Text("")]
    doubts = "\n".join(_doubts(board)[:-1])
    return Group(*parts, *([Text(doubts, style="dim"), Text("")] if doubts else []))


def _shares(board: Board, scores: Mapping[str, Score]) -> dict[str, Text]:
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


def _ahead(duel: Duel, contrast: Contrast, room: int) -> str:
    """The better learner by its name, or by its letter where names are long."""
    if not contrast.ahead:
        return "cannot be told apart"
    letters = max(len(duel.first), len(duel.second)) > room
    first, second = ("A", "B") if letters else (duel.first, duel.second)
    return first if contrast.ahead > 0 else second


def _duel_caption(found: Sequence[Duel], count: int, spread: bool, luck: bool) -> str:
    episodes = sorted({int(duel.setting["episodes"]) for duel in found})
    lines = [
        "A, B: accuracy in %" + ("; ± standard deviation between seeds, where there are several." if spread else "."),
        "A − B: in points, mean over the same episodes; ± half of its 95 % interval over "
        + f"{' or '.join(f'{number:,}' for number in episodes)} episodes.",
        f"p: paired t-test over episodes, by Holm's correction for {count:,} comparisons, all that are printed.",
    ]
    if luck:
        lines.append("p seeds: Welch's t-test over the means of the seeds; – where one learner has a single seed.")
    needs = "p is" if not luck else "p, and p seeds where there is one, are"
    lines.append(f"Ahead: the better one if {needs} below 0.05.")
    worst = {_worst_told(duel.setting, "right under every attack that the two were under"): None
             for duel in found if WORST in duel.contrasts}  # fmt: skip
    lines += worst if len(worst) < 2 else [
        "Worst case: right under every attack that the two were under, and, with clean support, without any."
    ]  # fmt: skip
    seeds = [min(len(contrast.first.by_seed), len(contrast.second.by_seed))
             for duel in found for contrast in duel.contrasts.values()]  # fmt: skip
    if 1 in seeds:
        some = " where a learner has one seed" if spread else ""
        lines.append(f"Comparisons rest on one training each{some}: its luck is not in p.")
    if any(_doubts(duel.board) for duel in found):
        lines.append(_POINTER)
    return " ".join(lines)


# -- curves over ε -------------------------------------------------------------------------------------


def curve_tables(found: Sequence[Curve], width: int = 80) -> list[RenderableType]:
    """A table for each setting, threat and list of ε: a row a learner and attack, a column an ε, and the area."""
    groups: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in found:
        groups.setdefault((*(curve.told[name] for name in [*PLACE, *SCENE]), curve.eps), []).append(curve)
    return [_curves_drawn(group, width) for group in groups.values()]


def _curves_drawn(group: list[Curve], width: int) -> RenderableType:
    rows: dict[str, list[Curve]] = {}
    for curve in group:
        rows.setdefault(f"{curve.learner} under {curve.attack}", []).append(curve)
    places = {
        "learner": {row: folded(curves[0].learner, max(16, width // 4)) for row, curves in rows.items()},
        "attack": {row: folded(curves[0].attack, max(12, width // 5)) for row, curves in rows.items()},
    }
    seeds = max(map(len, rows.values()))
    cells = {
        f"ε = {eps}": {
            row: Text(shown(100 * float(np.mean([curve.accuracy(point)[0] for curve in curves]))))
            for row, curves in rows.items()
        }
        for point, eps in enumerate(group[0].eps)
    }
    cells["area"] = {row: _area(curves, seeds) for row, curves in rows.items()}
    parts: list[RenderableType] = [Text(line, style="bold") for line in title(group[0].told)]
    for chunk in _chunks(places, cells, width):
        parts += [_table(places, {column: cells[column] for column in chunk}), Text("")]
    return Group(*parts[:-1], Text(_curve_caption(group[0], seeds), style="dim"), Text(""))


def _area(curves: list[Curve], seeds: int) -> Text:
    """`57.1 ±1.9`; `*` where seeds are missing, whose spread is then not comparable."""
    areas = [curve.area for curve in curves]
    means = np.array([mean for mean, _ in areas])
    spread = areas[0][1] if seeds == 1 else float(means.std(ddof=1)) if len(means) > 1 else math.nan
    text = Text(shown(100 * float(means.mean())), style="bold")
    text.append("" if math.isnan(spread) else f" ±{shown(100 * spread)}", style="not bold dim")
    return text.append("*" if len(means) < seeds else "", style="not bold yellow")


def _curve_caption(curve: Curve, seeds: int) -> str:
    episodes = f"{curve.episodes.shape[1]:,} episodes"
    lines = [
        f"Accuracy in % at each ε (0: without attack). Area: under the curve, over {curve.eps[-1]}: the mean over ε;"
    ]
    lines.append(
        f"± half of the 95 % interval over {episodes}." if seeds == 1 else
        f"± standard deviation of {seeds} seeds ({episodes} each); * rests on fewer seeds."
    )  # fmt: skip
    return " ".join(lines)


def folded(label: str, width: int) -> str:
    """A label broken after ':' and ',' and at blanks, where it is longer than `width`."""
    lines = [""]
    for piece in re.findall(r"[^:, ]+[:, ]*|[:, ]+", label):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _widest(text: str) -> int:
    return max(len(line) for line in text.split("\n"))
