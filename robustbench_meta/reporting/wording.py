"""What a caption says of its numbers, in words that need no other page: what error bars are, and what is in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.reporting.terminal.leaderboard import has_flags, searches
from robustbench_meta.results.tables import LeaderboardTable


@dataclass(frozen=True)
class FlagNote:
    """A flag of a table: what it means, and which numbers have it."""

    flag: str
    means: str
    who: str
    shared: bool
    """Whether all numbers of the table have it."""


def flags_of(board: LeaderboardTable, all_of_them: str = "all") -> list[FlagNote]:
    """The flags of a table, those of all its numbers (in these words) first."""
    told = [(flag, all_of_them, True) for flag in sorted(board.shared)]
    told += [(flag, who, False) for flag, who in has_flags(board).items()]
    return [FlagNote(flag, meaning(flag), who + searches(board, {flag}), shared) for flag, who, shared in told]


def meaning(flag: str) -> str:
    """What a flag means, in a line."""
    return FLAGS.get(flag, "a flag that this version does not know")


def flags_text(found: Mapping[str, LeaderboardTable], mark: str = "Flagged ") -> list[str]:
    """The flags of boards, each once and with its meaning: those of all numbers in a sentence, then one for each other.

    Args:
        found: the boards, by what they are called where they differ.
        mark: what the sentences on flags of some numbers begin with.
    """
    flags: dict[str, dict[str, FlagNote]] = {}
    for where, board in found.items():
        for doubt in flags_of(board):
            flags.setdefault(doubt.flag, {})[where] = doubt
    everywhere = {
        flag for flag, doubts in flags.items()
        if len(doubts) == len(found) and all(doubt.shared for doubt in doubts.values())
    }  # fmt: skip
    lines = []
    if everywhere:
        lines.append(f"All: {', '.join(_told(flag, flags[flag]) for flag in sorted(everywhere))}.")
    for flag in sorted(flags.keys() - everywhere):
        lines.append(f"{mark}{flag} ({meaning(flag)}): {_whose(flags[flag], len(found))}.")
    return lines


def _told(flag: str, doubts: Mapping[str, FlagNote]) -> str:
    """A flag of all numbers, and what the search without gradients left, if that is the same everywhere."""
    (more, *others) = dict.fromkeys(doubt.who.removeprefix("all") for doubt in doubts.values())
    return f"{flag} ({meaning(flag)})" + ("" if others else more)


def _whose(doubts: Mapping[str, FlagNote], count: int) -> str:
    """Which numbers have a flag, boards with the same ones together; the boards are named unless it is all."""
    places: dict[str, list[str]] = {}
    for where, doubt in doubts.items():
        places.setdefault(doubt.who, []).append(where)
    return "; ".join(who if len(where) == count else f"{who} ({'; '.join(where)})" for who, where in places.items())


def spread_text(what: str, seeds: Iterable[int], episodes: int) -> str:
    """What the numbers are means of, and what the error bars (`what`) are."""
    counts = {count for count in seeds if count}
    if counts <= {1}:
        return f"Means over {episodes:,} test episodes, of one training each; {what}: 95 % intervals over episodes."
    most, fewer = max(counts), len(counts) > 1
    return (
        f"Means over {most} seeds{' (some rest on fewer)' if fewer else ''} of {episodes:,} test episodes each; "
        f"{what}: standard deviation between seeds{', none where there is one seed' if 1 in counts else ''}."
    )
