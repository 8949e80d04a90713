"""Measures contestants in turn, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import matrix_product, matrix_product_gflop
from benchmarks.outcomes import Outcome, Role, Timed
from robustbench_meta.devices import wait

ENOUGH = 3.0
"""Seconds that a case of short runs is repeated for."""
MOST = 50


@dataclass(frozen=True)
class Settings:
    """How the whole benchmark is run."""

    device: torch.device
    threads: int
    repeats: int = 7
    quick: bool = False
    """Tiny sizes and two repetitions: to see that everything runs; its figures mean nothing."""
    seconds: float = 600.0
    """No case is repeated for longer, if it has had two repetitions."""


@dataclass(frozen=True)
class Contestant:
    """Somebody who does the work."""

    name: str
    run: Callable[[], Any]
    role: Role = "peer"
    units: int = 1
    """How many units of work one run is."""


def race(
    outcome: Outcome,
    contestants: Sequence[Contestant],
    settings: Settings,
    *,
    difference: Callable[[Any, Any], float] | None = None,
    tolerance: float = 0.0,
) -> None:
    """Run the contestants in turn, after one run each to warm up and to compare results; times go into `outcome`.

    The matrix product runs with them if the outcome's work is counted. The first one of each turn moves on by one.
    """
    field = list(contestants)
    if outcome.gflop is not None:
        field.append(Contestant("matrix product", matrix_product(settings.device), "limit"))
        outcome.limit_gflop = matrix_product_gflop(settings.device)
    results, warm_up = {}, 0.0
    for contestant in field:
        seconds, results[contestant.name] = _clocked(contestant, settings.device)
        warm_up += seconds
    ours = next(contestant for contestant in field if contestant.role == "ours")
    for contestant in field:
        timed = Timed(name=contestant.name, role=contestant.role, seconds=[])
        if difference is not None and contestant.role in {"peer", "reference"}:
            timed.difference = difference(results[contestant.name], results[ours.name])
            timed.agrees = timed.difference <= tolerance
        outcome.timed.append(timed)
    results.clear()
    started, least = time.perf_counter(), settings.repeats
    if not settings.quick:
        least = max(least, min(MOST, int(ENOUGH / max(warm_up, 1e-9))))
    for turn in range(least):
        gc.collect()
        for place in range(len(field)):
            at = (turn + place) % len(field)
            outcome.timed[at].seconds.append(_clocked(field[at], settings.device)[0] / field[at].units)
        if turn and time.perf_counter() - started > settings.seconds:
            outcome.notes.append(f"stopped after {turn + 1} repetitions, for lack of time")
            break


def _clocked(contestant: Contestant, device: torch.device) -> tuple[float, Any]:
    wait(device)
    started = time.perf_counter()
    result = contestant.run()
    wait(device)
    return time.perf_counter() - started, result


def relative(theirs: Tensor, ours: Tensor) -> float:
    """The length of the difference, as a share of our length."""
    return float((theirs - ours).norm() / ours.norm())
