"""Adapt once, attack many: per-episode, per-example results of all cells of one trained learner, with their checks."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_meta.checks import Certificate, certify
from robustbench_meta.contracts import Setting, Weights
from robustbench_meta.devices import is_lost
from robustbench_meta.effort import Effort
from robustbench_meta.engine import Engine
from robustbench_meta.errors import BenchError, DeviceLostError, keep_traceback, located
from robustbench_meta.exhibits import developed, exhibit
from robustbench_meta.grid import Cell, obstacle
from robustbench_meta.keeping import Notebook
from robustbench_meta.lanes import DeathError
from robustbench_meta.observation import Fresh, Observation, observe
from robustbench_meta.parts import Chunk, Found, Tally
from robustbench_meta.probes import CHECKED, Battery, Probe, probes
from robustbench_meta.seeds import seed_from
from robustbench_meta.snapshot import Snapshot
from robustbench_meta.spec import TrainingSpec
from robustbench_meta.tasks import TaskBatch, TaskSource, check_images
from robustbench_meta.trials import Arena, Armed, Contestant, Trial
from robustbench_meta.undefended import SELF_TESTED, self_test
from robustbench_meta.whereabouts import Whereabouts


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
    certificate: Certificate | None = None
    """None where the run was told to skip the checks."""
    effort: Effort = field(default_factory=Effort)
    """What the attacks asked of the model."""
    gallery: dict[str, Any] | None = None
    """Pictures of the first episode, as records hold them; None where there is nothing to see."""


def test_episodes(source: TaskSource, spec: TrainingSpec, places: Sequence[int]) -> TaskBatch:
    """The test episodes of these places (0, 1, …): the same ones for every learner, attack and seed."""
    seeds = [seed_from("episodes", "test", place) for place in places]
    tasks = source.sample(seeds, spec.way, spec.shot, spec.query)
    check_images(source.name, tasks, spec.way)
    return tasks


def evaluate(
    engine: Engine,
    weights: Weights,
    source: TaskSource,
    cells: list[Cell],
    device: torch.device,
    report: Callable[[int], None] | None = None,
    *,
    battery: Battery | None = None,
    surrogates: Mapping[str, tuple[Engine, Weights]] | None = None,
    notebook: Notebook | None = None,
    watch: Callable[[Whereabouts], AbstractContextManager[None]] | None = None,
) -> dict[str, Outcome | BenchError]:
    """Evaluate the cells of one training on the same episodes, by key; a cell that fails costs no other.

    Args:
        engine: of the training, its plan's chunk bounding the memory.
        weights: θ.
        source: the test split, on the device.
        cells: of one training and one number of episodes.
        device: where it all is.
        report: told how many episodes of all cells are done.
        battery: of the probes; None for no checks.
        surrogates: by key, the engine and θ of the models on which transferred attacks are made.
        notebook: has what was found before, and keeps what is found, also when this is stopped.
        watch: is shown where the evaluation is, as long as it runs.

    Raises:
        DeathError: a process that shared the work died, at no cell in particular.
    """
    evaluation = _Evaluation(engine, weights, source, cells, device, report, battery, surrogates or {}, notebook)
    with watch(evaluation.whereabouts) if watch is not None else nullcontext():
        return evaluation.run()


class _Evaluation:
    """The chunks of episodes are shared out to the engine's lanes; each chunk sees all cells."""

    def __init__(
        self, engine: Engine, weights: Weights, source: TaskSource, cells: list[Cell], device: torch.device,
        report: Callable[[int], None] | None, battery: Battery | None,
        surrogates: Mapping[str, tuple[Engine, Weights]], notebook: Notebook | None,
    ) -> None:  # fmt: skip
        self.notebook = notebook
        self.engine, self.source, self.cells, self.device, self.report = engine, source, cells, device, report
        self.weights, self.battery = _data(weights), battery
        self.surrogates = {key: (other, _data(theta)) for key, (other, theta) in surrogates.items()}
        self.spec, self.count = cells[0].training.spec, cells[0].spec.episodes
        self.trials: dict[str, Trial] = {cell.key: cell.trial for cell in cells}
        self.broken: dict[str, BenchError] = {}
        """Cells whose attack cannot even say what it is checked with."""
        self.probes: dict[str, list[Probe]] = {key: [] for key in self.trials}
        if battery is not None:
            self.probes = {key: self._probes(battery, key, trial) for key, trial in self.trials.items()}
        self.given_up: set[str] = set()
        self.fits = self.count
        """As many episodes at a time as have not been too many so far."""
        step, checked = engine.plan.chunk, min(CHECKED, self.count)
        bounds = sorted({*range(0, checked, step), *range(checked, self.count, step), self.count})
        self.portions = [range(*pair) for pair in pairwise(bounds)]
        """Of the episodes; those that are checked are in none with others."""
        self.whereabouts = Whereabouts(len(self.portions), list(self.trials))
        assert len(self.trials) == len(cells), "two cells with one key"

    def _probes(self, battery: Battery, key: str, trial: Trial) -> list[Probe]:
        try:
            found = probes(battery, trial, self.source.shape)
            return [probe for probe in found if not self._obstacle(probe.trial)]
        except Exception as error:  # an attack is a plugin: its `how` or `stronger` may raise anything
            self.broken[key] = BenchError(
                f"an attack failed to say what it is checked with (`stronger`, `how`): {located(error)}"
            )
            return []

    def _obstacle(self, trial: Trial) -> str | None:
        """Why an attack of a trial cannot work here; None if all can."""
        engine, spec = self.engine, self.spec
        setting = Setting(
            self.source.shape, spec.way, spec.shot, spec.query, engine.network.loss_name, engine.transductive
        )
        attacks = [side.attack for side in (trial.support, trial.query) if side is not None]
        return next((reason for attack in attacks if (reason := obstacle(attack, setting))), None)

    def run(self) -> dict[str, Outcome | BenchError]:
        self.engine.set_mode(training=False)
        for engine, _ in self.surrogates.values():
            engine.set_mode(training=False)
        known = self.notebook.found(self._tells_all) if self.notebook is not None else {}
        with torch.no_grad():
            self._find_out(known)
        chunks = [chunk for portion in self.portions for chunk in known[_bounds(portion)]]
        observation = Observation()
        for each in chunks:
            observation.merge(each.observation)
        return {cell.key: self._outcome(cell, chunks, observation) for cell in self.cells}

    def _find_out(self, known: Found) -> None:
        """Evaluate the portions that are not known yet. A cell that kills the process at work on it fails."""

        def found(portion: range, chunks: list[Chunk]) -> None:
            known[_bounds(portion)] = chunks
            if self.notebook is not None:
                self.notebook.note(_bounds(portion), chunks)

        def done(count: int) -> None:
            if self.report is not None:
                left = sum(map(len, todo[count:]))
                self.report((self.count - left) * len(self.cells))

        while todo := [portion for portion in self.portions if _bounds(portion) not in known]:
            try:
                results = self.engine.share_out(self._chunks, todo, done, found=found)
                known.update(zip(map(_bounds, todo), results, strict=True))
            except DeathError as death:
                self._bury(death)
            finally:
                if self.notebook is not None:
                    self.notebook.flush()

    def _bury(self, death: DeathError) -> None:
        """The cell at which a process died fails; the others are gone on with.

        Raises:
            DeathError: it was at none.
        """
        where = next((at for at, portion in enumerate(self.portions) if portion == death.item), None)
        culprit = self.whereabouts.cell(where) if where is not None else None
        if where is None or culprit is None:
            raise death
        self.whereabouts.leave(where)
        self.broken[culprit] = BenchError(f"while this cell was under way, {death}")
        self.given_up.add(culprit)

    def _tells_all(self, start: int, chunk: Chunk) -> bool:
        """Whether a chunk that was kept, of the portion that begins there, has all that is asked for.

        What failed is not among it: its reason may be gone.
        """
        tallies = [chunk.cells.get(key) for key in self.trials]
        if not all(tally is not None and tally.failure is None for tally in tallies):
            return False
        if self.battery is None or start >= CHECKED:
            return True
        return all(probe.key in chunk.probes for key in self.trials for _, probe in self.probes[key])

    def _outcome(self, cell: Cell, chunks: list[Chunk], observation: Observation) -> Outcome | BenchError:
        if cell.key in self.broken:
            return self.broken[cell.key]
        tallies = [chunk.cells[cell.key] for chunk in chunks]
        failure = next((tally.failure for tally in tallies if tally.failure is not None), None)
        if failure is not None:
            return failure
        clean, robust = _gathered([chunk.clean for chunk in chunks]), _gathered([tally.correct for tally in tallies])
        assert len(clean) == len(robust) == self.count, "an episode is missing, or counted twice"
        adapted = sum(chunk.adapted_tasks for chunk in chunks)
        certificate = None
        if self.battery is not None:
            certificate = self._certificate(cell, chunks, observation, clean, robust)
        exhibited = tallies[0].gallery
        return Outcome(
            clean, robust,
            hashlib.sha256(b"".join(chunk.noted for chunk in chunks)).hexdigest()[:16],
            1000 * sum(chunk.adapt_seconds for chunk in chunks) / max(adapted, 1),
            1000 * sum(tally.seconds for tally in tallies) / self.count,
            1000 * sum(chunk.check_seconds for chunk in chunks) / self.count,
            certificate,
            sum((tally.effort for tally in tallies), Effort()),
            developed(exhibited) if exhibited is not None else None,
        )  # fmt: skip

    def _certificate(
        self, cell: Cell, chunks: list[Chunk], observation: Observation, clean: np.ndarray, robust: np.ndarray
    ) -> Certificate:
        found, failed, seen = {}, {}, replace(observation)
        for name, trial in self.probes[cell.key]:
            for chunk in chunks:
                if name == "noise" and trial.key in chunk.noisy:
                    seen.merge(chunk.noisy[trial.key])
            tallies = [chunk.probes[trial.key] for chunk in chunks if trial.key in chunk.probes]
            failures = [tally.failure for tally in tallies if tally.failure is not None]
            if failures:
                failed[name] = str(failures[0])
            else:
                found[name] = _gathered([tally.correct for tally in tallies])
        effects = [effect for chunk in chunks if (effect := chunk.cells[cell.key].effect) is not None]
        tested = [effect for effect in effects if isinstance(effect, Tensor)]
        failed.update(("self-test", str(effect)) for effect in effects if not isinstance(effect, Tensor))
        return certify(
            self.trials[cell.key], clean, robust, found, seen,
            effects=torch.cat(tested).cpu().numpy()[:SELF_TESTED] if tested else None, failed=failed,
            way=self.spec.way, precision=self.spec.precision,
        )  # fmt: skip

    def _chunks(self, engine: Engine, places: range) -> list[Chunk]:
        """All cells on these episodes; in halves, from now on, if they do not fit in the device's memory together."""
        if len(places) <= self.fits:
            engine.batch_seeds([seed_from(self.spec.seed, "attack", place) for place in places])
            try:
                with engine.drawing("episodes", self.device):
                    return [self._chunk(engine, places)]
            except torch.OutOfMemoryError:
                if len(places) == 1:
                    raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.fits = len(places) // 2
        half = len(places) // 2
        return self._chunks(engine, places[:half]) + self._chunks(engine, places[half:])

    def _chunk(self, engine: Engine, places: range) -> Chunk:
        """All cells on one chunk of episodes, then the probes if it is one of the first.

        Raises:
            torch.OutOfMemoryError: there is more than one episode, and they do not fit together.
        """
        tasks = test_episodes(self.source, self.spec, places)
        strangers = {
            key: Contestant(other, other.theta(_data(theta))) for key, (other, theta) in self.surrogates.items()
        }
        contestant = Contestant(engine, engine.theta(self.weights))
        arena = Arena(contestant, tasks, strangers, self.device)
        chunk, checked, noticing = Chunk(_noted(tasks)), self.battery is not None and places.start < CHECKED, 0.0
        kept = Snapshot(self._given(engine))
        if checked:
            started = arena.now()
            fresh, noises = Fresh(contestant), self._noises(arena, chunk, places)
            noticing = arena.now() - started
        for key, trial in self.trials.items():
            with self._at(places, key):
                chunk.cells[key] = _of(key, self._held(arena, trial, key))
        chunk.clean = arena.clean if any(tally.failure is None for tally in chunk.cells.values()) else None
        if places.start == 0:
            for key, tally in chunk.cells.items():
                tally.gallery = exhibit(arena, self.trials[key]) if tally.failure is None else None
        changed = kept.changed()
        if changed:  # attacks are held to account one by one, and what they changed is given back
            raise BenchError(
                f"learner '{engine.learner.name}', or its backbone, changed {', '.join(changed)} in place while it was "
                "tested, so that one task leaks into the next; compute new tensors"
            )
        chunk.adapt_seconds, chunk.adapted_tasks = arena.adapt_seconds, arena.adapted_tasks
        if checked and chunk.clean is not None:
            started = arena.now()
            chunk.noisy = {noise.key: fresh.observe(arena, noise) for noise in noises}
            self._check(arena, chunk, places)
            chunk.check_seconds = arena.now() - started + noticing
        return chunk

    def _noises(self, arena: Arena, chunk: Chunk, places: range) -> list[Trial]:
        """The probes with noise on queries, held before the model is shown any clean query."""
        found: dict[str, Trial] = {}
        for key, listed in self.probes.items():
            for name, probe in listed:
                if name == "noise" and probe.support is None and probe.surrogate is None and probe.key not in found:
                    with self._at(places, key):
                        chunk.probes[probe.key] = _of(key, self._held(arena, probe, probe.key))
                    found[probe.key] = probe
        return [probe for key, probe in found.items() if chunk.probes[key].failure is None]

    def _given(self, engine: Engine) -> dict[str, Tensor]:
        """What a learner is lent at test, and must leave as it is, by what messages call it; images are copies."""
        theta = {f"θ's '{name}'": weight for name, weight in self.weights.items()}
        return theta | {f"the buffer '{name}'": buffer for name, buffer in engine.network.module.named_buffers()}

    def _held(self, arena: Arena, trial: Trial, key: str) -> Tally:
        """One trial; one that has failed on other episodes is not tried again."""
        try:
            if key in self.given_up:
                raise BenchError("it failed on other episodes")
            held = arena.hold(trial)
            return Tally(held.correct, held.seconds, effort=held.effort)
        except BenchError as failure:
            keep_traceback(failure)
            self.given_up.add(key)
            return Tally(failure=failure)
        except torch.OutOfMemoryError:
            if arena.tasks.tasks > 1:
                raise
            name = " and ".join(f"'{side.attack.name}'" for side in (trial.support, trial.query) if side is not None)
            return Tally(failure=BenchError(f"attack {name} on one task at a time does not fit in the device's memory"))

    def _check(self, arena: Arena, chunk: Chunk, places: range) -> None:
        """The probes of all cells, the self-tests of their attacks, and a look at the model."""
        with arena.engine.drawing("observation", self.device):
            chunk.observation = observe(arena)
        effects: dict[str, Tensor | BenchError] = {}
        for key, trial in self.trials.items():
            if chunk.cells[key].failure is not None:
                continue
            with self._at(places, key):
                for _, probe in self.probes[key]:
                    if probe.key not in chunk.probes:
                        chunk.probes[probe.key] = _of(key, self._held(arena, probe, probe.key))
                armed = _tested(trial)
                if armed is not None and places.start < SELF_TESTED:
                    if armed.key not in effects:
                        effects[armed.key] = _self_tested(arena, armed)
                    chunk.cells[key].effect = effects[armed.key]

    def _at(self, places: range, key: str) -> AbstractContextManager[None]:
        """Inside, this process is at that cell."""
        starts = [portion.start for portion in self.portions]
        return self.whereabouts.at(bisect_right(starts, places.start) - 1, key)


def _of(key: str, tally: Tally) -> Tally:
    """What a trial of that cell gave; if it made the device useless, nothing more can be evaluated here."""
    if tally.failure is not None and is_lost(tally.failure):
        lost = DeviceLostError(str(tally.failure))
        lost.cell = key
        raise lost
    return tally


def _bounds(portion: range) -> tuple[int, int]:
    return portion.start, portion.stop


def _self_tested(arena: Arena, armed: Armed) -> Tensor | BenchError:
    try:
        return self_test(arena.engine, armed, arena.tasks)
    except BenchError as failure:
        return failure


def _tested(trial: Trial) -> Armed | None:
    """The attack that must show an effect on an undefended model, without a sweep; None: there is nothing to see."""
    armed = trial.query or trial.support
    if armed is None or armed.threat.eps == 0 or armed.attack.clean:
        return None
    return Armed(armed.attack, armed.threat)


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
