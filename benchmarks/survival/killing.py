"""Runs that are killed or stopped at random instants, and go on."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.survival.folders import faults, litter, phase, temporary
from benchmarks.survival.runs import Bench, Run

SAYS = "rerun the same command to resume"


@dataclass
class Tally:
    """What was seen."""

    phases: Counter[str] = field(default_factory=Counter)
    """In which phase the runs were when they were ended, as the disk tells."""
    writing: int = 0
    """Of these, how many were at writing a file."""
    lost: list[float] = field(default_factory=list)
    """For each: how many seconds longer all took because of it, its share where there were several."""
    left: list[float] = field(default_factory=list)
    """For each that was followed by none: what share of a whole run's time it took to finish."""
    codes: Counter[int] = field(default_factory=Counter)
    stops: list[float] = field(default_factory=list)
    """The seconds from a signal to the end."""
    litter: int = 0
    faults: list[str] = field(default_factory=list)
    whole: float = 0.0
    """The seconds of an uninterrupted run."""

    @property
    def ended(self) -> int:
        """How many runs were ended."""
        return sum(self.phases.values())

    def lines(self) -> list[str]:
        """The tally in words."""
        phases = ", ".join(f"{name}: {count}" for name, count in self.phases.most_common())
        lines = [f"{self.ended} ended ({phases}), {self.writing} of them while a file was being written"]
        if self.lost:
            lines.append(
                f"an uninterrupted run takes {self.whole:.0f} s; lost by each: median {median(self.lost):.1f} s, most "
                f"{max(self.lost):.1f} s, the new start among it; to finish took {median(self.left):.0%} of a whole "
                f"run (median)"
            )
        if self.stops:
            codes = ", ".join(f"{code} ({count} times)" for code, count in sorted(self.codes.items()))
            lines.append(
                f"exit codes {codes}; from signal to end: median {median(self.stops):.1f} s, most {max(self.stops):.1f}"
            )
        lines.append(f"files left that nobody needs: {self.litter}; differences and damage: {len(self.faults)}")
        return lines + [f"  {fault}" for fault in self.faults]


def kill(bench: Bench, folder: Path, times: int, seed: int, report: Callable[[str], None]) -> Tally:
    """End runs by SIGKILL at instants uniform over their life, every third at the next write; then finish, and look.

    Every fifth is followed by two more before the run may finish.
    """
    draw, tally = random.Random(seed), Tally()
    reference, cells = _reference(bench, folder, tally)
    for number in itertools.count():
        if tally.ended >= times:
            return tally
        results = folder / f"killed-{number}"
        wanted = min(3 if tally.ended % 5 == 4 else 1, times - tally.ended)
        spent, killed = 0.0, 0
        for _ in range(wanted):
            run = bench.start(results)
            run.until(lambda: False, draw.uniform(0, tally.whole), 0.01)
            if tally.ended % 3 == 2:
                run.until(partial(temporary, results))
            if run.code is not None:
                break
            run.kill()
            spent, killed = spent + run.seconds, killed + 1
            tally.phases[phase(results, cells)] += 1
            tally.writing += temporary(results)
        _finish(bench, results, reference, tally, spent, killed)
        report(f"{tally.ended} of {times} kills, {len(tally.faults)} faults")
    raise AssertionError("it counts for ever")


def stop(bench: Bench, folder: Path, times: int, seed: int, report: Callable[[str], None]) -> Tally:
    """Stop runs by SIGINT (to all of their processes, as a terminal does) and SIGTERM (to the first, or to all).

    The instants are uniform over the time from when the results folder is there to the end.
    """
    draw, tally = random.Random(seed), Tally()
    reference, cells = _reference(bench, folder, tally)
    for place in itertools.count():
        if tally.ended >= times:
            return tally
        number, group = [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)][place % 3]
        results = folder / f"stopped-{place}"
        run = bench.start(results)
        run.until((results / "failures").exists)
        run.until(lambda: False, draw.uniform(0.05, max(0.1, tally.whole - (time.monotonic() - run.began))), 0.01)
        if run.code is None:
            told = time.monotonic()
            run.signal(number, group=group)
            code = run.wait()
            tally.stops.append(time.monotonic() - told)
            tally.codes[code] += 1
            reached = phase(results, cells)
            tally.phases[reached] += 1
            tally.faults += _wrong(run, code, number, (results / "leaderboard.csv").exists())
        _finish(bench, results, reference, tally, run.seconds, 1)
        report(f"{tally.ended} of {times} stops, {len(tally.faults)} faults")
    raise AssertionError("it counts for ever")


def _reference(bench: Bench, folder: Path, tally: Tally) -> tuple[Path, int]:
    """A run that nothing disturbs, after one that warms up the caches; and how many cells it has."""
    bench.finish(folder / "warm-up")
    tally.whole = bench.finish(folder / "reference").seconds
    tally.faults += [f"of an undisturbed run: {each}" for each in faults(folder / "warm-up", folder / "reference")]
    return folder / "reference", len(list((folder / "reference" / "records").glob("*.json")))


def _finish(bench: Bench, results: Path, reference: Path, tally: Tally, spent: float, ended: int) -> None:
    last = bench.start(results)
    code = last.wait()
    if code != 0:
        tally.faults.append(f"{results.name}: the run after ended with {code}: {last.said[-2000:]}")
        return
    if ended:
        tally.lost += [(spent + last.seconds - tally.whole) / ended] * ended
        tally.left.append(last.seconds / tally.whole)
    tally.litter += litter(results)
    tally.faults += [f"{results.name}: {each}" for each in faults(results, reference)]
    tally.faults += [f"{results.name}: it says {word!r}" for word in ("Traceback", "damaged") if word in last.said]


def _wrong(run: Run, code: int, number: int, over: bool) -> list[str]:
    """What is not as it should be of a run that was told to stop; one that is over, or shows its tables, may end so."""
    if over and code in (0, -number):  # the signal came when nobody listened any more
        return []
    found = [] if code == 128 + number else [f"signal {number}: exit code {code}"]
    if SAYS not in " ".join(run.said.split()):
        found.append(f"signal {number}: it does not say how to go on")
    if "Traceback" in run.said:
        found.append(f"signal {number}: a traceback")
    return [f"{each}; it said: {run.said[-1500:]}" for each in found]
