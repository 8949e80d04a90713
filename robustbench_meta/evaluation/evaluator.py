"""Adapt once, attack many: per-episode, per-example results of all cells of one trained learner, with their checks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_meta.contracts import Setting, Weights
from robustbench_meta.contracts.tasks import TaskBatch, TaskSource, check_images
from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.query_counter import QueryCount
from robustbench_meta.errors import BenchError, DeviceLostError, located, traceback_of
from robustbench_meta.evaluation.attack_checks import SELF_TESTED, self_test
from robustbench_meta.evaluation.episode_evaluator import AdaptableModel, EpisodeEvaluator
from robustbench_meta.evaluation.example_images import encoded, example_of
from robustbench_meta.evaluation.flags import ReliabilityReport, assess
from robustbench_meta.evaluation.model_checks import Observation, UnexposedCopy, observe
from robustbench_meta.evaluation.partial_results import ChunkResult, ScenarioResult
from robustbench_meta.experiment.grid import Cell, obstacle
from robustbench_meta.experiment.probes import Probe, Probes, checked_of, probes
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario
from robustbench_meta.experiment.spec import TrainingSpec
from robustbench_meta.runtime.devices import is_lost
from robustbench_meta.runtime.seeds import seed_from
from robustbench_meta.runtime.tensor_snapshot import Snapshot

CPU_CHUNK, CUDA_CHUNK = 8, 200
"""Episodes in a chunk."""


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
    check_ms_per_task: float = 0.0
    """What all probes of this training took, for each test episode; cells share them."""
    reliability: ReliabilityReport | None = None
    """None where the run was told to skip the checks."""
    effort: QueryCount = field(default_factory=QueryCount)
    """What the attacks asked of the model."""
    gallery: dict[str, Any] | None = None
    """Pictures of the first episode, as records hold them; None where there is nothing to see."""


def test_episodes(source: TaskSource, spec: TrainingSpec, episodes: Sequence[int]) -> TaskBatch:
    """The test episodes of these numbers (0, 1, …): the same ones for every learner, attack and seed."""
    seeds = [seed_from("episodes", "test", episode) for episode in episodes]
    tasks = source.sample(seeds, spec.way, spec.shot, spec.query)
    check_images(source.name, tasks, spec.way)
    return tasks


def chunks_of(count: int, device: str, chunk: int | None = None) -> list[range]:
    """The test episodes that are evaluated together: a rule of their number and the kind of device alone.

    The first ones, which are checked, are in no chunk with others.

    Args:
        count: how many episodes there are.
        device: cpu or cuda.
        chunk: how many at a time, instead of the rule's.
    """
    step = chunk or (CUDA_CHUNK if device == "cuda" else min(CPU_CHUNK, (count + 1) // 2))
    checked = checked_of(count)
    bounds = sorted({*range(0, checked, step), *range(checked, count, step), count})
    return [range(*pair) for pair in pairwise(bounds)]


def evaluate_cells(
    engine: Engine,
    weights: Weights,
    source: TaskSource,
    cells: list[Cell],
    device: torch.device,
    *,
    probe_plan: Probes | None = None,
    surrogates: Mapping[str, tuple[Engine, Weights]] | None = None,
    chunk: int | None = None,
) -> dict[str, Outcome | BenchError]:
    """Evaluate the cells of one training in this process, by key; a cell that fails costs no other.

    Args:
        engine: of the training.
        weights: θ.
        source: the test split, on the device.
        cells: of one training and one number of episodes.
        device: where it all is.
        probe_plan: what is probed; None for no checks.
        surrogates: by key, the engine and θ of the models on which transferred attacks are made.
        chunk: see `chunks_of`.
    """
    evaluator = Evaluator(engine, weights, source, device, probe_plan, surrogates or {})
    chunks: list[ChunkResult] = []
    for episodes in chunks_of(cells[0].spec.episodes, device.type, chunk):
        chunks += evaluator.evaluate(episodes, [cell for cell in cells if _failure(cell, chunks) is None])
    return {cell.key: outcome_of(cell, chunks, probe_plan, source.shape) for cell in cells}


def _nowhere(_: str) -> AbstractContextManager[None]:
    return nullcontext()


class Evaluator:
    """Evaluates cells of one training on chunks of the test episodes; what a chunk gives depends on no other.

    Args:
        engine: of the training.
        weights: θ.
        source: the test split, on the device.
        device: where it all is.
        probe_plan: what is probed; None for no checks.
        surrogates: as for `evaluate_cells`.
    """

    def __init__(
        self, engine: Engine, weights: Weights, source: TaskSource, device: torch.device, probe_plan: Probes | None,
        surrogates: Mapping[str, tuple[Engine, Weights]],
    ) -> None:  # fmt: skip
        self.engine, self.source, self.device, self.probe_plan = engine, source, device, probe_plan
        self.weights = _data(weights)
        self.surrogates = {key: (other, _data(theta)) for key, (other, theta) in surrogates.items()}
        self.fits: int | None = None
        """As many episodes at a time as have not been too many so far; None: any."""
        for each in (engine, *(other for other, _ in surrogates.values())):
            each.set_mode(training=False)

    def evaluate(
        self, episodes: range, cells: Sequence[Cell], at: Callable[[str], AbstractContextManager[None]] = _nowhere
    ) -> list[ChunkResult]:
        """All these cells on these episodes; in halves, from now on, if they do not fit in the device's memory.

        Args:
            episodes: by number, from 0.
            cells: of the training.
            at: entered while a cell, of that key, is being computed.
        """
        with torch.no_grad():
            return self._split(episodes, _ChunkEvaluation(self, cells, at))

    def _split(self, episodes: range, evaluation: _ChunkEvaluation) -> list[ChunkResult]:
        if self.fits is None or len(episodes) <= self.fits:
            try:
                return [evaluation.evaluate(episodes)]
            except torch.OutOfMemoryError:
                if len(episodes) == 1:
                    raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.fits = len(episodes) // 2
        half = len(episodes) // 2
        return self._split(episodes[:half], evaluation) + self._split(episodes[half:], evaluation)


class _ChunkEvaluation:
    """Some cells on some episodes."""

    def __init__(
        self, evaluator: Evaluator, cells: Sequence[Cell], at: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self.engine, self.source, self.device = evaluator.engine, evaluator.source, evaluator.device
        self.weights, self.surrogates, self.probe_plan = evaluator.weights, evaluator.surrogates, evaluator.probe_plan
        self.spec, self.at = cells[0].training.spec, at
        self.checked = checked_of(cells[0].spec.episodes)
        self.scenarios: dict[str, Scenario] = {cell.key: cell.scenario for cell in cells}
        self.given_up: dict[str, tuple[str, str]] = {}
        """What has failed, why, and the traceback, by the key of a cell or a probe."""
        self.probes: dict[str, list[Probe]] = {
            key: self._probes(key, scenario) for key, scenario in self.scenarios.items()
        }
        assert len(self.scenarios) == len(cells), "two cells with one key"

    def _probes(self, key: str, scenario: Scenario) -> list[Probe]:
        if self.probe_plan is None:
            return []
        try:
            found = probes(self.probe_plan, scenario, self.source.shape)
            return [probe for probe in found if not self._obstacle(probe.scenario)]
        except Exception as error:  # an attack is a plugin: its `how` or `stronger` may raise anything
            reason = f"an attack failed to say what it is checked with (`stronger`, `how`): {located(error)}"
            self.given_up[key] = reason, traceback_of(error)
            return []

    def _obstacle(self, scenario: Scenario) -> str | None:
        """Why an attack of a scenario cannot work here; None if all can."""
        engine, spec = self.engine, self.spec
        setting = Setting(
            self.source.shape, spec.way, spec.shot, spec.query, engine.network.loss_name, engine.transductive
        )
        attacks = [side.attack for side in (scenario.support, scenario.query) if side is not None]
        return next((reason for attack in attacks if (reason := obstacle(attack, setting))), None)

    def evaluate(self, episodes: range) -> ChunkResult:
        """All cells on one chunk of episodes, then the probes if it is one of the first.

        Whatever a learner draws is the same whoever evaluates the chunk, and whatever went before.

        Raises:
            torch.OutOfMemoryError: there is more than one episode, and they do not fit together.
            BenchError: the learner or its backbone changed its weights or buffers in place.
        """
        self.engine.set_task_seeds([seed_from(self.spec.seed, "attack", episode) for episode in episodes])
        with self.engine.seeded_for("episodes", self.device):
            return self._evaluate(episodes)

    def _evaluate(self, episodes: range) -> ChunkResult:
        tasks = test_episodes(self.source, self.spec, episodes)
        surrogates = {
            key: AdaptableModel(other, other.theta(_data(theta))) for key, (other, theta) in self.surrogates.items()
        }
        trained_model = AdaptableModel(self.engine, self.engine.theta(self.weights))
        episode_evaluator = EpisodeEvaluator(trained_model, tasks, surrogates, self.device)
        chunk, checked, noticing = (
            ChunkResult(_noted(tasks).hex()), self.probe_plan is not None and episodes.start < self.checked, 0.0,
        )  # fmt: skip
        kept = Snapshot(self._fixed())
        if checked:
            started = episode_evaluator.now()
            fresh, noises = UnexposedCopy(trained_model), self._noises(episode_evaluator, chunk)
            noticing = episode_evaluator.now() - started
        for key, scenario in self.scenarios.items():
            with self.at(key):
                chunk.cells[key] = self._evaluate_scenario(episode_evaluator, scenario, key, key)
        chunk.clean = (
            episode_evaluator.clean if any(result.failure is None for result in chunk.cells.values()) else None
        )
        if episodes.start == 0:
            for key, result in chunk.cells.items():
                result.gallery = example_of(episode_evaluator, self.scenarios[key]) if result.failure is None else None
        changed = kept.changed()
        if changed:  # the harness checks attacks one by one, and restores what they changed
            raise BenchError(
                f"learner '{self.engine.learner.name}', or its backbone, changed {', '.join(changed)} in place while "
                "it was tested, so that one task leaks into the next; compute new tensors"
            )
        chunk.adapt_seconds, chunk.adapted_tasks = episode_evaluator.adapt_seconds, episode_evaluator.adapted_tasks
        if checked and chunk.clean is not None:
            started = episode_evaluator.now()
            chunk.noisy = {noise.key: fresh.observe(episode_evaluator, noise) for noise in noises}
            self._check(episode_evaluator, chunk, episodes)
            chunk.check_seconds = episode_evaluator.now() - started + noticing
        return chunk

    def _noises(self, episode_evaluator: EpisodeEvaluator, chunk: ChunkResult) -> list[Scenario]:
        """The probes with noise on queries, held before the model is shown any clean query."""
        found: dict[str, Scenario] = {}
        for key, listed in self.probes.items():
            for name, probe in listed:
                if name == "noise" and probe.support is None and probe.surrogate is None and probe.key not in found:
                    with self.at(key):
                        chunk.probes[probe.key] = self._evaluate_scenario(episode_evaluator, probe, probe.key, key)
                    found[probe.key] = probe
        return [probe for key, probe in found.items() if chunk.probes[key].failure is None]

    def _fixed(self) -> dict[str, Tensor]:
        """What a learner must leave as it is at the test, by what messages call it; images are copies."""
        module = self.engine.network.module
        theta = {f"θ's '{name}'": weight for name, weight in self.weights.items()}
        own = [*module.named_parameters(), *module.named_buffers()]
        return theta | {f"the network's '{name}'": tensor for name, tensor in own}

    def _evaluate_scenario(
        self, episode_evaluator: EpisodeEvaluator, scenario: Scenario, key: str, cell: str
    ) -> ScenarioResult:
        """One scenario of a cell; one that has failed on other episodes is not tried again.

        Raises:
            DeviceLostError: it made the device useless: nothing more can be evaluated here.
        """
        if key in self.given_up:
            reason, where = self.given_up[key]
            return ScenarioResult(failure=reason, traceback=where)
        try:
            held = episode_evaluator.evaluate(scenario)
            return ScenarioResult(held.correct, held.seconds, effort=held.effort)
        except BenchError as failure:
            if is_lost(failure):
                lost = DeviceLostError(str(failure))
                lost.cell = cell
                raise lost from failure
            self.given_up[key] = str(failure), traceback_of(failure)
            return ScenarioResult(failure=str(failure), traceback=traceback_of(failure))
        except torch.OutOfMemoryError:
            if episode_evaluator.tasks.tasks > 1:
                raise
            name = " and ".join(
                f"'{side.attack.name}'" for side in (scenario.support, scenario.query) if side is not None
            )
            return ScenarioResult(failure=f"attack {name} on one task at a time does not fit in the device's memory")

    def _check(self, episode_evaluator: EpisodeEvaluator, chunk: ChunkResult, episodes: range) -> None:
        """The probes of all cells, the self-tests of their attacks, and a look at the model."""
        with episode_evaluator.engine.seeded_for("observation", self.device):
            chunk.observation = observe(episode_evaluator)
        effects: dict[str, Tensor | str] = {}
        for key, scenario in self.scenarios.items():
            if chunk.cells[key].failure is not None:
                continue
            with self.at(key):
                for _, probe in self.probes[key]:
                    if probe.key not in chunk.probes:
                        chunk.probes[probe.key] = self._evaluate_scenario(episode_evaluator, probe, probe.key, key)
                at_eps = _tested(scenario)
                if at_eps is not None and episodes.start < SELF_TESTED:
                    if at_eps.key not in effects:
                        effects[at_eps.key] = _self_tested(episode_evaluator, at_eps)
                    chunk.cells[key].effect = effects[at_eps.key]


def outcome_of(
    cell: Cell, chunks: Sequence[ChunkResult], probe_plan: Probes | None, shape: Sequence[int]
) -> Outcome | BenchError:
    """What a cell's evaluation gave, from the chunks of all episodes, in order; an error: why it failed."""
    failure = _failure(cell, chunks)
    if failure is not None:
        return BenchError(failure)
    results, count = [chunk.cells[cell.key] for chunk in chunks], cell.spec.episodes
    clean, robust = _gathered([chunk.clean for chunk in chunks]), _gathered([result.correct for result in results])
    assert len(clean) == len(robust) == count, "an episode is missing, or counted twice"
    reliability = None if probe_plan is None else _reliability(cell, chunks, probe_plan, shape, clean, robust)
    example = results[0].gallery
    return Outcome(
        clean, robust,
        hashlib.sha256(b"".join(bytes.fromhex(chunk.episodes) for chunk in chunks)).hexdigest()[:16],
        1000 * sum(chunk.adapt_seconds for chunk in chunks) / max(sum(chunk.adapted_tasks for chunk in chunks), 1),
        1000 * sum(result.seconds for result in results) / count,
        1000 * sum(chunk.check_seconds for chunk in chunks) / count,
        reliability,
        sum((result.effort for result in results), QueryCount()),
        encoded(example) if example is not None else None,
    )  # fmt: skip


def _failure(cell: Cell, chunks: Sequence[ChunkResult]) -> str | None:
    found = (chunk.cells[cell.key].failure for chunk in chunks if cell.key in chunk.cells)
    return next((failure for failure in found if failure is not None), None)


def _reliability(
    cell: Cell,
    chunks: Sequence[ChunkResult],
    probe_plan: Probes,
    shape: Sequence[int],
    clean: np.ndarray,
    robust: np.ndarray,
) -> ReliabilityReport:
    found, failed, observation = {}, {}, Observation()
    for chunk in chunks:
        observation.merge(chunk.observation)
    for name, scenario in probes(probe_plan, cell.scenario, shape):
        for chunk in chunks:
            if name == "noise" and scenario.key in chunk.noisy:
                observation.merge(chunk.noisy[scenario.key])
        results = [chunk.probes[scenario.key] for chunk in chunks if scenario.key in chunk.probes]
        failures = [result.failure for result in results if result.failure is not None]
        if failures:
            failed[name] = failures[0]
        elif results:  # none where its attack cannot work in this setting
            found[name] = _gathered([result.correct for result in results])
    effects = [effect for chunk in chunks if (effect := chunk.cells[cell.key].effect) is not None]
    tested = [effect for effect in effects if isinstance(effect, Tensor)]
    failed.update(("self-test", effect) for effect in effects if isinstance(effect, str))
    return assess(
        cell.scenario, clean, robust, found, observation,
        effects=torch.cat(tested).cpu().numpy()[:SELF_TESTED] if tested else None, failed=failed,
        way=cell.training.spec.way, precision=cell.training.spec.precision,
    )  # fmt: skip


def _self_tested(episode_evaluator: EpisodeEvaluator, at_eps: AttackAtEps) -> Tensor | str:
    try:
        return self_test(episode_evaluator.engine, at_eps, episode_evaluator.tasks)
    except BenchError as failure:
        return str(failure)


def _tested(scenario: Scenario) -> AttackAtEps | None:
    """The attack that must show an effect on an undefended model, without a sweep; None: there is nothing to see."""
    at_eps = scenario.query or scenario.support
    if at_eps is None or at_eps.threat.eps == 0 or at_eps.attack.clean or at_eps.attack.certifies:
        return None
    return AttackAtEps(at_eps.attack, at_eps.threat)


def _data(weights: Weights) -> Weights:
    return {name: weight.detach() for name, weight in weights.items()}


def _gathered(parts: Sequence[Tensor | None]) -> np.ndarray:
    """All episodes of the chunks, in order [episodes, queries]."""
    gathered: np.ndarray = torch.cat([part for part in parts if part is not None]).cpu().numpy()
    return gathered


def _noted(tasks: TaskBatch) -> bytes:
    """What the digest takes of the episodes, each task by itself, so that chunks do not matter."""
    rows = [torch.cat([(b.x.double() * 255).round().long().flatten(2).sum(2), b.y], 1) for b in tasks]
    return torch.cat(rows, 1).cpu().numpy().tobytes()
