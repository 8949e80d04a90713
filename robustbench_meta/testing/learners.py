"""The contract of learners: of one task, and of the objective over all of them that they learn by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robustbench_meta.contracts import Update, Weights
from robustbench_meta.contracts.inner_loop import differentiable
from robustbench_meta.contracts.tasks import TaskBatch
from robustbench_meta.engine.attacked_model import PoisonedAdaptation
from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.preflight import may_be_vmapped
from robustbench_meta.runtime.seeds import seeded
from robustbench_meta.testing.adaptation import LOGITS, QUIET, REPEATS, RUNS, TOUCHES, AdaptationContract, detached
from robustbench_meta.testing.contract import Broken, as_broken, clause, expect
from robustbench_meta.testing.finite_differences import expect_slopes
from robustbench_meta.testing.fixtures import LOOP, VMAP, apart, at, vector
from robustbench_meta.testing.frozen_attack import FrozenAttack

_OBJECTIVE = "its objective gives a finite loss for each task"
_ALONE = "its objective depends on each task by itself"
_LEARNS = "meta-training changes θ, and keeps it finite"
_POISONED = "gives support poisoning the true gradient of the queries' loss"
STEPS = 3


class LearnerContract(AdaptationContract):
    """Of a learner: pure functions for one task, and an objective over all of them."""

    @clause("predicts the same under vmap, or is looped over", after=(QUIET, _OBJECTIVE))
    def maps(self) -> None:
        """The engine maps over tasks as is fastest."""
        engine, weights, tasks = self.world()
        if not weights or not may_be_vmapped(engine, weights, tasks):
            return
        try:
            share = apart(self.predictions(VMAP), self.predictions(LOOP))
        except Exception as error:
            raise as_broken(error, "under torch.func.vmap, ") from error
        expect(
            share <= 1e-3, f"logits under vmap are {share:.2g} of their size away from the loop's",
            "use plain operations of torch, and no state from call to call",
        )  # fmt: skip

    # ---- all tasks

    @clause(_OBJECTIVE, after=(RUNS, LOGITS))
    def objective_gives_losses(self) -> None:
        """A list of Update, each with a loss a task."""
        engine, weights, tasks = self.world()
        engine.set_mode(training=True)
        updates = self.plugin.objective(engine, engine.theta(weights), tasks)
        fits = isinstance(updates, list) and bool(updates) and all(isinstance(update, Update) for update in updates)
        expect(fits, f"objective returned {type(updates).__name__}", "return [Update(loss)], loss as ops.loss gives it")
        for update in updates:
            expect(
                tuple(update.loss.shape) == (tasks.tasks,),
                f"a loss has the shape {tuple(update.loss.shape)} for {tasks.tasks} tasks",
                "give one loss a task: the engine takes the mean",
            )
            expect(bool(update.loss.isfinite().all()), "a loss is NaN or infinite", "guard divisions and logarithms")

    @clause(_ALONE, after=(_OBJECTIVE, REPEATS))
    def objective_minds_each_task(self) -> None:
        """Tasks go through in chunks, whose size must not change a number. What draws in training is not asked."""
        engine, weights, tasks = self.world()
        engine.set_mode(training=True)
        engine.attack = FrozenAttack(engine.attack) if engine.attack else None
        whole = self._losses(engine, weights, tasks)
        other = self._losses(engine, weights, tasks, seed=1)
        if not all(torch.equal(one, again) for one, again in zip(whole, other, strict=True)):
            return
        for index in range(tasks.tasks):
            if isinstance(engine.attack, FrozenAttack):
                engine.attack.only = index
            one = self._losses(engine, weights, tasks.part(slice(index, index + 1)))
            for alone, among in zip(one, whole, strict=True):
                share = apart(alone, among[index : index + 1])
                expect(
                    share <= 1e-3, f"a task's loss changes by {share:.2g} of its size with the other tasks",
                    "let nothing run over the task axis: the engine gives a chunk of the tasks at a time",
                )  # fmt: skip

    def _losses(self, engine: Engine, weights: Weights, tasks: TaskBatch, seed: int = 0) -> list[Tensor]:
        engine.batch_seeds(range(tasks.tasks))
        drawing = seeded(seed) if seed else engine.drawing("objective", tasks.support.x.device)  # as meta_gradients do
        if isinstance(engine.attack, FrozenAttack):
            engine.attack.rewind()
        with torch.no_grad(), drawing:
            return [update.loss for update in self.plugin.objective(engine, engine.theta(weights), tasks)]

    @clause("its meta-gradient is the slope of its objective", after=(_LEARNS, _ALONE))
    def follows_the_slope(self) -> None:
        """Central differences in float64, attacked images held fixed, inner steps differentiable throughout.

        A learner written for one precision only is not asked.
        """
        exact = self._exact_world()
        if exact is None:
            return
        engine, weights, tasks = exact
        if not weights:
            return
        engine.set_mode(training=True)
        engine.attack = FrozenAttack(engine.attack) if engine.attack else None
        engine.plan = replace(engine.plan, chunk=tasks.tasks)
        with differentiable():
            gradients = [vector(gradient) for gradient, _ in engine.meta_gradients(weights, tasks, range(tasks.tasks))]
            expect_slopes(
                lambda point: self._losses(engine, at(point, weights), tasks), vector(weights), gradients,
                "the objective rises",
                "look for detach, .data, no_grad or in-place changes; if it is meant, leave this clause out",
            )  # fmt: skip

    @clause(_POISONED, after=(LOGITS, QUIET))
    def can_be_poisoned(self) -> None:
        """The gradient that support poisoning climbs, by central differences in float64.

        A learner written for one precision only is not asked.
        """
        exact = self._exact_world()
        if exact is None:
            return
        engine, weights, tasks = exact
        victim = PoisonedAdaptation(engine, detached(engine, weights), tasks.query)
        remedy = (
            "build inner steps on robustbench_meta.contracts.inner_loop.gradient_step, or do not detach under its "
            "differentiable(); where the derivative is zero or undefined, leave this clause out"
        )
        x, y = tasks.support.x.clone().requires_grad_(), tasks.support.y
        loss = victim.loss(x, y).sum()
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True) if loss.requires_grad else (None,)
        if gradient is None:
            raise Broken("after adaptation the loss of the queries has no gradient in the support images", remedy)
        with torch.no_grad():
            expect_slopes(
                lambda images: [victim.loss(images, y).sum()], x, [gradient],
                "of the support images the queries' loss rises", remedy,
            )  # fmt: skip

    def _exact_world(self) -> tuple[Engine, Weights, TaskBatch] | None:
        """The world in float64; None if the learner knows float32 only."""
        try:
            engine, weights, tasks = self.world(dtype=torch.float64)
            with torch.no_grad():
                self._one(engine, weights, tasks)
        except Exception:  # a plugin may raise anything
            return None
        return engine, weights, tasks

    @clause(_LEARNS, after=(_OBJECTIVE, TOUCHES))
    def learns(self) -> None:
        """A few meta-steps with its own optimiser and rate."""
        engine, weights, tasks = self.world()
        if not weights:
            return
        engine.set_mode(training=True)
        before = vector(weights)
        optimizer = self.plugin.make_optimizer(weights)
        for _ in range(STEPS):
            engine.judged = QueryMetrics()
            for gradients, _ in engine.meta_gradients(weights, tasks, range(tasks.tasks)):
                for name, weight in weights.items():
                    weight.grad = gradients[name]
                optimizer.step()
        after = vector(weights)
        expect(
            bool(after.isfinite().all()), "θ is NaN or infinite after a few meta-steps", "lower a rate, guard divisions"
        )
        expect(
            not torch.equal(before, after), f"θ is the same after {STEPS} meta-steps: no gradient reaches it",
            "let the losses depend on θ (look for detach, .data, no_grad), or let `init` return {}",
        )  # fmt: skip
