"""Whether long runs take more and more memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.processes import tree_mib
from benchmarks.survival.runs import Bench
from benchmarks.survival.together import Witness

WARM_UP = 0.2
"""The share of the steps or episodes that is left out of the slope."""


def watch(bench: Bench, folder: Path, seconds: float = 0.25) -> tuple[list[str], dict[str, float]]:
    """The memory of a run of one learner with one attack: what was seen, and MiB by 1,000 meta-steps or episodes."""
    witness = Witness(folder / "witness")
    run = witness.watches(bench).start(folder / "results")
    looks: list[tuple[float, float]] = []
    while run.code is None:
        now = tree_mib(run.pid)
        if now:
            looks.append((time.monotonic(), now))
        time.sleep(seconds)
    code = run.wait()
    assert code == 0, run.said
    notes, lines, slopes = witness.notes(), [], {}
    for what, place, name, unit in (
        ("training", "step", "meta-training", "meta-steps"),
        ("evaluation", "done", "evaluation", "episode-attack pairs"),
    ):
        told = [note for note in notes if what in note]
        total = told[-1]["of"]
        times, places = [note["at"] for note in told], [note[place] for note in told]
        found = [(float(np.interp(at, times, places)), mib) for at, mib in looks if times[0] <= at <= times[-1]]
        slopes[name], first, last, count = _slope(found, total)
        lines.append(
            f"{name}, {total:,} {unit}: {1000 * slopes[name]:+.2f} MiB a thousand ({count} looks; mean of the first "
            f"tenth after warm-up {first:.0f} MiB, of the last {last:.0f} MiB; {times[-1] - times[0]:.0f} s)"
        )
    return lines, {name: 1000 * slope for name, slope in slopes.items()}


def _slope(found: Sequence[tuple[float, float]], total: int) -> tuple[float, float, float, int]:
    """By least squares, after the warm-up; with the means of the first and last tenth, and how many there are."""
    x, y = np.array([each for each in found if each[0] >= WARM_UP * total]).T
    tenth = max(1, len(x) // 10)
    return float(np.polyfit(x, y, 1)[0]), float(y[:tenth].mean()), float(y[-tenth:].mean()), len(x)
