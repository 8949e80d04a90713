"""The contract of learners: pure functions for one task, and an objective over all tasks that they learn by."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from robustbench_meta.contracts import AnyLearner, Random, Setting, Toward, Update, Weights
from robustbench_meta.contracts.inner_loop import differentiable
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.engine.attacked_model import Perturbation, PoisonedAdaptation, Target
from robustbench_meta.engine.batch_dependence import MATES, influence_of_mates
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.preflight import may_be_vmapped
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.options import parse_choice
from robustbench_meta.runtime.seeds import seed_all, seeded
from robustbench_meta.runtime.tensor_snapshot import Snapshot
from robustbench_meta.testing.contract import Broken, Contract, clause, expect, expect_reasons, first_accepted, works
from robustbench_meta.testing.fixtures import LOOP, all_settings, apart, engine_of, equal_calls, tasks_of

_BACKBONES = ("mlp:width=8,depth=1", "conv4:width=8")
_STEPS = 3
_DIFFERENCE = 1e-7
"""Of central differences in float64."""


class FrozenAttack:
    """A training attack whose images are computed once, so that an objective is a function of θ alone."""

    def __init__(self, attack: Perturbation) -> None:
        self._attack = attack
        self._images: list[Tensor] = []
        self._calls: Iterator[Tensor] | None = None
        self.only: int | None = None

    def rewind(self) -> None:
        """The next call is the first one of an objective."""
        self._calls = iter(self._images) if self._images else None

    def __call__(self, model: Target, x: Tensor, y: Tensor, random: Random, start: Tensor | None = None) -> Tensor:
        """The images of the first such call."""
        if self._calls is None:
            self._images.append(self._attack(model, x, y, random, start))
            return self._images[-1]
        images = next(self._calls)
        return images if self.only is None else images[self.only : self.only + 1]


class LearnerContract(Contract):
    """Of a learner: pure functions for one task, and an objective over all of them."""

    kind = "learner"
    plugin: AnyLearner

    @cached_property
    def setting(self) -> Setting:
        """The first setting that the learner does not refuse."""
        return first_accepted(self.plugin.obstacle, transductive=self.plugin.transductive)

    def world(
        self, *, plan: Plan = LOOP, dtype: torch.dtype = torch.float32, setting: Setting | None = None,
        backbone: str | None = None,
    ) -> tuple[Engine, Weights, TaskBatch]:  # fmt: skip
        """An engine in evaluation mode, θ and tasks."""
        chosen = setting or self.setting
        net = backbone or self.backbones[0]
        engine, weights = engine_of(self.plugin, chosen, self.registry, backbone=net, plan=plan, dtype=dtype)
        return engine, weights, tasks_of(chosen, dtype=dtype)

    def exact_world(self) -> tuple[Engine, Weights, TaskBatch] | None:
        """The world in float64; None if the learner works in one other precision only."""
        try:
            engine, weights, tasks = self.world(dtype=torch.float64)
            self.one_task(engine, weights, tasks)
        except Exception:  # a plugin may raise anything
            return None
        return engine, weights, tasks

    def numbered(self, step: int) -> dict[str, int]:
        """The number of an inner step, for an `adapt` that wants it."""
        return {"step": step} if self.plugin.takes_step else {}

    @cached_property
    def backbones(self) -> list[str]:
        """The usual ones on which `init` does not refuse to begin, or the one that was named."""
        if self.backbone:
            return [self.backbone]
        usable = []
        for name in _BACKBONES[: 1 + (len(self.setting.shape) == 3)]:
            try:
                engine_of(self.plugin, self.setting, self.registry, backbone=name)
            except PluginError:
                continue
            usable.append(name)
        return usable or [_BACKBONES[0]]

    def predictions(self, plan: Plan = LOOP) -> Tensor:
        """Of freshly initialised θ, adapted."""
        engine, weights, tasks = self.world(plan=plan)
        with torch.no_grad():
            return engine.logits(engine.adapt(_theta(engine, weights), tasks.support), tasks.query.x)

    @torch.no_grad()
    def one_task(self, engine: Engine, weights: Weights, tasks: TaskBatch) -> tuple[Any, Tensor]:
        """One task's adapted state and logits, without any mapping."""
        tree: Any = {name: weight.detach() for name, weight in weights.items()}
        support = Batch(tasks.support.x[0], tasks.support.y[0])
        for step in range(self.plugin.inner_steps(engine.training)):
            tree = self.plugin.adapt(engine.network, tree, support, **self.numbered(step))
        return tree, self.plugin.logits(engine.network, tree, tasks.query.x[0])

    # ---- what it says

    @clause()
    def pickles(self) -> None:
        """Can be pickled"""
        again = pickle.loads(pickle.dumps(self.plugin))
        expect(again == self.plugin, f"it came back as {again!r}", "keep nothing but options in it")

    @clause()
    def answers(self) -> None:
        """Gives reasons, outputs and inner steps as the contract has them"""
        expect_reasons(self.plugin.obstacle, all_settings())
        outputs = self.plugin.outputs(self.setting)
        fits = outputs is None or (isinstance(outputs, int) and outputs > 0)
        expect(fits, f"outputs({self.setting}) returned {outputs!r}", "return how many outputs, or None for features")
        for training in (True, False):
            steps, remedy = self.plugin.inner_steps(training), "return how many times `adapt` is applied"
            expect(isinstance(steps, int) and steps >= 0, f"inner_steps({training}) returned {steps!r}", remedy)

    @clause()
    def names_what_there_is(self) -> None:
        """Names only plugins that there are"""
        attack = self.plugin.training_attack()
        text, eps = attack or (None, None)
        for kind, typed in (("attack", text), ("backbone", self.plugin.surrogate_backbone())):
            if typed is None:
                continue
            try:
                choice = parse_choice(typed, ";")
                options = {key: value for key, value in choice.options.items() if (kind, key) != ("attack", "eps")}
                made = self.registry.make(kind, choice.name, options)
            except BenchError as error:
                raise Broken(f"'{typed}' cannot be made: {error}", "name it as one would type it, with ';'") from error
            if kind == "attack" and eps is not None:
                reason = made.eps_obstacle(eps)
                expect(reason is None, f"'{typed}' refuses eps {eps}: {reason}", "name another eps, or None")

    # ---- one task

    @clause(after=(names_what_there_is,))
    def runs(self) -> None:
        """Adapts and predicts in the settings that it does not refuse"""
        first = self.setting
        other = first._replace(way=7 - first.way)
        for setting in [first, *([other] if self.plugin.obstacle(other) is None else [])]:
            for backbone in self.backbones:
                engine, weights, tasks = self.world(setting=setting, backbone=backbone)
                for training in (True, False):
                    engine.set_mode(training)
                    with works(f"{setting.way}-way on {backbone}, "):
                        self.one_task(engine, weights, tasks)

    @clause(after=(runs,))
    def states_are_tensors(self) -> None:
        """Keeps its states in tensors"""
        engine, weights, tasks = self.world()
        for name, weight in weights.items():
            expect(isinstance(weight, Tensor), f"init gives θ['{name}'] as {type(weight).__name__}", "make it a tensor")
        remedy = "keep tensors only (x.new_tensor(…)), in dicts, tuples or NamedTuples"
        for leaf in pytree.tree_leaves(self.one_task(engine, weights, tasks)[0]):
            seen = f"the adapted state holds {leaf!r}, of type {type(leaf).__name__}"
            expect(isinstance(leaf, Tensor), seen, remedy)

    @clause(after=(runs, states_are_tensors))
    def logits_have_their_shape(self) -> None:
        """Gives finite logits in the shape [n, way]"""
        engine, weights, tasks = self.world()
        _, logits = self.one_task(engine, weights, tasks)
        expected = (tasks.query.y.shape[1], self.setting.way)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        expect(shape == expected, f"logits returned {shape} for {expected[0]} queries", f"return {expected}: [n, way]")
        expect(bool(logits.isfinite().all()), "logits are NaN or infinite", "guard divisions, roots and logarithms")

    @clause(after=(logits_have_their_shape,))
    def logits_are_no_probabilities(self) -> None:
        """Gives logits, not probabilities"""
        if self.setting.loss != "cross_entropy":
            return
        logits = self.predictions()
        probable = bool((logits >= 0).all()) and bool(((logits.sum(-1) - 1).abs() < 1e-4).all())
        expect(not probable, "each query's logits are positive and sum to 1", "return them as before the softmax")

    @clause(after=(runs, states_are_tensors))
    def touches_nothing(self) -> None:
        """Leaves weights, states, support and queries as they are"""
        engine, weights, tasks = self.world()
        support, x = Batch(tasks.support.x[0].clone(), tasks.support.y[0].clone()), tasks.query.x[0].clone()
        module = dict([*engine.network.module.named_parameters(), *engine.network.module.named_buffers()])
        tree: Any = {name: weight.detach().clone() for name, weight in weights.items()}

        def unchanged(what: str, call: Callable[[], Any], inputs: dict[str, Tensor]) -> Any:
            state = {f"state, tensor {place}": leaf for place, leaf in enumerate(pytree.tree_leaves(tree))}
            before = Snapshot({**state, **inputs, **module})
            returned = call()
            changed = ", ".join(before.written())
            expect(not changed, f"{what} changed {changed} in place", "compute new tensors (x = x + …, not x += …)")
            return returned

        with torch.no_grad():
            for step in range(max(self.plugin.inner_steps(training=False), 1)):
                adapt = partial(self.plugin.adapt, engine.network, tree, support, **self.numbered(step))
                tree = unchanged("adapt", adapt, {"support.x": support.x, "support.y": support.y})
            unchanged("logits", partial(self.plugin.logits, engine.network, tree, x), {"x": x})

    @clause(after=(runs, logits_have_their_shape, touches_nothing))
    def repeats(self) -> None:
        """Gives the same again for the same seed, whatever came before"""
        engine, weights, tasks = self.world()
        results = []
        for between in (tasks, tasks_of(self.setting, seed=1), tasks):
            seed_all(0)
            with torch.no_grad():
                adapted = engine.adapt(_theta(engine, weights), between.support)
                results.append(engine.logits(adapted, between.query.x))
        share = apart(results[0], results[2])
        expect(
            share <= 1e-6, f"logits differ by {share:.2g} of their size between equal calls",
            "let `adapt` and `logits` depend on their arguments alone, and draw from torch's generator if at all",
        )  # fmt: skip

    @clause(after=(states_are_tensors,))
    def init_is_seeded(self) -> None:
        """Gives the same θ from the same seed"""
        (_, first, _), (_, second, _) = self.world(), self.world()
        differ = [name for name in first if name not in second or not torch.equal(first[name], second[name])]
        expect(
            not differ, f"init gives another θ from the same seed: {', '.join(differ[:3])}",
            "draw in `init` from torch's, numpy's or Python's global generator, not from one that the clock seeds",
        )  # fmt: skip

    @clause(after=(repeats, init_is_seeded))
    def is_quiet(self) -> None:
        """Predicts without noise"""
        share = equal_calls(self.predictions)
        remedy = "draw nothing at the test (dropout follows the module's mode), or fix what is drawn in the state"
        expect(share <= 1e-6, f"logits of identical calls vary by {share:.2g} of their size", remedy)

    @clause(after=(is_quiet,))
    def minds_each_query(self) -> None:
        """Answers each query by itself, or declares transductive"""
        if self.plugin.transductive:
            return
        engine, weights, tasks = self.world()
        if engine.transductive:  # the backbone is
            return
        with torch.no_grad():
            logits = partial(engine.logits, engine.adapt(_theta(engine, weights), tasks.support))
            influence = influence_of_mates(logits, tasks.query.x, logits(tasks.query.x))
        for how, share in influence.items():
            remedy = "let nothing run over the queries, or declare `transductive = True`"
            expect(share <= MATES["float32"], f"a query's logits change by {share:.2g} of their size {how}", remedy)

    @clause(after=(logits_have_their_shape,))
    def theta_predicts(self) -> None:
        """Predicts from θ alone, or declares theta_predicts = False"""
        if not self.plugin.theta_predicts:
            return
        engine, weights, tasks = self.world()
        remedy = "declare theta_predicts = False: the support is then attacked through an adapted state"
        with works("on θ, ", remedy), torch.no_grad():
            logits = engine.logits(_theta(engine, weights), tasks.query.x)
        expected = (*tasks.query.y.shape, self.setting.way)
        expect(
            tuple(logits.shape) == expected and bool(logits.isfinite().all()),
            f"on θ, logits are {tuple(logits.shape)}, or not finite; expected finite {expected}", remedy,
        )  # fmt: skip

    # ---- all tasks

    @clause(after=(runs, logits_have_their_shape))
    def objective_gives_losses(self) -> None:
        """Its objective gives a finite loss for each task"""
        engine, weights, tasks = self.world()
        engine.set_mode(training=True)
        updates = self.plugin.objective(engine, engine.theta(weights), tasks)
        kinds = (Update, Toward)
        fits = isinstance(updates, list) and bool(updates) and all(isinstance(update, kinds) for update in updates)
        expect(fits, f"objective returned {type(updates).__name__}", "return [Update(loss)], loss as ops.loss gives it")
        losses = [update.loss for update in updates if isinstance(update, Update)]
        for shape, loss in ((tuple(loss.shape), loss) for loss in losses):
            seen = f"a loss has the shape {shape} for {tasks.tasks} tasks"
            expect(shape == (tasks.tasks,), seen, "give one loss a task: the engine takes the mean")
            expect(bool(loss.isfinite().all()), "a loss is NaN or infinite", "guard divisions and logarithms")

    @clause(after=(is_quiet, objective_gives_losses))
    def maps(self) -> None:
        """Predicts the same under vmap, or is looped over"""
        engine, weights, tasks = self.world()
        if not weights or not may_be_vmapped(engine, weights, tasks):
            return
        with works("under torch.func.vmap, "):
            share = apart(self.predictions(Plan("vmap", "vmap", 4)), self.predictions())
        seen = f"logits under vmap are {share:.2g} of their size away from the loop's"
        expect(share <= 1e-3, seen, "use plain operations of torch, and no state from call to call")

    @clause(after=(objective_gives_losses, repeats))
    def objective_minds_each_task(self) -> None:
        """Its objective depends on each task by itself"""
        engine, weights, tasks = self.world()
        _freeze(engine)
        together = self._losses(engine, weights, tasks)
        other = self._losses(engine, weights, tasks, seed=1)
        if not all(torch.equal(one, again) for one, again in zip(together, other, strict=True)):
            return  # it draws in training
        for index in range(tasks.tasks):
            if isinstance(engine.attack, FrozenAttack):
                engine.attack.only = index
            losses = self._losses(engine, weights, tasks.part(slice(index, index + 1)))
            for alone, among in zip(losses, together, strict=True):
                share = apart(alone, among[index : index + 1])
                expect(
                    share <= 1e-3, f"a task's loss changes by {share:.2g} of its size with the other tasks",
                    "let nothing run over the task axis: the engine gives a chunk of the tasks at a time",
                )  # fmt: skip

    def _losses(self, engine: Engine, weights: Weights, tasks: TaskBatch, seed: int = 0) -> list[Tensor]:
        engine.set_task_seeds(range(tasks.tasks))
        device = tasks.support.x.device
        seeding = seeded(seed) if seed else engine.seeded_for("objective", device)  # as meta_gradients do
        if isinstance(engine.attack, FrozenAttack):
            engine.attack.rewind()
        with torch.no_grad(), seeding:
            updates = self.plugin.objective(engine, engine.theta(weights), tasks)
        return [update.loss for update in updates if isinstance(update, Update)]

    @clause(after=(objective_gives_losses, touches_nothing))
    def learns(self) -> None:
        """Meta-training changes θ, and keeps it finite"""
        engine, weights, tasks = self.world()
        if not weights:
            return
        engine.set_mode(training=True)
        before = _vector(weights)
        optimizer = self.plugin.make_optimizer(weights)
        for _ in range(_STEPS):
            engine.judged = QueryMetrics()
            for gradients, _ in engine.meta_gradients(weights, tasks, range(tasks.tasks)):
                for name, weight in weights.items():
                    weight.grad = gradients[name]
                optimizer.step()
        after, remedy = _vector(weights), "lower a rate, guard divisions"
        expect(bool(after.isfinite().all()), "θ is NaN or infinite after a few meta-steps", remedy)
        expect(
            not torch.equal(before, after), f"θ is the same after {_STEPS} meta-steps: no gradient reaches it",
            "let the losses depend on θ (look for detach, .data, no_grad), or let `init` return {}",
        )  # fmt: skip

    @clause(after=(learns, objective_minds_each_task))
    def follows_the_slope(self) -> None:
        """Its meta-gradient is the slope of its objective

        Attacked images are fixed, and inner steps differentiable throughout.
        """
        world = self.exact_world()
        if world is None or not world[1]:
            return
        engine, weights, tasks = world
        _freeze(engine)
        if not self._losses(engine, weights, tasks):  # it moves towards adapted weights
            return
        engine.plan = replace(engine.plan, chunk=tasks.tasks)

        def losses(point: Tensor) -> list[Tensor]:
            parts = torch.split(point, [weight.numel() for weight in weights.values()])
            moved = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
            return self._losses(engine, moved, tasks)

        with differentiable():
            gradients = [_vector(gradient) for gradient, _ in engine.meta_gradients(weights, tasks, range(tasks.tasks))]
            _expect_slopes(
                losses, _vector(weights), gradients, "the objective rises",
                "look for detach, .data, no_grad or in-place changes; if it is meant, leave this clause out",
            )  # fmt: skip

    @clause(after=(logits_have_their_shape, is_quiet))
    def can_be_poisoned(self) -> None:
        """Gives support poisoning the true gradient of the queries' loss"""
        world = self.exact_world()
        if world is None:
            return
        engine, weights, tasks = world
        victim = PoisonedAdaptation(engine, _theta(engine, weights), tasks.query)
        remedy = (
            "build inner steps on robustbench_meta.contracts.inner_loop.gradient_step, or do not detach under its "
            "differentiable(); where the derivative is zero or undefined, leave this clause out"
        )
        x, y = tasks.support.x.clone().requires_grad_(), tasks.support.y
        loss = victim.loss(x, y).sum()
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True) if loss.requires_grad else (None,)
        if gradient is None:
            raise Broken("after adaptation the loss of the queries has no gradient in the support images", remedy)
        rises = "of the support images the queries' loss rises"
        with torch.no_grad():
            _expect_slopes(lambda images: [victim.loss(images, y).sum()], x, [gradient], rises, remedy)


def _theta(engine: Engine, weights: Weights) -> State:
    return engine.theta({name: weight.detach() for name, weight in weights.items()})


def _freeze(engine: Engine) -> None:
    """Set an engine to training mode, with its attack frozen."""
    engine.set_mode(training=True)
    engine.attack = FrozenAttack(engine.attack) if engine.attack else None


def _vector(weights: Weights) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in weights.values()])


def _expect_slopes(
    function: Callable[[Tensor], Sequence[Tensor]], point: Tensor, gradients: Sequence[Tensor], rises: str, remedy: str
) -> None:
    """Raise Broken unless the gradients of the means of a function's values are its slopes in random directions."""
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        direction = torch.randn(point.shape, generator=draw, dtype=point.dtype)
        above, below = (function(point + side * _DIFFERENCE * direction) for side in (1, -1))
        for gradient, high, low in zip(gradients, above, below, strict=True):
            slope, computed = float((high - low).mean()) / (2 * _DIFFERENCE), float((gradient * direction).sum())
            expect(
                abs(computed - slope) <= 1e-4 * abs(slope) + 1e-6,
                f"along a random direction {rises} by {slope:.6g}, by its gradient {computed:.6g}", remedy,
            )  # fmt: skip
