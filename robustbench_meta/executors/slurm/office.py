"""The jobs of one run: each errand is a task of the desk's, and the jobs that do it, one after the other."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_meta.desk import MOST_LOSSES, Desk
from robustbench_meta.errors import BenchError
from robustbench_meta.executors import Recipe, Task
from robustbench_meta.executors.remote import installed
from robustbench_meta.executors.slurm.clusters import (
    CANCELLED,
    ENDED,
    GONE,
    MOST_REFUSALS,
    PENDING,
    TAKEN,
    TIME_UP,
    Cluster,
    RefusedError,
)
from robustbench_meta.executors.slurm.job import Order, Tail
from robustbench_meta.executors.slurm.request import Request
from robustbench_meta.executors.speech import Voice, raised

_log = logging.getLogger(__name__)
GRACE_SECONDS = 10.0
"""How long jobs have to keep what is under way when the run is stopped, before they are cancelled."""
POLL_SECONDS = 0.5
"""How often the files of the jobs are read."""
QUEUED_SECONDS = 60.0
"""How long jobs wait in the queue before this is said."""
AGAIN_SECONDS = 30.0
"""After Slurm has refused a job, how long until it is sent again."""
_LAST = {"over", "stopped", "error"}
"""The events after which a job has no more to tell."""


@dataclass
class Errand:
    """A task of the desk's, and the jobs that do it, one after the other."""

    worker: str
    """Its name at the desk."""
    task: Task
    job: str = ""
    """The one at work, as Slurm calls it; empty: none yet."""
    tail: Tail | None = None
    begun: bool = False
    """Whether it is at the task."""
    stopped: int | None = None
    """The signal that ended it in good order."""
    ended: float | None = None
    """When it was first seen that Slurm has it no more."""
    far: int = 0
    """The step or the episode that it has come to."""
    far_before: int | None = None
    """The same when its time was up the last time."""
    lost: int = 0
    """How often the job was taken away since it last came any further."""
    far_lost: int = -1
    """The step or the episode that it had come to when its job was taken away the last time."""
    sent: int = 0
    """How many jobs so far."""

    def goes_on(self) -> bool:
        """Whether another job is worth it when the time of one was up: this one came further than the one before it."""
        further = self.far_before is None or self.far > self.far_before
        self.far_before = self.far
        return further

    def goes_on_lost(self) -> bool:
        """Whether another job is worth it when one was taken away: not after many in a row that came no further."""
        self.lost = self.lost + 1 if self.far <= self.far_lost else 1
        self.far_lost = self.far
        return self.lost <= MOST_LOSSES

    @property
    def what(self) -> str:
        """For messages."""
        return f"job {self.job} at work on {self.task.title}"


class Office:
    """The jobs of one run."""

    def __init__(
        self, recipe: Recipe, request: Request, cluster: Cluster, desk: Desk, folder: Path, plans: Path
    ) -> None:  # fmt: skip
        self._recipe, self._request, self._cluster, self._desk = recipe, request, cluster, desk
        self._folder, self._plans = folder, plans
        self._errands: list[Errand] = []
        self._voice, self._count = Voice(), 0
        self._refused, self._refusals, self._accepted = -math.inf, 0, False
        self._looked, self._queued, self._said = -math.inf, time.monotonic(), ""
        self.deaths = 0
        """How many jobs ended as they should not; what they left is worth a look."""

    def work(self) -> None:
        """Send jobs, and return when nothing is left to do."""
        while self._desk.open:
            self._desk.stop.check()
            self._take_on()
            for errand in list(self._errands):
                self._listen(errand)
            self._look()
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End all jobs; those at work have a moment to keep what they have."""
        left = [errand for errand in self._errands if errand.job and errand.stopped is None]
        if left:
            self._cluster.ask({errand.job for errand in left})
        until, looked, states = time.monotonic() + GRACE_SECONDS, -math.inf, dict[str, str]()
        while left and (now := time.monotonic()) < until:
            if now - looked > self._cluster.look_seconds / 2:
                looked, states = now, self._cluster.states({errand.job for errand in left}) or {}
            left = [errand for errand in left if not self._has_ended(errand, states.get(errand.job, ""))]
            time.sleep(POLL_SECONDS / 2 if left else 0)
        self._cluster.kill({errand.job for errand in left})
        self._errands.clear()

    def _has_ended(self, errand: Errand, state: str) -> bool:
        """Whether a job that is to end has; what it still has to tell is taken note of."""
        assert errand.tail is not None
        with contextlib.suppress(BenchError):  # whatever ends this run has been said
            for event, facts in errand.tail.events():
                if event in _LAST:
                    return True
                self._note(errand, event, facts)
        return state in ENDED

    def _take_on(self) -> None:
        """A job for what can be begun, one after the other: sending takes a while, and others have things to say."""
        waiting = next((errand for errand in self._errands if not errand.job), None)
        if waiting is None and len(self._errands) < self._request.jobs:
            worker = f"job {self._count}"
            task = self._desk.next(worker)
            if task is None:
                return
            self._count += 1
            waiting = Errand(worker, task)
            self._errands.append(waiting)
        if waiting is not None and time.monotonic() - self._refused > AGAIN_SECONDS:
            self._send(waiting)

    def _send(self, errand: Errand) -> None:
        spool = self._folder / f"{errand.worker.replace(' ', '-')}-{errand.sent}.jsonl"
        level = logging.getLogger("robustbench_meta").getEffectiveLevel()
        order = Order(
            self._recipe, errand.task, spool, self._folder / "heart", self._plans, self._request.cpus, level,
            installed(),
        )  # fmt: skip
        try:
            errand.job = self._cluster.submit(order, errand.task.title)
        except RefusedError as error:
            self._desk.stop.check()
            self._refused, self._refusals = time.monotonic(), self._refusals + 1
            if not self._accepted or self._refusals > MOST_REFUSALS:
                raise BenchError(f"Slurm takes no job: {error}; see --executor slurm:partition=…,account=…") from error
            _log.warning("Slurm takes no more jobs for now: %s", error)
            return
        self._accepted, self._refusals = True, 0
        errand.tail, errand.begun, errand.stopped, errand.ended = Tail(spool), False, None, None
        errand.sent += 1
        self._desk.hear(errand.worker, "at", cells={})

    def _listen(self, errand: Errand) -> None:
        """Take note of all that a job has told."""
        if errand.tail is None or not errand.job:
            return
        for event, facts in errand.tail.events():
            if event == "over":
                self._errands.remove(errand)
                self._desk.over(errand.worker)
                return
            if event == "error":
                self.deaths += 1
                raise raised(**facts)
            self._note(errand, event, facts)
        if errand.begun and errand.stopped is None and errand.ended is None:
            reason = self._desk.overdue(errand.worker)
            if reason is not None:
                self._errands.remove(errand)
                self._cluster.kill({errand.job})
                self._desk.expired(errand.worker, reason)

    def _note(self, errand: Errand, event: str, facts: dict[str, Any]) -> None:
        if event == "started":
            self._cluster.started(errand.job, **facts)
        elif event == "stopped":
            errand.stopped = int(facts["by"] or signal.SIGTERM)
        elif event == "log":
            self._voice.says("log", {"record": logging.makeLogRecord(facts)})
        elif not self._voice.says(event, facts):
            errand.begun = True
            if event in {"training_progress", "evaluation_progress"}:
                errand.far = max(errand.far, int(facts.get("step", facts.get("done", 0))))
            self._desk.hear(errand.worker, event, **facts)

    def _look(self) -> None:
        """Ask now and then what has become of the jobs."""
        now = time.monotonic()
        sent = [errand for errand in self._errands if errand.job]
        if not sent or now - self._looked < self._cluster.look_seconds:
            return
        self._looked = now
        states = self._cluster.states({errand.job for errand in sent})
        if states is None:
            return
        for errand in sent:
            state = states.get(errand.job, GONE)
            if state not in ENDED:
                errand.ended = None
                continue
            errand.ended = errand.ended or now
            if errand.stopped is not None or now - errand.ended >= self._cluster.late_seconds:
                self._listen(errand)  # what it told at the very end
                if errand in self._errands:
                    self._buried(errand, state)
        self._say_what_waits(sent, states)

    def _say_what_waits(self, sent: list[Errand], states: Mapping[str, str]) -> None:
        """Nothing seems to happen while all jobs are in the queue: say so."""
        if any(states.get(errand.job) != PENDING for errand in sent):
            self._queued = time.monotonic()
        elif time.monotonic() - self._queued > QUEUED_SECONDS:
            why = self._cluster.reasons({errand.job for errand in sent})
            if why != self._said:
                self._said = why
                _log.warning("%d job(s) wait in Slurm's queue%s", len(sent), f" ({why})" if why else "")

    def _buried(self, errand: Errand, state: str) -> None:
        """A job has ended before its task was done."""
        time_up = state in TIME_UP or (state != CANCELLED and errand.stopped == signal.SIGUSR2)
        if time_up:
            if not errand.goes_on():
                self._die(
                    errand,
                    f"{errand.what} ran out of its {self._request.minutes:g} minutes, as the one before it had, and "
                    "came no further: give jobs more time with --executor slurm:minutes=…",
                )
                return
        elif state in TAKEN or (state != CANCELLED and errand.stopped is not None):
            if not errand.goes_on_lost():
                self._die(errand, f"{errand.what} was taken away ({state}) {errand.lost} times, and came no further")
                return
            if errand.stopped is None:
                _log.warning("%s was lost (%s); going on with what was kept", errand.what, state)
        else:
            log, told = self._cluster.log(errand.job)
            self._die(
                errand,
                f"{errand.what} {how_it_ended(state, told, self._request)}{f'; its log is {log}' if log else ''}",
            )
            return
        errand.job, errand.tail = "", None

    def _die(self, errand: Errand, reason: str) -> None:
        self.deaths += 1
        self._errands.remove(errand)
        self._desk.died(errand.worker, reason)


def how_it_ended(state: str, told: str, request: Request) -> str:
    """How a job ended that was to blame."""
    if state == "OUT_OF_MEMORY":
        asked = f" of {request.memory:g} GB" if request.memory else ""
        return (
            f"ran out of memory{asked}: ask for more with --executor slurm:memory=…, or lower --tasks-per-step, "
            "--query or the width"
        )
    if state == CANCELLED:
        return "was cancelled"
    return f"ended before it was done ({state}{f': {told}' if told else ''})"
