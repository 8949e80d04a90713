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
"""How long work is watched, from its first advance on, before a rate is shown: before that it prepares."""


@dataclass
class JobProgress:
    """A meta-training or an evaluation that goes on, or is over."""

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
    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=600))
    _checked_rate: float | None = None
    """The rate at the end of what was checked."""

    def reach(self, now: float, done: int, total: int) -> None:
        """It is at `done` of `total`."""
        if not self.seen:
            self.began, self.first = now, done
        if self.done < self.checked <= done:
            self._checked_rate = self.rate
            self.seen.clear()
        self.done, self.total, self.spent = done, total, now - self.began
        if not self.seen or self.seen[-1][1] != done:
            self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[0][0] > WINDOW_SECONDS:
            self.seen.popleft()

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return 1.0 if self.over else min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def rate(self) -> float | None:
        """Steps or (episode, attack) pairs a second; None: not known yet."""
        recent = self._recent_rate
        return self._checked_rate if recent is None else recent

    @property
    def mean_rate(self) -> float | None:
        """The rate from its first to its last event; where too little is done for that, the rate."""
        enough = self.done > self.first and (self.over or self.rate is not None) and self.spent > 0
        return (self.done - self.first) / self.spent if enough else self.rate

    @property
    def _recent_rate(self) -> float | None:
        """Of the last minute, and only of what is not checked once that has begun."""
        if len(self.seen) < 3:
            return None
        (start, first), (end, last) = self.seen[1], self.seen[-1]
        return (last - first) / (end - start) if end - start >= SETTLED_SECONDS and last > first else None

    @property
    def quickens(self) -> bool:
        """Whether the rate is that of checked episodes, so that less time is left than it says."""
        unseen = self._checked_rate is not None and self._recent_rate is None
        return self.done < min(self.checked, self.total - 1) or unseen

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
    running: dict[Stage, JobProgress] = field(default_factory=dict)
    failed: int = 0
    """Cells."""

    def fraction(self, stage: Stage) -> float:
        """How much of a stage is done; once all cells have failed, nothing is left."""
        if self.cells and self.failed >= self.cells:
            return 1.0
        return self.running[stage].fraction if stage in self.running else 0.0


class TimeLeft(NamedTuple):
    """How long a run still takes."""

    seconds: float
    known: Literal["measured", "guessed", "more", "less"]
    """Each part by its own pace; parts that have not begun by the pace of others; of parts there is no pace yet, so
    that it takes longer than this; or the pace is that of episodes that are checked, so that it takes less."""


class RunProgress:
    """How far a run is, by a clock that gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.cells = self.cells_over = 0
        self.shares: list[TrainingShare] = []
        self.running: list[JobProgress] = []
        """Those that go on, in the order in which they began."""
        self._latest: dict[tuple[Stage, str], JobProgress] = {}
        self._began = clock()

    def begin(self, cells: int, work: Iterable[Mapping[str, Any]]) -> None:
        """A run begins; see the event `run_started`."""
        self.cells, self._began = cells, self._clock()
        self.shares = [
            TrainingShare(each["training"], each["cells"], {stage: each[stage] for stage in STAGES}, each["checked"])
            for each in work
        ]

    def reach(
        self, stage: Stage, title: str, done: int, total: int, metrics: Mapping[str, float] | None = None
    ) -> JobProgress:  # fmt: skip
        """Something is at `done` of `total`; it begins if it had not, or was over."""
        if stage == "test":  # a training with a checkpoint may have never come to its last step
            self._end("train", title)
        job = self._latest.get((stage, title))
        if job is None or job.over:
            job = self._latest[stage, title] = JobProgress(stage, title)
            self.running.append(job)
            for share in self.shares:
                if share.title == title and share.costs[stage] and stage not in share.running:
                    share.running[stage] = job
                    job.checked = share.checked if stage == "test" else 0
                    break
        job.reach(self._clock(), done, total)
        job.told = metrics or {}
        if done >= total:
            self._end(stage, title)
        return job

    def _end(self, stage: Stage, title: str) -> None:
        job = self._latest.get((stage, title))
        if job is not None and not job.over:
            job.over = True
            self.running.remove(job)

    def cell_over(self, failed_of: str | None = None) -> None:
        """A cell is finished, or one of that training failed."""
        self.cells_over += 1
        if failed_of is None:
            return
        for stage in STAGES:
            self._end(stage, failed_of)
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
        """How much of all work is done, weighted by its cost; None: not known how much there is."""
        costs = [(share.costs[stage], share.fraction(stage)) for share in self.shares for stage in STAGES]
        whole = sum(cost for cost, _ in costs)
        return sum(cost * done for cost, done in costs) / whole if whole else None

    @property
    def left(self) -> TimeLeft | None:
        """How long the run still takes; None: nothing has been measured yet."""
        paces = {stage: self._paces(stage, lambda job: job.mean_rate if job.over else job.rate) for stage in STAGES}
        means = {stage: list(self._paces(stage, lambda job: job.mean_rate).values()) for stage in STAGES}
        if not any(paces.values()):
            return None
        chains, known = [], {"less"} if any(job.quickens for job in self.running) else set()
        for share in self.shares:
            seconds = 0.0
            for stage in STAGES:
                if not share.costs[stage] or share.fraction(stage) >= 1.0:
                    continue
                pace = paces[stage].get(share.title)
                if pace is None and means[stage]:
                    pace = sum(means[stage]) / len(means[stage])
                    known.add("guessed")
                if pace is None:
                    known.add("more")
                else:
                    seconds += pace * share.costs[stage] * (1 - share.fraction(stage))
            chains.append(seconds)
        seconds = max([*chains, sum(chains) / max(1, len(self.running))], default=0.0)
        if {"more", "less"} <= known:
            return TimeLeft(seconds, "guessed")
        return TimeLeft(seconds, next((mark for mark in ("more", "less", "guessed") if mark in known), "measured"))

    def _paces(self, stage: Stage, rate: Callable[[JobProgress], float | None]) -> dict[str, float]:
        """The seconds that a unit of cost takes, by the titles of which this is known."""
        paces = {}
        for share in self.shares:
            job = share.running.get(stage)
            if job is not None and job.total and (known := rate(job)):
                paces[share.title] = job.total / share.costs[stage] / known
        return paces
