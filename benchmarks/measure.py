"""Measures contestants in turn, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.machine import matrix_product, matrix_product_gflop
from benchmarks.outcomes import Outcome, Role, Timed
from benchmarks.processes import Others
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.runtime.devices import wait

ENOUGH = 3.0
"""Seconds that a case of short runs is repeated for."""
MOST = 50
SHORTEST = 0.05
"""Seconds that a turn lasts at least: short work is done several times in it, for it begins with cold caches."""

BUSY = 0.1
"""Cores that others may take: OpenMP's threads wait for each other, and wait long for one that has no core."""

Turn = Callable[[float], tuple[float, Callable[[], Any]]]
"""Does the work until so many seconds are over, once at least: the seconds that it takes once, and what gives its
result."""


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

    def cores(self) -> Cores:
        """As the product has them: as many threads as may be used."""
        return Cores(lambda: self.threads)


@dataclass(frozen=True)
class Contestant:
    """Somebody who does the work, in this process or in another."""

    name: str
    turn: Turn
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
    """Run the contestants in turn, after one turn each to warm up and to compare results; times go into `outcome`.

    The matrix product runs with them if the outcome's work is counted. The first one of each turn moves on by one.
    """
    field = list(contestants)
    if outcome.gflop is not None:
        field.append(Contestant("matrix product", here(matrix_product(settings.device), settings.device), "limit"))
        outcome.limit_gflop = matrix_product_gflop(settings.device)
    results, warm_up = {}, 0.0
    for contestant in field:
        seconds, result = contestant.turn(0.0)
        results[contestant.name] = result() if difference is not None else None
        warm_up += seconds
    ours = next(contestant for contestant in field if contestant.role == "ours")
    for contestant in field:
        timed = Timed(name=contestant.name, role=contestant.role, seconds=[])
        if difference is not None and contestant.role in {"peer", "reference"}:
            timed.difference = difference(results[contestant.name], results[ours.name])
            timed.agrees = timed.difference <= tolerance
        outcome.timed.append(timed)
    results.clear()
    others = Others()
    started, turns, least = time.perf_counter(), settings.repeats, 0.0
    if not settings.quick:
        turns, least = max(turns, min(MOST, int(ENOUGH / max(warm_up, 1e-9)))), SHORTEST
    for turn in range(turns):
        gc.collect()
        for place in range(len(field)):
            at = (turn + place) % len(field)
            outcome.timed[at].seconds.append(field[at].turn(least)[0] / field[at].units)
        if turn and time.perf_counter() - started > settings.seconds:
            outcome.notes.append(f"stopped after {turn + 1} repetitions, for lack of time")
            break
    busy = others.cores()
    if busy is not None:
        outcome.figures["cores that other processes took"] = round(busy, 2)
        if busy > BUSY:
            outcome.notes.append("measured on a busy machine: peers with several threads suffer most; do it again")


def here(run: Callable[[], Any], device: torch.device) -> Turn:
    """The turn of somebody who works in this process."""

    def turn(least: float) -> tuple[float, Callable[[], Any]]:
        seconds, result = clocked(run, device, least)
        return seconds, lambda: on_cpu(result)

    return turn


def clocked(run: Callable[[], Any], device: torch.device, least: float = 0.0) -> tuple[float, Any]:
    """The mean seconds of one run, repeated until so many are over, and the last run's result."""
    wait(device)
    started, runs = time.perf_counter(), 0
    while True:
        result = run()
        wait(device)
        runs, seconds = runs + 1, time.perf_counter() - started
        if seconds >= least:
            return seconds / runs, result


def on_cpu(value: Any) -> Any:
    """Plain data and tensors, the latter on the CPU and without their graph."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), value)


def relative(theirs: Tensor, ours: Tensor) -> float:
    """The length of the difference, as a share of our length."""
    return float((theirs - ours).norm() / ours.norm())
