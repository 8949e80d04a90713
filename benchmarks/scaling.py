"""How time and memory grow with tasks, episodes, attacks and learners; and what a second attack repeats."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import evaluation
from benchmarks.apart import Apart, Job
from benchmarks.measure import Settings
from benchmarks.outcomes import Goal, Outcome, Point
from benchmarks.problems import Problem, grid_of, registry
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.plans import plan_for
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.hookspecs import hookimpl
from robustbench_meta.jobs.runner import run
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.cpu import available_cores

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


@dataclass(frozen=True)
class SecondAttack:
    """A run, then the same with one more attack: counts of meta-steps, adaptations and attacked batches."""

    name: str = "second-attack"
    group: str = "scaling"
    title: str = "a second attack (clean support, attacked queries), after a run with the first"

    def measure(self, settings: Settings) -> Outcome:
        """Counted, not timed, in the smoke profile."""
        with Apart(self.ours, settings) as ours:
            one, both, together = ours.turn()[1]()
        outcome = Outcome(case=self.name, group=self.group, title=self.title)
        outcome.figures = {
            "meta-steps of the first run": one["meta-steps"],
            "meta-steps of the second run": both["meta-steps"],
            "adapted tasks, one attack": one["adapted tasks"],
            "adapted tasks, both attacks in one run": together["adapted tasks"],
        }
        outcome.goals = [
            Goal(what="meta-steps for a second attack", value=both["meta-steps"], limit=0),
            Goal(
                what="adapted tasks that a second attack adds to a run", limit=0,
                value=together["adapted tasks"] - one["adapted tasks"],
            ),
        ]  # fmt: skip
        return outcome

    def ours(self, settings: Settings) -> Job:
        """Counts of a run, of a second one with one more attack, and of one run with both."""
        pair = ("fgsm", "pgd:steps=2")
        return Job(lambda: [*counted_runs([("fgsm",), pair], settings), *counted_runs([pair], settings)])


class _Steps:
    """Counts meta-steps through the suite's own hook."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def training_progress(self, step: int) -> None:
        """Each meta-step is told once; step 0 is the announcement."""
        self.count += step > 0


def counted_runs(runs: list[tuple[str, ...]], settings: Settings) -> list[dict[str, int]]:
    """Counts of several runs into one store, one after the other.

    What cores do in other processes is not seen: there must be one core only, as torch tells while we compute alone.
    """
    assert settings.device.type == "cuda" or available_cores() == 1
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for attacks in runs:
            plugins, steps = load_registry(local=False), _Steps()
            plugins.manager.register(steps)
            grid = grid_of(RunSpec.read(learners=("maml",), attacks=attacks, profile="smoke"))
            with _counting_adaptations() as adapted:
                run(grid, plugins, Store(Path(folder)), settings.device)
            found.append({"meta-steps": steps.count, "adapted tasks": adapted.tasks})
    return found


@dataclass
class _Adaptations:
    tasks: int = 0


@contextmanager
def _counting_adaptations() -> Iterator[_Adaptations]:
    """Counts the tasks that are adapted to outside meta-training."""
    counts, original = _Adaptations(), Engine.adapt

    def adapt(engine: Engine, theta: State, support: Batch, **settings: Any) -> State:
        if not engine.training:
            counts.tasks += support.x.shape[0]
        return original(engine, theta, support, **settings)

    Engine.adapt = adapt  # type: ignore[method-assign, assignment]  # put back below
    try:
        yield counts
    finally:
        Engine.adapt = original  # type: ignore[method-assign]


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
    """A run with so many learners of equal cost, meta-trained and tested, into a fresh store."""
    steps, episodes = (1, 2) if settings.quick else (20, 50)
    names = tuple(f"maml:alpha=0.{place + 2}" for place in range(value))
    grid = grid_of(RunSpec.read(learners=names, attacks=("none", "fgsm"), meta_steps=steps, episodes=episodes))

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder, cores_as_given(settings):
            summary = run(grid, registry(), Store(Path(folder)), settings.device)
        assert not summary.failed, summary.failed

    return Job(work)


@contextmanager
def cores_as_given(settings: Settings) -> Iterator[None]:
    """Lets `run` find the threads that we may use where it looks for them; it computes on one of torch's anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_MODEL = "conv4-32, 5-way 1-shot"
CASES: list[Scaling | SecondAttack] = [
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
    SecondAttack(),
]  # fmt: skip
