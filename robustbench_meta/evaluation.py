"""Adapt once, attack many: per-episode, per-example results of all cells of one trained learner."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from robustbench_meta.contracts import Weights
from robustbench_meta.devices import wait
from robustbench_meta.engine import Engine, State
from robustbench_meta.errors import BenchError
from robustbench_meta.grid import Cell
from robustbench_meta.harness import arm
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
    """What one cell has gathered so far."""

    clean: list[Tensor] = field(default_factory=list)
    robust: list[Tensor] = field(default_factory=list)
    attack_seconds: float = 0.0
    failure: BenchError | None = None


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
    def __init__(
        self, engine: Engine, weights: Weights, source: TaskSource, cells: list[Cell], device: torch.device,
        report: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.engine, self.source, self.cells, self.device, self.report = engine, source, cells, device, report
        self.theta = engine.theta({name: weight.detach() for name, weight in weights.items()})
        self.tallies = {cell.key: _Tally() for cell in cells}
        assert len(self.tallies) == len(cells), "two cells with one key"
        self.adapt_seconds = 0.0
        self.adapted_tasks = 0
        self.digest = hashlib.sha256()

    def run(self) -> dict[str, Outcome | BenchError]:
        spec, count, done = self.cells[0].training.spec, self.cells[0].spec.episodes, 0
        self.engine.set_mode(training=False)
        seed = spec.seed
        with torch.no_grad():
            for tasks in episodes(self.source, spec.way, spec.shot, spec.query, count, self.engine.plan.chunk):
                self.engine.batch_seeds([seed_from(seed, "attack", index) for index in range(done, done + tasks.tasks)])
                self._chunk(tasks)
                done += tasks.tasks
                if self.report is not None:
                    self.report(done * len(self.cells))
        return {cell.key: self._outcome(cell, count) for cell in self.cells}

    def _outcome(self, cell: Cell, count: int) -> Outcome | BenchError:
        tally = self.tallies[cell.key]
        if tally.failure is not None:
            return tally.failure
        clean, robust = (torch.cat(parts).cpu().numpy() for parts in (tally.clean, tally.robust))
        assert len(clean) == len(robust) == count, "an episode is missing, or counted twice"
        return Outcome(
            clean,
            robust,
            self.digest.hexdigest()[:16],
            1000 * self.adapt_seconds / max(self.adapted_tasks, 1),
            1000 * tally.attack_seconds / count,
        )

    def _chunk(self, tasks: TaskBatch) -> None:
        """All cells on one chunk of episodes; they share the clean adaptation, and an attacked one by scenario."""
        self._note(tasks)
        adapted = self._adapt(tasks.support)
        clean = self._correct(adapted, tasks.query)
        attacked: dict[str, tuple[State, float]] = {}
        for cell in self.cells:
            tally = self.tallies[cell.key]
            if tally.failure is not None:
                continue
            try:
                tally.robust.append(self._cell(cell, tasks, adapted, clean, attacked))
                tally.clean.append(clean)
            except BenchError as failure:
                tally.failure = failure
            except torch.OutOfMemoryError:
                tally.failure = BenchError(
                    f"attack '{cell.threat.label}' on {tasks.tasks} tasks at a time does not fit in the device's memory"
                )

    def _cell(
        self, cell: Cell, tasks: TaskBatch, adapted: State, clean: Tensor, attacked: dict[str, tuple[State, float]]
    ) -> Tensor:
        tally, state = self.tallies[cell.key], adapted
        if cell.threat.attack.clean:
            return clean
        if cell.support == "adv":
            name = cell.spec.attack.model_dump_json()
            if name not in attacked:
                target = self.theta if cell.training.learner.theta_predicts else adapted
                support, seconds = self._attack(cell, target, tasks.support, "support")
                attacked[name] = self._adapt(support), seconds
            state, seconds = attacked[name]
            tally.attack_seconds += seconds
        query = tasks.query
        if cell.query == "adv":
            query, seconds = self._attack(cell, state, query, "query")
            tally.attack_seconds += seconds
        return self._correct(state, query)

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

    def _note(self, tasks: TaskBatch) -> None:
        """Take the episodes into the digest, each task by itself, so that chunks do not matter."""
        rows = [torch.cat([(b.x.double() * 255).round().long().flatten(2).sum(2), b.y], 1) for b in tasks]
        self.digest.update(torch.cat(rows, 1).cpu().numpy().tobytes())

    def _now(self) -> float:
        wait(self.device)
        return time.perf_counter()
