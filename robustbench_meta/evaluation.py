"""Adapt once, attack many: per-episode, per-example results of all cells of one trained learner."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from robustbench_meta.contracts import Weights
from robustbench_meta.devices import wait
from robustbench_meta.engine import Engine
from robustbench_meta.errors import BenchError
from robustbench_meta.grid import Cell
from robustbench_meta.harness import arm
from robustbench_meta.models import State
from robustbench_meta.seeds import seed_from
from robustbench_meta.tasks import Batch, TaskBatch, TaskSource
from robustbench_meta.threat import ThreatModel


@dataclass
class Outcome:
    """What a cell's evaluation gave.

    `clean` and `robust` are booleans [episodes, queries]: whether the prediction is right without
    and with the attack.
    """

    clean: np.ndarray
    robust: np.ndarray
    episodes_digest: str
    """Of the labels and of each image's sum of pixels: equal for cells that saw the same episodes."""
    adapt_ms_per_task: float
    attack_ms_per_task: float


@dataclass
class _Tally:
    """What one cell has gathered on one chunk of episodes, or why it failed."""

    clean: Tensor | None = None
    robust: Tensor | None = None
    attack_seconds: float = 0.0
    failure: BenchError | None = None


@dataclass
class _Chunk:
    """What one chunk of episodes gave."""

    tasks: int
    noted: bytes
    """What goes into the digest of the episodes."""
    tallies: dict[str, _Tally]
    adapt_seconds: float = 0.0
    adapted_tasks: int = 0


def episodes(source: TaskSource, way: int, shot: int, query: int, count: int, chunk: int) -> Iterator[TaskBatch]:
    """The test episodes, always the same ones, `chunk` at a time."""
    for start in range(0, count, chunk):
        seeds = [seed_from("episodes", "test", index) for index in range(start, min(start + chunk, count))]
        yield source.sample(seeds, way, shot, query)


def evaluate(
    engine: Engine,
    weights: Weights,
    source: TaskSource,
    cells: list[Cell],
    device: torch.device,
    report: Callable[[int], None] | None = None,
) -> dict[str, Outcome | BenchError]:
    """Evaluate the cells of one training on the same episodes, by key; a cell that fails costs no other.

    Args:
        engine: of the training, its plan's chunk bounding the memory.
        weights: θ.
        source: the test split, on the device.
        cells: of one training and one number of episodes.
        device: where it all is.
        report: told how many episodes of all cells are done.
    """
    return _Evaluation(engine, weights, source, cells, device, report).run()


class _Evaluation:
    """The chunks of episodes are shared out to the engine's lanes; each chunk sees all cells."""

    def __init__(
        self, engine: Engine, weights: Weights, source: TaskSource, cells: list[Cell], device: torch.device,
        report: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.engine, self.source, self.cells, self.device, self.report = engine, source, cells, device, report
        self.weights = {name: weight.detach() for name, weight in weights.items()}
        self.count = cells[0].spec.episodes
        self.given_up: set[str] = set()
        assert len({cell.key for cell in cells}) == len(cells), "two cells with one key"

    def run(self) -> dict[str, Outcome | BenchError]:
        self.engine.set_mode(training=False)
        chunk = self.engine.plan.chunk
        starts = [range(start, min(start + chunk, self.count)) for start in range(0, self.count, chunk)]
        with torch.no_grad():
            parts = self.engine.share_out(self._chunks, starts, self._tell)
        chunks = [chunk for part in parts for chunk in part]
        digest = hashlib.sha256(b"".join(chunk.noted for chunk in chunks)).hexdigest()[:16]
        adapted = sum(chunk.adapted_tasks for chunk in chunks)
        adapt_ms = 1000 * sum(chunk.adapt_seconds for chunk in chunks) / max(adapted, 1)
        return {cell.key: self._outcome([chunk.tallies[cell.key] for chunk in chunks], digest, adapt_ms)
                for cell in self.cells}  # fmt: skip

    def _outcome(self, tallies: list[_Tally], digest: str, adapt_ms: float) -> Outcome | BenchError:
        for tally in tallies:
            if tally.failure is not None:
                return tally.failure
        clean = torch.cat([tally.clean for tally in tallies if tally.clean is not None]).cpu().numpy()
        robust = torch.cat([tally.robust for tally in tallies if tally.robust is not None]).cpu().numpy()
        assert len(clean) == len(robust) == self.count, "an episode is missing, or counted twice"
        attack_ms = 1000 * sum(tally.attack_seconds for tally in tallies) / self.count
        return Outcome(clean, robust, digest, adapt_ms, attack_ms)

    def _tell(self, parts: int) -> None:
        if self.report is not None:
            self.report(min(parts * self.engine.plan.chunk, self.count) * len(self.cells))

    def _chunks(self, engine: Engine, places: range) -> list[_Chunk]:
        """All cells on these episodes; in halves if they do not fit in the device's memory together."""
        try:
            return [self._chunk(engine, places)]
        except torch.OutOfMemoryError:
            if len(places) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(places) // 2
        return self._chunks(engine, places[:half]) + self._chunks(engine, places[half:])

    def _chunk(self, engine: Engine, places: range) -> _Chunk:
        """All cells on one chunk of episodes; they share the clean adaptation, and an attacked one by scenario.

        Raises:
            torch.OutOfMemoryError: there is more than one episode, and they do not fit together.
        """
        spec = self.cells[0].training.spec
        seeds = [seed_from("episodes", "test", index) for index in places]
        tasks = self.source.sample(seeds, spec.way, spec.shot, spec.query)
        engine.batch_seeds([seed_from(spec.seed, "attack", index) for index in places])
        work = _Work(engine, engine.theta(self.weights), tasks, self.device)
        chunk = _Chunk(len(places), _noted(tasks), {})
        for cell in self.cells:
            tally = chunk.tallies[cell.key] = _Tally()
            try:
                if cell.key in self.given_up:
                    raise BenchError("it failed on other episodes")
                tally.robust, tally.attack_seconds = work.robust(cell)
                tally.clean = work.clean
            except BenchError as failure:
                tally.failure = failure
                self.given_up.add(cell.key)
            except torch.OutOfMemoryError:
                if len(places) > 1:
                    raise
                tally.failure = BenchError(
                    f"attack '{cell.threat.label}' on one task at a time does not fit in the device's memory"
                )
        chunk.adapt_seconds, chunk.adapted_tasks = work.adapt_seconds, work.adapted_tasks
        return chunk


class _Work:
    """One chunk of episodes: what cells share is computed when the first of them needs it."""

    def __init__(self, engine: Engine, theta: State, tasks: TaskBatch, device: torch.device) -> None:
        self.engine, self.theta, self.tasks, self.device = engine, theta, tasks, device
        self.adapt_seconds, self.adapted_tasks = 0.0, 0
        self._attacked: dict[str, tuple[State, float]] = {}

    @cached_property
    def adapted(self) -> State:
        """Adapted to the clean support sets."""
        return self._adapt(self.tasks.support)

    @cached_property
    def clean(self) -> Tensor:
        """Whether each query's prediction is right without any attack [tasks, queries]."""
        return self._correct(self.adapted, self.tasks.query)

    def robust(self, cell: Cell) -> tuple[Tensor, float]:
        """Whether each query's prediction is right in the cell's scenario, and the seconds that the attacks took."""
        clean, state, total = self.clean, self.adapted, 0.0
        if cell.threat.attack.clean:
            return clean, total
        if cell.support == "adv":
            name = cell.spec.attack.model_dump_json()
            if name not in self._attacked:
                target = self.theta if cell.training.learner.theta_predicts else self.adapted
                support, seconds = self._attack(cell, target, self.tasks.support, "support")
                self._attacked[name] = self._adapt(support), seconds
            state, seconds = self._attacked[name]
            total += seconds
        query = self.tasks.query
        if cell.query == "adv":
            query, seconds = self._attack(cell, state, query, "query")
            total += seconds
        return self._correct(state, query), total

    def _attack(self, cell: Cell, state: State, batch: Batch, role: str) -> tuple[Batch, float]:
        threat = ThreatModel(cell.threat.attack.norm, cell.threat.eps.value)
        started = self._now()
        attacked = self.engine.perturb(state, batch, arm(cell.threat.attack, threat), role)
        return attacked, self._now() - started

    def _adapt(self, support: Batch) -> State:
        started = self._now()
        adapted = self.engine.adapt(self.theta, support)
        self.adapt_seconds += self._now() - started
        self.adapted_tasks += support.x.shape[0]
        return adapted

    def _correct(self, state: State, query: Batch) -> Tensor:
        logits = self.engine.logits(state, query.x)
        if not logits.isfinite().all():
            raise BenchError(f"learner '{self.engine.learner.name}' gave logits that are not finite")
        return logits.argmax(-1) == query.y

    def _now(self) -> float:
        wait(self.device)
        return time.perf_counter()


def _noted(tasks: TaskBatch) -> bytes:
    """What the digest takes of the episodes, each task by itself, so that chunks do not matter."""
    rows = [torch.cat([(b.x.double() * 255).round().long().flatten(2).sum(2), b.y], 1) for b in tasks]
    return torch.cat(rows, 1).cpu().numpy().tobytes()
