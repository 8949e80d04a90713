"""What a user waits for: meta-steps with data from disk, and the whole default grid."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.apart import Apart, Job
from benchmarks.gradients import told_plan
from benchmarks.machine import cores
from benchmarks.measure import Contestant, Settings, clocked, here, race
from benchmarks.outcomes import Goal, Outcome, Timed
from benchmarks.peers import Library, installed, meta_gradient
from benchmarks.problems import Problem, grid_of, registry, with_few_validations
from benchmarks.processes import Watch
from robustbench_meta.data.array_cache import ENVIRONMENT as CACHE
from robustbench_meta.engine.training import meta_train
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.runtime.paths import ENVIRONMENT as DATA
from robustbench_meta.runtime.paths import data_root
from robustbench_meta.runtime.seeds import seed_from

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class FromDisk:
    """Meta-steps a second with Omniglot from disk: drawing tasks, meta-gradient, Adam."""

    name: str
    learner: str
    title: str
    group: str = "omniglot"
    options: Mapping[str, Any] = field(default_factory=dict)
    minutes: float = 5.0
    """The promised time of 40,000 meta-steps on CUDA (H200)."""

    def measure(self, settings: Settings) -> Outcome:
        """Reading the data, then training against the libraries' loops over tasks of the same source."""
        outcome = Outcome(case=self.name, group=self.group, title=self.title, unit="meta-step")
        steps, theirs = self._steps(settings)
        given = self._given(settings)
        try:
            outcome.figures |= reading_seconds(RunSpec.read(**given), cold=not settings.quick)
        except BenchError as error:
            outcome.skipped = f"no Omniglot under {data_root(None)} (set {DATA}): {str(error).splitlines()[0]}"
            return outcome
        with Apart(self.ours, settings) as ours:
            problem = Problem.make(settings.device, **given)
            outcome.title = f"{self.title}, {problem.tasks.tasks} tasks"
            outcome.figures["plan"] = told_plan(ours.told["plan"])
            libraries, outcome.notes = installed(problem)
            contestants = [
                ours.contestant(steps),
                *(
                    Contestant(each.name, here(_training_of(each, theirs), settings.device), units=theirs)
                    for each in libraries
                ),
            ]
            race(outcome, contestants, settings)
        assert outcome.ours is not None
        rate = 1 / outcome.ours.median
        outcome.figures |= {"meta-steps a second": round(rate, 2), "minutes for 40,000": round(40_000 / rate / 60, 1)}
        if settings.device.type == "cuda" and not settings.quick:
            outcome.goals = [Goal(what="minutes for 40,000 meta-steps", value=40_000 / rate / 60, limit=self.minutes)]
        return outcome

    def ours(self, settings: Settings) -> Job:
        """Meta-training, by the plan of a long one."""
        problem = Problem.make(settings.device, cores=settings.cores(), **self._given(settings))
        plan, training = problem.plan_training(), with_few_validations(problem.training)

        def train() -> None:
            meta_train(problem.grid, training, settings.device, plan, cores=problem.engine.cores)

        return Job(train, {"plan": plan})

    def _given(self, settings: Settings) -> dict[str, Any]:
        return {
            "learners": (self.learner,), "dataset": "omniglot", "attacks": ("none",), "profile": "paper",
            "meta_steps": self._steps(settings)[0], **({"tasks_per_step": 2} if settings.quick else {}), **self.options,
        }  # fmt: skip

    def _steps(self, settings: Settings) -> tuple[int, int]:
        """How many meta-steps a run has, ours and theirs."""
        if settings.quick:
            return 2, 1
        return (200 if settings.device.type == "cuda" else 20, 5)  # ours starts processes for each run


def reading_seconds(spec: RunSpec, *, cold: bool = True) -> dict[str, int | float | str]:
    """Seconds to have the data in memory: the first time ever, and afterwards."""
    found: dict[str, int | float | str] = {}

    def read() -> float:
        return clocked(lambda: build_grid(spec, registry(), data_root(None)), torch.device("cpu"))[0]

    if cold:
        with empty_cache():
            found["seconds to read, first time"] = round(read(), 2)
    grid_of(spec)
    found["seconds to read, afterwards"] = round(read(), 2)
    return found


@contextmanager
def empty_cache() -> Iterator[str]:
    """A cache folder with nothing in it, for a while."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            yield folder
        finally:
            del os.environ[CACHE]
            if before is not None:
                os.environ[CACHE] = before


def _training_of(library: Library, steps: int) -> Callable[[], None]:
    """Meta-training with a library: the same tasks from the same source."""
    problem, spec = library.problem, library.problem.training.spec
    source = problem.grid.splits.train.to(problem.device)
    optimizer = torch.optim.Adam(library.module.parameters(), lr=problem.meta_lr)

    def train() -> None:
        for step in range(1, steps + 1):
            seeds = [seed_from(spec.seed, "train", step)]
            problem.tasks = source.sample(seeds, spec.way, spec.shot, spec.query, spec.tasks_per_step)
            meta_gradient(library)
            optimizer.step()

    return train


def command(arguments: list[str], environment: Mapping[str, str]) -> tuple[float, float | None]:
    """`bench` with these arguments, from its start to its end, in a folder of its own: its seconds and its memory.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    with tempfile.TemporaryDirectory() as results, tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *arguments, "--results", results],
            cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            with Watch(process.pid, 0.5) as watch:
                code = process.wait()
                seconds = time.perf_counter() - started
        finally:
            process.kill()
        if code != 0:
            said.seek(0)
            raise RuntimeError(f"bench {' '.join(arguments)} failed: {said.read().strip()[-2000:]}")
    return seconds, watch.peak_mib


@dataclass(frozen=True)
class DefaultGrid:
    """`bench run` without options, from typing it to its tables."""

    name: str = "default-grid"
    group: str = "grid"
    title: str = "bench run: MAML and ADML, none + FGSM + PGD, on glyphs"

    def measure(self, settings: Settings) -> Outcome:
        """In processes of their own: with nothing cached, as right after installation, and once more."""
        profile = ["--profile", "smoke"] if settings.quick else []
        outcome = Outcome(
            case=self.name, group=self.group, title=self.title + (" (smoke)" if profile else ""),
            notes=[
                "nobody to compare with; once each",
                "memory: of all its processes together, looked at twice a second; pages that they share count once",
            ],
        )  # fmt: skip
        arguments = ["run", *profile, "--device", settings.device.type]
        with empty_cache() as cache:
            environment = {CACHE: cache}
            if settings.threads < cores():
                environment["OMP_NUM_THREADS"] = str(settings.threads)  # as somebody would who wants no more
            for name in ("first time", "once more"):
                seconds, peak = command(arguments, environment)
                outcome.timed.append(
                    Timed(name=name, role="ours" if not outcome.timed else "reference", seconds=[seconds])
                )
                if peak is not None:
                    outcome.figures[f"peak MiB, {name}"] = round(peak)
        if not settings.quick and settings.device.type == "cpu":
            outcome.goals = [
                Goal(what=f"seconds, {timed.name}", value=median(timed.seconds), limit=90.0) for timed in outcome.timed
            ]
        return outcome


CASES: list[FromDisk | DefaultGrid] = [
    FromDisk("omniglot", "maml", "MAML on Omniglot from disk, paper profile (conv4-64, batch norm)"),
    FromDisk(
        "omniglot-adml", "adml", "ADML on Omniglot from disk, paper profile (conv4-64, batch norm)",
        minutes=15.0,
    ),
    DefaultGrid(),
]  # fmt: skip
