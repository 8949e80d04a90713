"""What tables, figures and the report say of settings, numbers and flags."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.experiment.probes import BLACK_BOX_QUERIES
from robustbench_meta.results.corruptions import DRAWN, MEAN, KindTable
from robustbench_meta.results.tables import CLEAN, WORST, LeaderboardTable, shown

_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0", "severity": "corruption"}
_SIDES = {"clean": "clean", "adv": "attacked", "poisoned": "poisoned", "asp": "poisoned (asp)", "swap": "swapped",
          "certified": "certified"}  # fmt: skip

# -- settings --------------------------------------------------------------------------------------


def title(setting: Mapping[str, Any]) -> list[str]:
    """Two lines: the data, tasks and recipe; the threat model, what is attacked, and the inference."""
    first = f"{setting['dataset']} · {setting['way']}-way {setting['shot']}-shot · {setting['backbone']}"
    first += f" · {setting['meta_steps']:,} meta-steps"
    if setting["precision"] != "float32":
        first += f" · {setting['precision']}"
    inference = f"{setting['inference']} ({norm_layer(setting)})"
    if setting["threat_norm"] == "none":
        return [first, f"no attack · {inference}"]
    return [first, f"{threat(setting)} · {sides(setting)} · {inference}"]


def norm_layer(setting: Mapping[str, Any]) -> str:
    """`group norm`, `no norm`."""
    return f"{'no' if setting['norm'] == 'none' else setting['norm']} norm"


def threat(setting: Mapping[str, Any]) -> str:
    """`L∞ ε = 0.1`, `corruption, severity 3`; `L∞ over ε` where no single one is meant; `no attack`."""
    norm = setting["threat_norm"]
    if norm == "none":
        return "no attack"
    if "eps" not in setting:
        return f"{norm_name(norm)} over {size_name(norm)}"
    return f"{norm_name(norm)}{',' * (norm == 'severity')} {size_shown(norm, setting['eps'])}"


def size_shown(norm: str, eps: str) -> str:
    """`ε = 0.1`; `severity 3`."""
    return f"severity {eps}" if norm == "severity" else f"ε = {eps}"


def size_name(norm: str) -> str:
    """What grows along a curve: `ε`, `severity`."""
    return "severity" if norm == "severity" else "ε"


def meaning_at_zero(told: Mapping[str, Any]) -> str:
    """What the accuracy of a curve at ε = 0 is."""
    return "proved right at any radius" if told["query"] == "certified" else "without attack"


def size_axis(norm: str) -> str:
    """`ε (L∞)`; `severity`."""
    return "severity" if norm == "severity" else f"ε ({norm_name(norm)})"


def norm_name(norm: str) -> str:
    """`L∞` for `linf`."""
    return _NORMS.get(norm, norm)


def sides(setting: Mapping[str, Any]) -> str:
    """What is done to support and query: `clean support, attacked query`."""
    surrogate = setting["query"] == "transfer"
    query = f"query from {setting['surrogate']}" if surrogate else f"{_SIDES[setting['query']]} query"
    return f"{_SIDES[setting['support']]} support, {query}"


def folded(label: str, width: int) -> str:
    """A label broken after ':' and ',' and at blanks, where it is longer than `width`."""
    lines = [""]
    for piece in re.findall(r"[^:, ]+[:, ]*|[:, ]+", label):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


# -- numbers ---------------------------------------------------------------------------------------


def accuracy_text(board: LeaderboardTable, alone: str = "") -> str:
    """What the numbers of a table are means of, and what is behind ±; `alone` is added where there is one seed."""
    episodes = f"{board.setting['episodes']:,} episodes"
    if board.seeds == 1:
        return f"Accuracy in %; ± half of the 95 % interval over {episodes}{alone}."
    return f"Accuracy in %, mean of {board.seeds} seeds ({episodes} each); ± standard deviation of the seeds."


def kinds_text(found: KindTable) -> str:
    """What the numbers of a table of corruptions are means of, and what is behind ±."""
    severities = f"{'severities' if len(found.severities) > 1 else 'severity'} {', '.join(found.severities)}"
    episodes = f"{found.told['episodes']:,} episodes"
    lines = [f"Accuracy in %, over {severities}; {CLEAN}: without corruption."]
    lines += [f"{DRAWN}: a kind drawn for each image."] * (DRAWN in found.kinds)
    lines += [f"{MEAN}: over kinds{f' but {DRAWN}' * (DRAWN in found.kinds)}."] * (MEAN in found.kinds)
    spread = (
        f"half of the 95 % interval over {episodes}" if found.seeds == 1
        else f"standard deviation of {found.seeds} seeds ({episodes} each); * rests on fewer seeds"
    )  # fmt: skip
    return " ".join([*lines, f"±: {spread}."])


def fewer_text(board: LeaderboardTable) -> list[str]:
    """What `*` means, if a number has it."""
    marked = any(board.fewer(score) for row in board.scores.values() for score in row.values())
    return ["* rests on fewer seeds."] if marked else []


def worst_text(boards: Iterable[LeaderboardTable], where: str) -> list[str]:
    """What the worst case is, if a board has one; attacked support makes other weights, without a clean answer."""
    clean = {board.setting["support"] == CLEAN for board in boards if WORST in board.columns}
    if not clean:
        return []
    without = (
        "" if True not in clean else ", and, with clean support, without any" if False in clean else ", and without any"
    )
    return [f"Worst case: right under every attack {where}{without}."]


def luck_text(boards: Iterable[LeaderboardTable]) -> list[str]:
    """A warning where ranks rest on a single training."""
    seeds = {board.scores[name][board.columns[-1]].seeds for board in boards for name in board.ranks}
    some = " where a learner has one seed" if len(seeds) > 1 else ""
    return [f"Ranks rest on one training each{some}: its luck is not in them."] if 1 in seeds else []


def export_notes(board: LeaderboardTable) -> list[str]:
    """What ±, bold and marks of an exported table mean, and which numbers are in doubt."""
    lines = [accuracy_text(board, ", one training each"), *worst_text([board], "of the table")]
    if any(board.leaders.values()):
        by = "episodes and seeds" if board.seeds > 1 else "episodes"
        lines.append(
            "Bold: all that cannot be told apart from the best, for no learner is significantly better "
            f"(5 %, paired over {by}, Holm's correction for the pairs under one attack)."
        )
    return [*lines, *fewer_text(board), *flags_text({"": board}, "! ")]


def spread_text(bars: str, seeds: Iterable[int], episodes: int) -> str:
    """What the numbers of a figure are means of, and what its error bars (`bars`) are."""
    counts = {count for count in seeds if count}
    if counts <= {1}:
        return f"Means over {episodes:,} test episodes, of one training each; {bars}: 95 % intervals over episodes."
    most, fewer = max(counts), len(counts) > 1
    return (
        f"Means over {most} seeds{' (some rest on fewer)' if fewer else ''} of {episodes:,} test episodes each; "
        f"{bars}: standard deviation between seeds{', none where there is one seed' if 1 in counts else ''}."
    )


# -- flags -----------------------------------------------------------------------------------------


class FlagNote(NamedTuple):
    """A flag of a table: what it means, and which numbers have it."""

    flag: str
    means: str
    who: str
    shared: bool
    """Whether all numbers of the table have it."""


def flags_of(board: LeaderboardTable, everything: str = "all") -> list[FlagNote]:
    """The flags of a table, those of all its numbers (in these words) first."""
    notes = [(flag, everything, True) for flag in sorted(board.shared)]
    notes += [(flag, who, False) for flag, who in _partial_flags(board).items()]
    return [FlagNote(flag, meaning(flag), who + _searches(board, {flag}), shared) for flag, who, shared in notes]


def flag_lines(board: LeaderboardTable) -> list[str]:
    """The same in lines for the terminal: the flags that all numbers share at once, without what they mean."""
    lines = [f"All: {', '.join(sorted(board.shared))}{_searches(board, board.shared)}."] if board.shared else []
    return lines + [f"! {note.flag}: {note.who}." for note in flags_of(board) if not note.shared]


def meaning(flag: str) -> str:
    """What a flag means, in a line."""
    return FLAGS.get(flag, "a flag that this version does not know")


def flags_text(boards: Mapping[str, LeaderboardTable], mark: str = "Flagged ") -> list[str]:
    """The flags of boards, each once and with its meaning: those of all numbers in a sentence, then one for each other.

    Args:
        boards: by what they are called where they differ.
        mark: what the sentences on flags of some numbers begin with.
    """
    flags: dict[str, dict[str, FlagNote]] = {}
    for where, board in boards.items():
        for note in flags_of(board):
            flags.setdefault(note.flag, {})[where] = note
    everywhere, partial = [], []
    for flag, notes in sorted(flags.items()):
        whose: dict[str, list[str]] = {}
        for where, note in notes.items():
            whose.setdefault(note.who, []).append(where)
        if len(notes) == len(boards) and all(note.shared for note in notes.values()):
            search = next(iter(whose)).removeprefix("all") if len(whose) == 1 else ""
            everywhere.append(f"{flag} ({meaning(flag)}){search}")
        else:
            named = (who if len(at) == len(boards) else f"{who} ({'; '.join(at)})" for who, at in whose.items())
            partial.append(f"{mark}{flag} ({meaning(flag)}): {'; '.join(named)}.")
    return [f"All: {', '.join(everywhere)}."] * bool(everywhere) + partial


def _partial_flags(board: LeaderboardTable) -> dict[str, str]:
    """Of each flag that not all numbers share: the numbers that have it, in words."""
    found = {}
    for flag, columns in board.doubts().items():
        throughout = board.throughout(flag)
        numbers = list(throughout)
        for column, flagged in columns.items():
            names = [name for name in flagged if name not in throughout]
            if len(names) > 1 and set(names) == set(board.measured(column)):
                numbers.append(f"all under {column}")
            else:
                numbers += [name if column == CLEAN else f"{name} under {column}" for name in names]
        found[flag] = ", ".join(numbers)
    return found


def _searches(board: LeaderboardTable, flags: Collection[str]) -> str:
    """Behind masked gradients: what the probe without gradients left, of each learner where it left less."""
    if "masked-gradients" not in flags:
        return ""
    left = {name: board.searched(name) for name in board.scores}
    points = {name: f"{shown(value)} %" for name, value in left.items() if not math.isnan(value)}
    if not points:
        return ""
    flagged = [
        name for name, row in board.scores.items() if any("masked-gradients" in score.flags for score in row.values())
    ]
    each = ", ".join(text if len(flagged) == 1 else f"{text} of {name}" for name, text in points.items())
    return f" (a {BLACK_BOX_QUERIES}-query search leaves {each})"
