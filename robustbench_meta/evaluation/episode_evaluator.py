"""One scenario: who attacks the support set and the queries of test episodes, and which queries then stay right."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_meta.contracts import Attack, Random
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch, gathered
from robustbench_meta.engine.attack_harness import certified, guarded
from robustbench_meta.engine.attacked_model import AttackedModel, PoisonedAdaptation, Target
from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.query_counter import CountingModel, QueryCount
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario
from robustbench_meta.options import BY_HALVES
from robustbench_meta.runtime.devices import wait
from robustbench_meta.runtime.seeds import seed_from


class AdaptableModel(NamedTuple):
    """A trained learner: its engine and θ."""

    engine: Engine
    theta: State


class AttackResult(NamedTuple):
    """What a scenario gave on some episodes."""

    correct: Tensor
    """Whether each query's prediction is right [tasks, queries]."""
    seconds: float
    """What its attacks took."""
    effort: QueryCount
    """What they asked of the model."""
    logits: Tensor
    """Of the queries [tasks, queries, way]."""
    query: Tensor | None = None
    """The queries as they were attacked [tasks, queries, *shape]; None if they were not."""
    support: Tensor | None = None
    """The same of the support sets."""


class _Found(NamedTuple):
    x: Tensor
    seconds: float
    effort: QueryCount
    fooled: Tensor | None
    """Whether each image fools the model it was made on; None where nobody goes on from it."""


class EpisodeEvaluator:
    """Some test episodes on which scenarios are held; what several scenarios need is computed once.

    Args:
        trained_model: the trained learner under test.
        tasks: the episodes.
        surrogates: by key, the models on which transferred attacks are made.
        device: where it all is.
    """

    def __init__(
        self,
        trained_model: AdaptableModel,
        tasks: TaskBatch,
        surrogates: Mapping[str, AdaptableModel],
        device: torch.device,
    ) -> None:
        self.engine, self.theta = trained_model
        self.tasks, self.device = tasks, device
        self.adapt_seconds, self.adapted_tasks = 0.0, 0
        self._surrogates = surrogates
        self._found: dict[str, _Found] = {}
        self._states: dict[str, tuple[State, _Found]] = {}
        self._surrogate_models: dict[str, State] = {}
        self._results: dict[str, AttackResult] = {}
        self._proofs: dict[Attack, tuple[Tensor, _Found]] = {}

    @cached_property
    def adapted(self) -> State:
        """Adapted to the clean support sets."""
        return self._adapt(self.tasks.support, "clean")

    @cached_property
    def logits(self) -> Tensor:
        """Of the clean queries, without any attack [tasks, queries, way]."""
        return self._logits(self.adapted, self.tasks.query.x, "clean")

    @cached_property
    def clean(self) -> Tensor:
        """Whether each query's prediction is right without any attack [tasks, queries]."""
        return self.logits.argmax(-1) == self.tasks.query.y

    def victim(self, state: State | None = None) -> AttackedModel:
        """The model adapted to the clean support sets, or another state, as an attack on the queries sees it."""
        return AttackedModel(self.engine, state or self.adapted, self.tasks.query.y.shape[1])

    def evaluate(self, scenario: Scenario) -> AttackResult:
        """Which queries stay right, and the seconds that the attacks took.

        Raises:
            BenchError: an attack failed or left its threat model, or the logits are not finite.
        """
        if scenario.key not in self._results:
            self._results[scenario.key] = self._evaluate(scenario)
        return self._results[scenario.key]

    def _evaluate(self, scenario: Scenario) -> AttackResult:
        support, query = None, None
        if scenario.support is not None and scenario.support_attack in BY_HALVES:
            return self._by_halves(scenario.support, scenario.support_attack)
        if scenario.support is not None:
            of, state, support = self._adapted_to_attacked(scenario.support, poisons=scenario.poisons)
        else:
            of, state = "clean", self.adapted
        if scenario.query is not None:
            victim: Target = self.victim(state)
            if scenario.surrogate is not None:
                of, victim = f"surrogate {scenario.surrogate}", self._surrogate_model(scenario.surrogate)
            judged = scenario.surrogate is None  # by the model that it was made on
            keeps = judged and scenario.support is None
            query = self._attack(of, victim, self.tasks.query, scenario.query, "query", keeps=keeps, judged=judged)
        attacks = [found for found in (support, query) if found is not None]
        shown = query.x if query is not None else self.tasks.query.x
        logits = self._logits(state, shown, scenario.key) if attacks else self.logits
        correct = logits.argmax(-1) == self.tasks.query.y
        if scenario.query is not None and scenario.query.attack.certifies:
            radius, proof = self._certified(scenario.query.attack)
            correct, attacks = radius >= scenario.query.threat.eps, [proof]
        return AttackResult(
            correct,
            sum((found.seconds for found in attacks), 0.0),
            sum((found.effort for found in attacks), QueryCount()),
            logits,
            query.x if query is not None else None,
            support.x if support is not None else None,
        )

    def _adapted_to_attacked(self, at_eps: AttackAtEps, *, poisons: bool) -> tuple[str, State, _Found]:
        """A name of the state that is adapted to attacked support sets, the state, and what the attack found."""
        of = f"{'poisoned' if poisons else 'adv'} {at_eps.key}"
        if of not in self._states:
            support = self.tasks.support
            if poisons:
                victim: Target = PoisonedAdaptation(self.engine, self.theta, self.tasks.query)
            else:
                target = self.theta if self.engine.learner.theta_predicts else self.adapted
                victim = AttackedModel(self.engine, target, support.y.shape[1])
            found = self._attack("poison" if poisons else "theta", victim, support, at_eps, "support")
            self._states[of] = self._adapt(Batch(found.x, support.y), of), found
        return of, *self._states[of]

    def _by_halves(self, at_eps: AttackAtEps, support_attack: str) -> AttackResult:
        """Support sets made with one half of each task's queries and judged on the other, and the other way round."""
        support, query = self.tasks
        order = query.y.argsort(dim=1, stable=True)  # so that each half has queries of every class
        logits, attacks = torch.empty_like(self.logits), []
        for half in (0, 1):
            seeds, judged = order[:, half::2], order[:, 1 - half :: 2]
            known = Batch(gathered(query.x, seeds), query.y.gather(1, seeds))
            of = f"{support_attack} {half} {at_eps.key}"
            if support_attack == "asp":
                aimed = PoisonedAdaptation(self.engine, self.theta, known, shift=1)
                attacks.append(self._attack(of, aimed, support, at_eps, f"support {half}"))
                images = attacks[-1].x
            else:
                fooling = AttackedModel(self.engine, self.adapted, known.y.shape[1])
                attacks.append(self._attack(of, fooling, known, at_eps, f"query {half}"))
                images = swapped(support, Batch(attacks[-1].x, known.y))
            told = self._logits(self._adapt(Batch(images, support.y), of), query.x, of)
            logits.scatter_(1, judged[..., None].expand(-1, -1, told.shape[-1]), gathered(told, judged))
        return AttackResult(
            logits.argmax(-1) == query.y, sum((found.seconds for found in attacks), 0.0),
            sum((found.effort for found in attacks), QueryCount()), logits,
        )  # fmt: skip

    def _certified(self, attack: Attack) -> tuple[Tensor, _Found]:
        """The radius within which each prediction is proved right [tasks, queries], and what the proof took."""
        query, sigma = self.tasks.query, self.engine.learner.smoothing_sigma()
        if attack not in self._proofs:
            started, effort = self.now(), QueryCount(query.y.numel())
            random = Random([seed_from(seed, "certificate") for seed in self.engine.seeds])
            model = CountingModel(self.victim(self.engine.unsmoothed(self.adapted)), effort)
            radius = certified(attack, model, sigma, query, random)
            self._proofs[attack] = radius, _Found(query.x, self.now() - started, effort, None)
        return self._proofs[attack]

    def _surrogate_model(self, key: str) -> AttackedModel:
        """A surrogate, adapted to the clean support sets."""
        engine, theta = self._surrogates[key]
        if key not in self._surrogate_models:
            engine.set_task_seeds(self.engine.seeds)
            with engine.seeded_for(f"adapt {key}", self.device):
                self._surrogate_models[key] = engine.adapt(theta, _copy(self.tasks.support))
        return AttackedModel(engine, self._surrogate_models[key], self.tasks.query.y.shape[1])

    def _attack(
        self, of: str, victim: Target, batch: Batch, at_eps: AttackAtEps, role: str, *, keeps: bool = False,
        judged: bool = False,
    ) -> _Found:  # fmt: skip
        """The batch attacked; along a sweep each ε begins where the smaller one ended.

        Args:
            of: names the victim, for what is kept.
            victim: is attacked.
            batch: support sets or queries.
            at_eps: the attack.
            role: `support` or `query`.
            keeps: along a sweep, what fools the model within a smaller ε stays as it is: robust accuracy never rises
                with ε. Only where each image is judged by itself, on the model that it was made on.
            judged: the model is the one that judges the images in the end: nothing counts but which of them fool it.
        """
        key = f"{role} {of} {at_eps.key}"
        if key in self._found:
            return self._found[key]
        earlier = at_eps.before()
        before = None if earlier is None else self._attack(of, victim, batch, earlier, role, keeps=keeps, judged=judged)
        started = self.now()
        start, effort = None if before is None else before.x, QueryCount(batch.y.numel())
        counted = CountingModel(victim, effort)
        x = self.engine.attacked(
            counted, batch, guarded(at_eps.attack, at_eps.threat, for_success=judged), role, start
        ).x
        keeps = keeps and not victim.transductive
        if before is not None and before.fooled is not None and keeps:
            x = torch.where(before.fooled.view(*before.fooled.shape, *(1,) * victim.event_ndim), before.x, x)
        seconds = self.now() - started
        fooled = None
        if keeps:
            with self.engine.seeded_for(f"fooled {key}", self.device):
                fooled = victim.fooled(x.clone(), batch.y)
        found = self._found[key] = _Found(x, seconds, effort, fooled)
        return found

    def _adapt(self, support: Batch, of: str) -> State:
        started = self.now()
        with self.engine.seeded_for(f"adapt {of}", self.device):
            adapted = self.engine.adapt(self.theta, _copy(support))
        self.adapt_seconds += self.now() - started
        self.adapted_tasks += support.x.shape[0]
        return adapted

    def _logits(self, state: State, x: Tensor, of: str) -> Tensor:
        with self.engine.seeded_for(f"logits {of}", self.device):
            logits = self.engine.logits(state, x.clone())
        if not logits.isfinite().all():
            raise BenchError(f"learner '{self.engine.learner.name}' gave logits that are not finite")
        return logits

    def now(self) -> float:
        """Seconds on a clock, once the device has done what it was told."""
        wait(self.device)
        return time.perf_counter()


def swapped(support: Batch, found: Batch) -> Tensor:
    """The support images, the k-th of each class exchanged for the k-th found image of that class, if there is one."""
    same = support.y[:, :, None] == found.y[:, None, :]
    match = same & (_place(support.y)[:, :, None] == _place(found.y)[:, None, :])
    images = gathered(found.x, match.long().argmax(-1))
    return torch.where(match.any(-1).view(*support.y.shape, *(1,) * (support.x.dim() - 2)), images, support.x)


def _place(y: Tensor) -> Tensor:
    """Of each example, how many of its class are before it [tasks, n]."""
    return (y[:, :, None] == y[:, None, :]).tril(-1).sum(-1)


def _copy(batch: Batch) -> Batch:
    """For a plugin, which may write into it."""
    return Batch(batch.x.clone(), batch.y.clone())
