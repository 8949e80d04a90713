"""Chooses the engine's plan by measurement, and remembers it for this machine and these shapes.

Plans differ in rounding only, but meta-training magnifies rounding: remembering the choice is what
makes the same command give the same numbers again on the same machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from robustbench_meta import __version__
from robustbench_meta.data.cache import cache_dir
from robustbench_meta.devices import device_name, wait
from robustbench_meta.engine import Plan
from robustbench_meta.errors import BenchError
from robustbench_meta.files import write_atomically, write_text

REPEATS = 3
MARGIN = 0.15
"""By which share of its time another plan must beat the default."""
_MAPPINGS = [("vmap", "loop"), ("vmap", "vmap"), ("loop", "loop")]


def default_plan(device: torch.device, tasks: int) -> Plan:
    """What is best most of the time: on CUDA everything at once, on a CPU one by one where weights differ by task."""
    if device.type == "cuda":
        return Plan("vmap", "vmap", tasks)
    return Plan("vmap", "loop", min(8, tasks))


def measured_plan(what: Mapping[str, Any], device: torch.device, tasks: int, work: Callable[[Plan], object]) -> Plan:
    """The fastest plan for `work` on up to `tasks` tasks, from memory if this was measured before.

    Args:
        what: plain data that say what the work is: operation, learner, backbone, shapes.
        device: where it runs.
        tasks: the most tasks that are there at a time.
        work: does a typical piece of work with a plan; its results are thrown away.
    """
    path = cache_dir() / "plans" / f"{_digest(what, device, tasks)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(path.read_text(encoding="utf-8"))
        return Plan(**told["plan"])
    plan, timings = _fastest(device, tasks, work)
    text = json.dumps({"plan": asdict(plan), "milliseconds": timings, "what": dict(what)}, indent=1)
    with contextlib.suppress(BenchError):  # a cache that cannot be written costs a measurement, not a run
        write_atomically(path, lambda part: write_text(part, text))
    return plan


def _fastest(device: torch.device, tasks: int, work: Callable[[Plan], object]) -> tuple[Plan, dict[str, float]]:
    """First the mappings, at the largest chunk that fits, then the chunks of the best mapping.

    The default stays unless another is faster by MARGIN, so that noise seldom decides.
    """
    start, timings = default_plan(device, tasks), dict[Plan, float]()
    while True:
        for shared, own in _MAPPINGS:
            plan = replace(start, shared=shared, own=own)  # type: ignore[arg-type]  # literals in a table
            timings[plan] = _time(device, plan, work)
        if min(timings.values()) < math.inf or start.chunk == 1:
            break
        start = replace(start, chunk=start.chunk // 2)
    best = _best(timings, start)
    for chunk in _chunks(tasks):
        plan = replace(best, chunk=chunk)
        if plan not in timings:
            timings[plan] = _time(device, plan, work)
    best = _best(timings, start)
    if timings[best] == math.inf:
        raise BenchError("not even one task at a time fits in the device's memory; lower --query, --shot or the width")
    told = {f"shared={p.shared} own={p.own} chunk={p.chunk}": round(1000 * t, 3) for p, t in timings.items()}
    return best, {name: milliseconds for name, milliseconds in told.items() if milliseconds < math.inf}


def _best(timings: Mapping[Plan, float], default: Plan) -> Plan:
    fastest = min(timings, key=timings.__getitem__)
    return default if timings[default] * (1 - MARGIN) <= timings[fastest] else fastest


def _chunks(tasks: int) -> Iterator[int]:
    chunk = 2
    while chunk < tasks:
        yield chunk
        chunk *= 2
    yield tasks


def _time(device: torch.device, plan: Plan, work: Callable[[Plan], object]) -> float:
    """Seconds of the fastest of a few runs, after one to warm up; a plan that does not fit in memory takes for ever."""
    try:
        work(plan)
        seconds = []
        for _ in range(REPEATS):
            wait(device)
            started = time.perf_counter()
            work(plan)
            wait(device)
            seconds.append(time.perf_counter() - started)
        return min(seconds)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return math.inf


def _digest(what: Mapping[str, Any], device: torch.device, tasks: int) -> str:
    key = [dict(what), device_name(device), torch.__version__, __version__, tasks]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
