"""The contract of learners."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from robustbench_meta.contracts import Learner, Setting, Update, Weights
from robustbench_meta.engine import Engine, Plan
from robustbench_meta.errors import BenchError
from robustbench_meta.inner import differentiable
from robustbench_meta.models import State
from robustbench_meta.options import parse_choice
from robustbench_meta.selfcheck import may_be_vmapped
from robustbench_meta.sharing import Judged
from robustbench_meta.tasks import Batch, TaskBatch
from robustbench_meta.testing.contract import (
    Broken,
    Contract,
    clause,
    expect,
    first_accepted,
    raised,
    reason_or_none,
    seed_all,
)
from robustbench_meta.testing.worlds import LOOP, VMAP, apart, at, engine_of, settings, tasks_of, vector
from robustbench_meta.victims import PoisonedAdaptation

_NAMES = "names only plugins that there are"
_RUNS = "adapts and predicts in the settings that it does not refuse"
_TENSORS = "keeps its states in tensors"
_LOGITS = "gives finite logits in the shape [n, way]"
_TOUCHES = "leaves weights, states, support and queries as they are"
_QUIET = "predicts without noise"
_ALONE = "its objective depends on each task by itself"
_LEARNS = "meta-training changes θ, and keeps it finite"
_REPEATS = "gives the same again for the same seed, whatever came before"
_OBJECTIVE = "its objective gives a finite loss for each task"
_POISONED = "gives support poisoning the true gradient of the queries' loss"
_BACKBONES = ("mlp:width=8,depth=1", "conv4:width=8")
STEPS = 3


class LearnerContract(Contract):
    """Of a learner: pure functions for one task, and an objective over all of them."""

    kind = "learner"
    plugin: Learner

    # ---- the world that it is tried in

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
        on = backbone or self.backbone or _BACKBONES[0]
        engine, weights = engine_of(self.plugin, chosen, self.registry, backbone=on, plan=plan, dtype=dtype)
        return engine, weights, tasks_of(chosen, dtype=dtype)

    def predictions(self, plan: Plan = LOOP, **world: Any) -> Tensor:
        """Of freshly initialised θ, adapted."""
        engine, weights, tasks = self.world(plan=plan, **world)
        with torch.no_grad():
            return engine.logits(engine.adapt(_data(engine, weights), tasks.support), tasks.query.x)

    # ---- what it says

    @clause("can be pickled")
    def pickles(self) -> None:
        """It may be sent to another process."""
        again = pickle.loads(pickle.dumps(self.plugin))
        expect(again == self.plugin, f"it came back as {again!r}", "keep nothing but options in it")

    @clause("gives reasons, outputs and inner steps as the contract has them")
    def answers(self) -> None:
        """The answers of `obstacle`, `outputs`, `inner_steps`."""
        for transductive in (False, True):
            for setting in settings(transductive=transductive):
                reason_or_none(self.plugin.obstacle(setting), f"obstacle({setting})")
        outputs = self.plugin.outputs(5)
        whole = outputs is None or (isinstance(outputs, int) and outputs > 0)
        expect(whole, f"outputs(5) returned {outputs!r}", "return how many outputs, or None for features")
        for training in (True, False):
            steps = self.plugin.inner_steps(training)
            expect(
                isinstance(steps, int) and steps >= 0, f"inner_steps({training}) returned {steps!r}",
                "return how many times `adapt` is applied",
            )  # fmt: skip

    @clause(_NAMES)
    def names_what_there_is(self) -> None:
        """Its training attack and its surrogate's backbone can be made, as typed, and the ε be used."""
        attack, backbone = self.plugin.training_attack(), self.plugin.surrogate_backbone()
        for kind, text in (("attack", attack[0] if attack else None), ("backbone", backbone)):
            if text is None:
                continue
            try:
                choice = parse_choice(text, ";")
                options = {key: value for key, value in choice.options.items() if (kind, key) != ("attack", "eps")}
                made = self.registry.make(kind, choice.name, options)
            except BenchError as error:
                raise Broken(f"'{text}' cannot be made: {error}", "name it as one would type it, with ';'") from error
            if attack is not None and kind == "attack" and attack[1] is not None:
                refused = made.eps_obstacle(attack[1])
                expect(refused is None, f"'{text}' refuses eps {attack[1]}: {refused}", "name another eps, or None")

    # ---- one task

    @clause(_RUNS, after=(_NAMES,))
    def runs(self) -> None:
        """On fully connected and convolutional backbones, in training and at the test, 2-way and 5-way."""
        first = self.setting
        other = first._replace(way=7 - first.way)
        for setting in [first, *([other] if self.plugin.obstacle(other) is None else [])]:
            images = len(setting.shape) == 3
            for backbone in [self.backbone] if self.backbone else _BACKBONES[: 1 + images]:
                engine, weights, tasks = self.world(setting=setting, backbone=backbone)
                for training in (True, False):
                    engine.set_mode(training)
                    where = f"{setting.way}-way on {backbone}, "
                    try:
                        with torch.no_grad():
                            self._one(engine, weights, tasks)
                    except Broken:
                        raise
                    except Exception as error:
                        raise raised(error, where) from error

    def _one(self, engine: Engine, weights: Weights, tasks: TaskBatch) -> tuple[Any, Tensor]:
        """One task's adapted state and logits, without any mapping."""
        tree: Any = {name: weight.detach() for name, weight in weights.items()}
        for _ in range(self.plugin.inner_steps(engine.training)):
            tree = self.plugin.adapt(engine.network, tree, Batch(tasks.support.x[0], tasks.support.y[0]))
        return tree, self.plugin.logits(engine.network, tree, tasks.query.x[0])

    @clause(_TENSORS, after=(_RUNS,))
    def states_are_tensors(self) -> None:
        """θ is a dict of tensors, an adapted state any pytree of them."""
        engine, weights, tasks = self.world()
        for name, weight in weights.items():
            expect(isinstance(weight, Tensor), f"init gives θ['{name}'] as {type(weight).__name__}", "make it a tensor")
        tree, _ = self._one(engine, weights, tasks)
        for leaf in pytree.tree_leaves(tree):
            expect(
                isinstance(leaf, Tensor), f"the adapted state holds {leaf!r}, of type {type(leaf).__name__}",
                "keep tensors only (x.new_tensor(…)), in dicts, tuples or NamedTuples",
            )  # fmt: skip

    @clause(_LOGITS, after=(_RUNS, _TENSORS))
    def logits_have_their_shape(self) -> None:
        """Of one task."""
        engine, weights, tasks = self.world()
        _, logits = self._one(engine, weights, tasks)
        expected = (tasks.query.y.shape[1], self.setting.way)
        told = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        expect(told == expected, f"logits returned {told} for {expected[0]} queries", f"return {expected}: [n, way]")
        expect(bool(logits.isfinite().all()), "logits are NaN or infinite", "guard divisions, roots and logarithms")

    @clause("gives logits, not probabilities", after=(_LOGITS,))
    def logits_are_no_probabilities(self) -> None:
        """Cross-entropy takes the softmax itself, and attacks would see a flattened slope."""
        if self.setting.loss != "cross_entropy":
            return
        logits = self.predictions()
        sums = logits.sum(-1)
        probable = bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())
        expect(not probable, "each query's logits are positive and sum to 1", "return them as before the softmax")

    @clause(_TOUCHES, after=(_RUNS, _TENSORS))
    def touches_nothing(self) -> None:
        """`adapt` and `logits` are pure functions."""
        engine, weights, tasks = self.world()
        theta = {name: weight.detach().clone() for name, weight in weights.items()}
        support, x = Batch(tasks.support.x[0].clone(), tasks.support.y[0].clone()), tasks.query.x[0].clone()
        tree: Any = theta
        with torch.no_grad():
            for _ in range(max(self.plugin.inner_steps(training=False), 1)):
                given = {**_named(tree, "state"), "support.x": support.x, "support.y": support.y, **_module(engine)}
                tree = _unchanged("adapt", given, lambda tree=tree: self.plugin.adapt(engine.network, tree, support))  # type: ignore[misc]  # a default argument binds it
            given = {**_named(tree, "state"), "x": x, **_module(engine)}
            _unchanged("logits", given, lambda: self.plugin.logits(engine.network, tree, x))

    @clause(_REPEATS, after=(_RUNS, _LOGITS, _TOUCHES))
    def repeats(self) -> None:
        """Nothing is kept from call to call: other tasks between two calls change nothing."""
        engine, weights, tasks = self.world()
        found = []
        for turn in range(2):
            seed_all(0)
            with torch.no_grad():
                adapted = engine.adapt(_data(engine, weights), tasks.support)
                found.append(engine.logits(adapted, tasks.query.x))
                if turn == 0:
                    other = tasks_of(self.setting, seed=1)
                    engine.logits(engine.adapt(_data(engine, weights), other.support), other.query.x)
        expect(
            apart(*found) <= 1e-6, f"logits differ by {apart(*found):.2g} of their size between equal calls",
            "let `adapt` and `logits` depend on their arguments alone, and draw from torch's generator if at all",
        )  # fmt: skip

    @clause(_QUIET, after=(_REPEATS,))
    def is_quiet(self) -> None:
        """In evaluation mode: a prediction that varies cannot be attacked, nor counted, twice alike."""
        found = []
        for seed in (0, 1):
            seed_all(seed)
            found.append(self.predictions())
        expect(
            apart(*found) <= 1e-6, f"logits of identical calls vary by {apart(*found):.2g} of their size",
            "draw nothing at the test (dropout follows the module's mode), or fix what is drawn in the state",
        )  # fmt: skip

    @clause("answers each query by itself, or declares transductive", after=(_QUIET,))
    def minds_each_query(self) -> None:
        """Alone, in another order, and with another neighbour."""
        if self.plugin.transductive:
            return
        engine, weights, tasks = self.world()
        x = tasks.query.x
        order = torch.arange(x.shape[1]).flip(0)
        neighbour = torch.cat([x[:, :1], 1 - x[:, 1:]], dim=1)
        with torch.no_grad():
            adapted = engine.adapt(_data(engine, weights), tasks.support)
            whole = engine.logits(adapted, x)
            alone = torch.cat([engine.logits(adapted, one) for one in torch.split(x, 1, dim=1)], dim=1)
            moved = engine.logits(adapted, x[:, order])[:, order]
            beside = engine.logits(adapted, neighbour)[:, 0]
        for found, expected, how in (
            (alone, whole, "when it is asked alone"), (moved, whole, "with the order of the queries"),
            (beside, whole[:, 0], "when its neighbours change"),
        ):  # fmt: skip
            share = apart(found, expected) if found.shape == expected.shape else math.inf
            expect(
                share <= 1e-3, f"a query's logits change by {share:.2g} of their size {how}",
                "let nothing run over the queries, or declare `transductive = True`",
            )  # fmt: skip

    @clause("predicts from θ alone, or declares theta_predicts = False", after=(_LOGITS,))
    def theta_predicts(self) -> None:
        """Attacks on the support set are made on θ."""
        if not self.plugin.theta_predicts:
            return
        engine, weights, tasks = self.world()
        remedy = "declare theta_predicts = False: the support is then attacked through an adapted state"
        try:
            with torch.no_grad():
                logits = engine.logits(_data(engine, weights), tasks.query.x)
        except Exception as error:
            raise Broken(raised(error, "on θ, ").seen, remedy) from error
        expected = (*tasks.query.y.shape, self.setting.way)
        expect(
            tuple(logits.shape) == expected and bool(logits.isfinite().all()),
            f"on θ, logits are {tuple(logits.shape)}, or not finite; expected finite {expected}", remedy,
        )  # fmt: skip

    @clause("predicts the same under vmap, or is looped over", after=(_QUIET, _OBJECTIVE))
    def maps(self) -> None:
        """The engine maps over tasks as is fastest."""
        engine, weights, tasks = self.world()
        if not weights or not may_be_vmapped(engine, weights, tasks):
            return
        try:
            share = apart(self.predictions(VMAP), self.predictions(LOOP))
        except Exception as error:
            raise raised(error, "under torch.func.vmap, ") from error
        expect(
            share <= 1e-3, f"logits under vmap are {share:.2g} of their size away from the loop's",
            "use plain operations of torch, and no state from call to call",
        )  # fmt: skip

    # ---- all tasks

    @clause(_OBJECTIVE, after=(_RUNS, _LOGITS))
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

    @clause(_ALONE, after=(_OBJECTIVE, _REPEATS))
    def objective_minds_each_task(self) -> None:
        """Tasks go through in chunks, whose size must not change a number. What draws in training is not asked."""
        engine, weights, tasks = self.world()
        engine.set_mode(training=True)
        engine.attack = _Held(engine.attack) if engine.attack else None
        whole = self._losses(engine, weights, tasks)
        other = self._losses(engine, weights, tasks, seed=1)
        if not all(torch.equal(one, again) for one, again in zip(whole, other, strict=True)):
            return
        for index in range(tasks.tasks):
            if isinstance(engine.attack, _Held):
                engine.attack.only = index
            one = self._losses(engine, weights, tasks.part(slice(index, index + 1)))
            for alone, among in zip(one, whole, strict=True):
                share = apart(alone, among[index : index + 1])
                expect(
                    share <= 1e-3, f"a task's loss changes by {share:.2g} of its size with the other tasks",
                    "let nothing run over the task axis: the engine gives a chunk of the tasks at a time",
                )  # fmt: skip

    def _losses(self, engine: Engine, weights: Weights, tasks: TaskBatch, seed: int = 0) -> list[Tensor]:
        seed_all(seed)
        engine.batch_seeds(range(tasks.tasks))
        if isinstance(engine.attack, _Held):
            engine.attack.rewind()
        with torch.no_grad():
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
        engine.attack = _Held(engine.attack) if engine.attack else None
        engine.plan = replace(engine.plan, chunk=tasks.tasks)
        with differentiable():
            seed_all(0)
            gradients = [vector(gradient) for gradient, _ in engine.meta_gradients(weights, tasks, range(tasks.tasks))]
            start, step = vector(weights), 1e-7
            for seed in range(2):
                draw = torch.Generator().manual_seed(seed)
                direction = torch.randn(start.shape, generator=draw, dtype=start.dtype)
                above, below = (
                    self._losses(engine, at(start + side * step * direction, weights), tasks) for side in (1, -1)
                )
                for gradient, high, low in zip(gradients, above, below, strict=True):
                    slope = float((high - low).mean()) / (2 * step)
                    found = float(gradient @ direction)
                    expect(
                        abs(found - slope) <= 1e-4 * abs(slope) + 1e-6,
                        f"along a random direction the objective rises by {slope:.6g}, by its gradient {found:.6g}",
                        "look for detach, .data, no_grad or in-place changes; if it is meant, leave this clause out",
                    )

    @clause(_POISONED, after=(_LOGITS, _QUIET))
    def can_be_poisoned(self) -> None:
        """The gradient that support poisoning climbs, by central differences in float64.

        A learner written for one precision only is not asked.
        """
        exact = self._exact_world()
        if exact is None:
            return
        engine, weights, tasks = exact
        victim = PoisonedAdaptation(engine, _data(engine, weights), tasks.query)
        remedy = (
            "build inner steps on robustbench_meta.inner.gradient_step, or do not detach under inner.differentiable(); "
            "where the derivative is zero or undefined, leave this clause out"
        )
        x, y = tasks.support.x.clone().requires_grad_(), tasks.support.y
        loss = victim.loss(x, y).sum()
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True) if loss.requires_grad else (None,)
        if gradient is None:
            raise Broken("after adaptation the loss of the queries has no gradient in the support images", remedy)
        step = 1e-7
        for seed in range(2):
            draw = torch.Generator().manual_seed(seed)
            direction = torch.randn(x.shape, generator=draw, dtype=x.dtype)
            with torch.no_grad():
                above, below = (victim.loss(x + side * step * direction, y).sum() for side in (1, -1))
            slope, found = float(above - below) / (2 * step), float((gradient * direction).sum())
            expect(
                abs(found - slope) <= 1e-4 * abs(slope) + 1e-6,
                f"along a random direction of the support images the queries' loss rises by {slope:.6g}, by its "
                f"gradient {found:.6g}", remedy,
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

    @clause(_LEARNS, after=(_OBJECTIVE, _TOUCHES))
    def learns(self) -> None:
        """A few meta-steps with its own optimiser and rate."""
        engine, weights, tasks = self.world()
        if not weights:
            return
        engine.set_mode(training=True)
        before = vector(weights)
        make = torch.optim.Adam if self.plugin.optimizer == "adam" else torch.optim.SGD
        optimizer = make(list(weights.values()), lr=self.plugin.meta_lr)
        for _ in range(STEPS):
            engine.judged = Judged()
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


class _Held:
    """A training attack whose images are computed once and held: they are data, not a function of θ."""

    def __init__(self, attack: Callable[..., Tensor]) -> None:
        self._attack = attack
        self._images: list[Tensor] = []
        self._calls: Iterator[Tensor] = iter(())
        self._filled = False
        self.only: int | None = None

    def rewind(self) -> None:
        """The next call is the first one of an objective."""
        self._filled = bool(self._images)
        self._calls = iter(self._images)

    def __call__(self, model: Any, x: Tensor, y: Tensor, random: Any, start: Tensor | None = None) -> Tensor:
        """What the attack found when it was first called in this place."""
        if self._filled:
            images = next(self._calls)
            return images if self.only is None else images[self.only : self.only + 1]
        self._images.append(self._attack(model, x, y, random, start))
        return self._images[-1]


def _data(engine: Engine, weights: Weights) -> State:
    return engine.theta({name: weight.detach() for name, weight in weights.items()})


def _named(tree: Any, what: str) -> dict[str, Tensor]:
    return {f"{what}, tensor {place}": leaf for place, leaf in enumerate(pytree.tree_leaves(tree))}


def _module(engine: Engine) -> dict[str, Tensor]:
    module = engine.network.module
    return dict([*module.named_parameters(), *module.named_buffers()])


def _unchanged(what: str, given: dict[str, Tensor], call: Callable[[], Any]) -> Any:
    """What the call returns; Broken if it changes a tensor that it was given."""
    before = {name: (tensor.detach().clone(), tensor._version) for name, tensor in given.items()}
    returned = call()
    for name, (value, version) in before.items():
        same = given[name]._version == version and torch.equal(given[name].detach(), value)
        expect(same, f"{what} changed {name} in place", "compute new tensors (x = x + …, not x += …)")
    return returned
