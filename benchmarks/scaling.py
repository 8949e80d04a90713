"""How time and memory grow with tasks, episodes, attacks and learners."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import evaluation
from benchmarks.apart import Apart, Job
from benchmarks.measure import Settings
from benchmarks.outcomes import Goal, Outcome, Point
from benchmarks.problems import Problem, grid_of, registry
from robustbench_meta.api import threads
from robustbench_meta.engine.plans import plan_for
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs.runner import run
from robustbench_meta.results.store import Store

STRAIGHT = 0.15
"""How far a point may lie from the straight line, as a share of its time."""


@dataclass(frozen=True)
class Scaling:
    """One curve: each point in a process of its own."""

    name: str
    axis: str
    title: str
    make: Callable[[int, Settings], Job]
    """The job at a value."""
    values: tuple[int, ...]
    straight: bool = False
    """Whether it was promised to be a line."""
    group: str = "scaling"

    def measure(self, settings: Settings) -> Outcome:
        """Time and peak memory at each value, and how far the times are from a line."""
        outcome = Outcome(case=self.name, group=self.group, title=self.title, axis=self.axis)
        for value in self.values[:2] if settings.quick else self.values:
            with Apart(partial(self.make, value), settings) as ours:
                base, peak = ours.memory_mib(), ours.peak_mib_of_turn()
                seconds = median(ours.turn()[0] for _ in range(1 if settings.quick else 3))
            outcome.points.append(Point(value=value, seconds=seconds, base_mib=base, peak_mib=peak))
        if len(outcome.points) > 2:
            each, off = line([(point.value, point.seconds) for point in outcome.points])
            outcome.figures |= {
                f"seconds for one more of {self.axis}": float(f"{each:.3g}"),
                "farthest from a line": round(off, 3),
            }
            if self.straight:
                outcome.goals = [Goal(what="farthest from a line, as a share", value=off, limit=STRAIGHT)]
        return outcome


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """The slope of the line with the least relative errors, and the largest of these errors."""
    x, y = np.array(points, dtype=float).T
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    return float(slope), float(np.max(np.abs(slope * x + start - y) / y))


def _tasks(value: int, settings: Settings) -> Job:
    """A meta-gradient of so many tasks, a chunk at a time; no plans are measured, for the worst takes most memory."""
    problem = Problem.make(
        settings.device, cores=settings.cores(), learners=("maml",), attacks=("none",), query=15,
        tasks_per_step=2 if settings.quick else value,
    )  # fmt: skip
    problem.engine.plan = plan_for(settings.device, problem.tasks.tasks)
    return Job(problem.gradient)


def _evaluating(value: int, settings: Settings, *, of: str) -> Job:
    """So many episodes with one attack, or so many attacks: PGD at different ε, so that each costs the same."""
    episodes, device = 2 if settings.quick else value if of == "episodes" else 100, settings.device
    problem = Problem.make(
        device, cores=settings.cores(), learners=("maml",), episodes=episodes,
        attacks=tuple(f"pgd:steps=5,eps=0.{place + 1:02}" for place in range(value if of == "attacks" else 1)),
    )  # fmt: skip
    problem.engine.plan = plan_for(device, 32)
    return Job(lambda: evaluation.ours(problem, device))


def _learners(value: int, settings: Settings) -> Job:
    """A run with so many learners of equal cost, meta-trained and tested, into a fresh store.

    `run` takes the cores that it may use for torch's threads; it computes on one of these anyway.
    """
    steps, episodes = (1, 2) if settings.quick else (20, 50)
    names = tuple(f"maml:alpha=0.{place + 2}" for place in range(value))
    grid = grid_of(RunSpec.read(learners=names, attacks=("none", "fgsm"), meta_steps=steps, episodes=episodes))

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder, threads(settings.threads):
            summary = run(grid, registry(), Store(Path(folder)), settings.device)
        assert not summary.failed, summary.failed

    return Job(work)


_MODEL = "conv4-32, 5-way 1-shot"
CASES = [
    Scaling(
        "scaling-tasks", "tasks", f"meta-gradient of MAML, {_MODEL}, 15 queries, by tasks a step", _tasks,
        (8, 16, 32, 64, 128), straight=True,
    ),
    Scaling(
        "scaling-episodes", "episodes", f"evaluation, PGD-5 on queries, {_MODEL}, by episodes",
        partial(_evaluating, of="episodes"), (50, 100, 200, 400), straight=True,
    ),
    Scaling(
        "scaling-attacks", "attacks", f"evaluation, 100 episodes, PGD-5 on queries, {_MODEL}, by attacks",
        partial(_evaluating, of="attacks"), (1, 2, 4, 8), straight=True,
    ),
    Scaling(
        "scaling-learners", "learners", f"20 meta-steps and a test of 50 episodes, {_MODEL}, by learners", _learners,
        (1, 2, 4), straight=True,
    ),
]  # fmt: skip
