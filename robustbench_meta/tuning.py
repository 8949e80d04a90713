"""Chooses the engine's plan by measurement, and remembers it for this machine and these shapes.

Plans differ in rounding only, but meta-training magnifies rounding: remembering the choice is what
makes the same command give the same numbers again on the same machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import filelock
import torch
from torch import Tensor

from robustbench_meta import __version__
from robustbench_meta.data.cache import cache_dir
from robustbench_meta.devices import device_name, wait
from robustbench_meta.engine import Plan
from robustbench_meta.errors import BenchError
from robustbench_meta.files import write_atomically, write_text

_log = logging.getLogger(__name__)
REPEATS = 2
PAYS_FROM = 600.0
"""Seconds of work from which on a minute or two of compiling may pay."""
AGREES = 1e-3
"""How far a compiled result may lie from the plain one, as a share of its length (float32, sums in another order)."""
MARGIN = 0.15
"""By which share of its time another plan must beat the default."""
MARGIN_OF_LARGER = 0.4
"""The same of a plan with larger chunks, on the CPU: it leaves fewer of them for lanes to share out."""
_MAPPINGS = [("vmap", "loop"), ("vmap", "vmap"), ("loop", "loop")]


def default_plan(device: torch.device, tasks: int) -> Plan:
    """What is best most of the time: on CUDA everything at once, on a CPU one by one where weights differ by task.

    There, two chunks at least: the lanes share them out.
    """
    if device.type == "cuda":
        return Plan("vmap", "vmap", tasks)
    return Plan("vmap", "loop", min(8, (tasks + 1) // 2))


class Book(Protocol):
    """Remembers the plans that were chosen, as text by name."""

    def read(self, name: str) -> str | None:
        """What was written under that name; None if nothing was."""
        ...

    def settle(self, name: str, text: str) -> str:
        """Write it, unless somebody was faster; what all are to use from now on."""
        ...


class CacheBook:
    """The book of this machine, in the cache folder."""

    def read(self, name: str) -> str | None:
        """See `Book.read`."""
        with contextlib.suppress(OSError, ValueError, BenchError):
            return self._path(name).read_text(encoding="utf-8")
        return None

    def settle(self, name: str, text: str) -> str:
        """See `Book.settle`."""
        with contextlib.suppress(OSError, BenchError):  # a cache that cannot be written costs a measurement, not a run
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(path.with_suffix(".lock"), timeout=10):
                if (earlier := self.read(name)) is not None and _plan(earlier) is not None:
                    return earlier
                write_atomically(path, lambda part: write_text(part, text))
        return text

    @staticmethod
    def _path(name: str) -> Path:
        return cache_dir() / "plans" / f"{name}.json"


def measured_plan(
    what: Mapping[str, Any], device: torch.device, tasks: int, work: Callable[[Plan], object], book: Book
) -> Plan:
    """The fastest plan for `work` on up to `tasks` tasks, from memory if this was measured before.

    Args:
        what: plain data that say what the work is: operation, learner, backbone, shapes.
        device: where it runs.
        tasks: the most tasks that are there at a time.
        work: does a typical piece of work with a plan, in this thread; its results are thrown away.
        book: remembers.
    """
    return _remembered(book, what, device, tasks, lambda: _fastest(device, tasks, work))


def compiled_plan(
    what: Mapping[str, Any], device: torch.device, tasks: int, plan: Plan, work: Callable[[Plan], Tensor], steps: int,
    book: Book,
) -> Plan:  # fmt: skip
    """The plan, compiled if that is faster and the run long enough to pay for it; from memory if measured before.

    Args:
        what: as in `measured_plan`.
        device: where it runs.
        tasks: as in `measured_plan`.
        plan: the fastest plan that is not compiled.
        work: as in `measured_plan`; gives its result as one vector.
        steps: how often the work will be done.
        book: remembers.
    """

    def choose() -> tuple[Plan, dict[str, float]]:
        seconds = _time(device, plan, work)
        if steps * seconds < PAYS_FROM:
            return plan, _told({plan: seconds})
        compiled = replace(plan, compiled=True)
        timings = {plan: seconds, compiled: _time(device, compiled, work) if compiles(plan, work) else math.inf}
        return _best(timings, plan, device), _told(timings)

    return _remembered(book, {**what, "plan": asdict(plan), "steps": steps}, device, tasks, choose)


def compiles(plan: Plan, work: Callable[[Plan], Tensor]) -> bool:
    """Whether torch.compile works here, and gives the result of the plan up to rounding; warns if not."""
    try:
        expected = work(plan)
        found = work(replace(plan, compiled=True))
    except Exception as error:  # a missing C++ compiler, an operation that it does not know: it fails in many ways
        reason = str(error).strip().split("\n")[0]
        _log.warning("torch.compile does not work here (%s: %s): going on without", type(error).__name__, reason)
        return False
    apart = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    if not apart <= AGREES:
        _log.warning("torch.compile gives another gradient here (%.1g of its length away): going on without", apart)
    return apart <= AGREES


def _remembered(
    book: Book, what: Mapping[str, Any], device: torch.device, tasks: int,
    choose: Callable[[], tuple[Plan, dict[str, float]]],
) -> Plan:  # fmt: skip
    name = _digest(what, device, tasks)
    if (known := _plan(book.read(name))) is not None:
        return known
    plan, timings = choose()
    text = json.dumps({"plan": asdict(plan), "milliseconds": timings, "what": dict(what)}, indent=1)
    return _plan(book.settle(name, text)) or plan  # another process may have been faster: all shall use the same plan


def _plan(text: str | None) -> Plan | None:
    """The plan that a text tells; None if it tells none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        plan = Plan(**json.loads(text or "")["plan"])
        return plan if plan.chunk >= 1 else None
    return None


def _fastest(device: torch.device, tasks: int, work: Callable[[Plan], object]) -> tuple[Plan, dict[str, float]]:
    """First the mappings, at the largest chunk that fits, then the chunks of the best mapping.

    The default mapping and then its default chunk stay unless another is faster by a margin, so that noise seldom
    decides.
    """
    start, timings = default_plan(device, tasks), dict[Plan, float]()
    while True:
        for shared, own in _MAPPINGS:
            plan = replace(start, shared=shared, own=own)  # type: ignore[arg-type]  # literals in a table
            timings[plan] = _time(device, plan, work, min(timings.values(), default=math.inf))
        if min(timings.values()) < math.inf or start.chunk == 1:
            break
        start = replace(start, chunk=start.chunk // 2)
    best = _best(timings, start, device)
    for chunk in _chunks(tasks):
        plan = replace(best, chunk=chunk)
        if plan not in timings:
            timings[plan] = _time(device, plan, work, min(timings.values()))
    best = _best(timings, best, device)
    if timings[best] == math.inf:
        raise BenchError("not even one task at a time fits in the device's memory; lower --query, --shot or the width")
    return best, _told(timings)


def _told(timings: Mapping[Plan, float]) -> dict[str, float]:
    """Milliseconds by plan, of those that fit in memory."""
    return {
        " ".join(f"{key}={value}" for key, value in asdict(plan).items()): round(1000 * seconds, 3)
        for plan, seconds in timings.items()
        if seconds < math.inf
    }


def _best(timings: Mapping[Plan, float], default: Plan, device: torch.device) -> Plan:
    def worth(plan: Plan) -> bool:
        larger = device.type == "cpu" and plan.chunk > default.chunk
        return timings[plan] < timings[default] * (1 - (MARGIN_OF_LARGER if larger else MARGIN))

    return min(filter(worth, timings), key=timings.__getitem__, default=default)


def _chunks(tasks: int) -> Iterator[int]:
    chunk = 2
    while chunk < tasks:
        yield chunk
        chunk *= 2
    yield tasks


def _time(device: torch.device, plan: Plan, work: Callable[[Plan], object], best: float = math.inf) -> float:
    """Seconds of the fastest of a few runs, after one to warm up; a plan that does not fit in memory takes for ever.

    A plan whose first run takes more than twice as long as the best so far is not run again. On the CPU the seconds
    are those of this thread, in which all the work is done: other processes do not count.
    """
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    seconds: list[float] = []
    try:
        while len(seconds) <= REPEATS and not (seconds and seconds[0] > 2 * best):
            wait(device)
            started = clock()
            work(plan)
            wait(device)
            seconds.append(clock() - started)
        return min(seconds)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return math.inf


def _digest(what: Mapping[str, Any], device: torch.device, tasks: int) -> str:
    key = [dict(what), device_name(device), torch.__version__, __version__, tasks]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
