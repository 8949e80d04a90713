"""How far a run is and how long it still takes, from its events: no figure is shown that nothing was measured for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Stage = Literal["train", "test"]
STAGES: tuple[Stage, Stage] = ("train", "test")
WINDOW_SECONDS = 60.0
"""A rate is that of the last minute."""
SETTLED_SECONDS = 2.0
"""How long work is watched, from its first advance on, before a rate is told: what comes before that is preparation."""
_MOST_SEEN = 600


@dataclass
class JobProgress:
    """A meta-training or an evaluation that is or was under way."""

    stage: Stage
    title: str
    done: int = 0
    total: int = 0
    told: Mapping[str, float] = field(default_factory=dict)
    """Loss and validation accuracy, of a training."""
    over: bool = False
    began: float = 0.0
    checked: int = 0
    """So much of it, at its beginning, takes longer than the rest: probes run beside the attacks."""
    spent: float = 0.0
    """Seconds from its first to its last event."""
    first: int = 0
    """What was done before this run began with it."""
    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_MOST_SEEN))
    _slowly: float | None = None
    """The rate at the end of what was checked."""

    def reach(self, now: float, done: int, total: int) -> None:
        """It is at `done` of `total`."""
        if not self.seen:
            self.began, self.first = now, done
        if self.done < self.checked <= done:
            self._slowly = self.rate
            self.seen.clear()
        self.done, self.total, self.spent = done, total, now - self.began
        if not self.seen or self.seen[-1][1] != done:
            self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[0][0] > WINDOW_SECONDS:
            self.seen.popleft()

    @property
    def fraction(self) -> float:
        """What is done of it, from 0 to 1."""
        return 1.0 if self.over else min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def rate(self) -> float | None:
        """Steps or (episode, attack) pairs a second; None: not known yet."""
        fresh = self._fresh
        return self._slowly if fresh is None else fresh

    def lately(self) -> float | None:
        """The rate; of what is over, that of all of it."""
        return self.whole() if self.over else self.rate

    def whole(self) -> float | None:
        """The rate from its first to its last event; where too little is done for that, the rate."""
        enough = self.done > self.first and (self.over or self.rate is not None) and self.spent > 0
        return (self.done - self.first) / self.spent if enough else self.rate

    @property
    def _fresh(self) -> float | None:
        """Of the last minute, and of what is not checked once that has begun."""
        if len(self.seen) < 3:
            return None
        (start, first), (end, last) = self.seen[1], self.seen[-1]
        return (last - first) / (end - start) if end - start >= SETTLED_SECONDS and last > first else None

    @property
    def quickens(self) -> bool:
        """Whether the rate is that of what is checked, so that less time is left than it says."""
        return self.done < min(self.checked, self.total - 1) or (self._slowly is not None and self._fresh is None)

    @property
    def left(self) -> float | None:
        """Seconds until it is over; None: not known yet."""
        return None if self.rate is None else max(0, self.total - self.done) / self.rate


@dataclass
class TrainingShare:
    """What a run has to do for one meta-trained learner."""

    title: str
    cells: int
    costs: Mapping[Stage, int]
    """In passes through a task; 0: nothing to do."""
    checked: int = 0
    """Of the (episode, attack) pairs of its test, the first ones."""
    stretches: dict[Stage, JobProgress] = field(default_factory=dict)
    failed: int = 0
    """Cells."""

    def fraction(self, stage: Stage) -> float:
        """What is done of a stage; of what has failed nothing is to do any more."""
        if self.cells and self.failed >= self.cells:
            return 1.0
        return self.stretches[stage].fraction if stage in self.stretches else 0.0

    def over(self, stage: Stage) -> bool:
        """Whether nothing is to do of a stage."""
        return self.fraction(stage) >= 1.0


class TimeLeft(NamedTuple):
    """How long a run still takes."""

    seconds: float
    known: Literal["measured", "guessed", "more", "less"]
    """Each part by its own pace; parts that have not begun by the pace of others; of parts there is no pace yet, so
    that it takes longer than this; or the pace is that of episodes that are checked, so that it takes less."""


class RunProgress:
    """Where a run is.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.cells = self.cells_over = 0
        self.shares: list[TrainingShare] = []
        self.stretches: list[JobProgress] = []
        """Those that are under way, in the order in which they began."""
        self._known: dict[tuple[Stage, str], JobProgress] = {}
        self._began = clock()

    def begin(self, cells: int, work: Iterable[Mapping[str, Any]]) -> None:
        """A run begins; see the event `run_started`."""
        self.cells, self._began = cells, self._clock()
        self.shares = [
            TrainingShare(each["training"], each["cells"], {stage: each[stage] for stage in STAGES}, each["checked"])
            for each in work
        ]

    def reach(
        self, stage: Stage, title: str, done: int, total: int, told: Mapping[str, float] | None = None
    ) -> JobProgress:  # fmt: skip
        """Something is at `done` of `total`; it begins if it had not, or was over."""
        if stage == "test":  # with a checkpoint, its training never got to its last step
            self.end("train", title)
        stretch = self._known.get((stage, title))
        if stretch is None or stretch.over:
            stretch = self._known[stage, title] = JobProgress(stage, title)
            self.stretches.append(stretch)
            for share in self.shares:
                if share.title == title and share.costs[stage] and stage not in share.stretches:
                    share.stretches[stage] = stretch
                    stretch.checked = share.checked if stage == "test" else 0
                    break
        stretch.reach(self._clock(), done, total)
        stretch.told = told or {}
        if done >= total:
            self.end(stage, title)
        return stretch

    def end(self, stage: Stage, title: str) -> None:
        """It is over, or nothing more comes of it."""
        stretch = self._known.get((stage, title))
        if stretch is not None and not stretch.over:
            stretch.over = True
            self.stretches.remove(stretch)

    def cell_over(self, failed_of: str | None = None) -> None:
        """A cell is finished, or one of that training failed."""
        self.cells_over += 1
        if failed_of is None:
            return
        for stage in STAGES:
            self.end(stage, failed_of)
        for share in self.shares:
            if share.title == failed_of and share.failed < share.cells:
                share.failed += 1
                break

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._began

    @property
    def fraction(self) -> float | None:
        """What is done of all work, weighted by its cost; None: not known how much there is."""
        costs = [(share.costs[stage], share.fraction(stage)) for share in self.shares for stage in STAGES]
        whole = sum(cost for cost, _ in costs)
        return sum(cost * done for cost, done in costs) / whole if whole else None

    @property
    def left(self) -> TimeLeft | None:
        """How long the run still takes; None: nothing has been measured yet."""
        paces = {stage: self._paces(stage, JobProgress.lately) for stage in STAGES}
        usual = {stage: list(self._paces(stage, JobProgress.whole).values()) for stage in STAGES}
        chains, known = [], set()
        if any(stretch.quickens for stretch in self.stretches):
            known.add("less")
        for share in self.shares:
            parts = []
            for stage in STAGES:
                if not share.costs[stage] or share.over(stage):
                    continue
                pace = paces[stage].get(share.title)
                if pace is None and usual[stage]:
                    pace = sum(usual[stage]) / len(usual[stage])
                    known.add("guessed")
                if pace is None:
                    known.add("more")
                else:
                    parts.append(pace * share.costs[stage] * (1 - share.fraction(stage)))
            chains.append(sum(parts))
        if not any(paces.values()):
            return None
        side_by_side = max(1, len(self.stretches))
        seconds = max([*chains, sum(chains) / side_by_side], default=0.0)
        if {"more", "less"} <= known:
            return TimeLeft(seconds, "guessed")
        return TimeLeft(seconds, next((mark for mark in ("more", "less", "guessed") if mark in known), "measured"))

    def _paces(self, stage: Stage, rate: Callable[[JobProgress], float | None]) -> dict[str, float]:
        """The seconds that a unit of cost takes, by the titles of which this is known."""
        found = {}
        for share in self.shares:
            stretch = share.stretches.get(stage)
            if stretch is not None and stretch.total and (known := rate(stretch)):
                found[share.title] = stretch.total / share.costs[stage] / known
        return found
