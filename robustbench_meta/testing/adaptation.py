"""The contract of learners, for one task: how they adapt to it and predict."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from robustbench_meta.contracts import AnyLearner, Setting, Weights
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.errors import BenchError
from robustbench_meta.options import parse_choice
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.runtime.tensor_snapshot import Snapshot
from robustbench_meta.testing.contract import (
    Broken,
    Contract,
    as_broken,
    clause,
    expect,
    first_accepted,
    reason_or_none,
)
from robustbench_meta.testing.fixtures import LOOP, apart, engine_of, settings, tasks_of
from robustbench_meta.testing.stability import expect_no_mates, expect_quiet

RUNS = "adapts and predicts in the settings that it does not refuse"
LOGITS = "gives finite logits in the shape [n, way]"
TOUCHES = "leaves weights, states, support and queries as they are"
REPEATS = "gives the same again for the same seed, whatever came before"
QUIET = "predicts without noise"
_SEEDED = "gives the same θ from the same seed"
_NAMES = "names only plugins that there are"
_TENSORS = "keeps its states in tensors"
_BACKBONES = ("mlp:width=8,depth=1", "conv4:width=8")


class AdaptationContract(Contract):
    """Of a learner: what it says of itself, and pure functions for one task."""

    kind = "learner"
    plugin: AnyLearner

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
            return engine.logits(engine.adapt(detached(engine, weights), tasks.support), tasks.query.x)

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
        setting = next(settings(transductive=False))
        outputs = self.plugin.outputs(setting)
        whole = outputs is None or (isinstance(outputs, int) and outputs > 0)
        expect(whole, f"outputs({setting}) returned {outputs!r}", "return how many outputs, or None for features")
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

    @clause(RUNS, after=(_NAMES,))
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
                        raise as_broken(error, where) from error

    def _one(self, engine: Engine, weights: Weights, tasks: TaskBatch) -> tuple[Any, Tensor]:
        """One task's adapted state and logits, without any mapping."""
        tree: Any = {name: weight.detach() for name, weight in weights.items()}
        for _ in range(self.plugin.inner_steps(engine.training)):
            tree = self.plugin.adapt(engine.network, tree, Batch(tasks.support.x[0], tasks.support.y[0]))
        return tree, self.plugin.logits(engine.network, tree, tasks.query.x[0])

    @clause(_TENSORS, after=(RUNS,))
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

    @clause(LOGITS, after=(RUNS, _TENSORS))
    def logits_have_their_shape(self) -> None:
        """Of one task."""
        engine, weights, tasks = self.world()
        _, logits = self._one(engine, weights, tasks)
        expected = (tasks.query.y.shape[1], self.setting.way)
        told = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        expect(told == expected, f"logits returned {told} for {expected[0]} queries", f"return {expected}: [n, way]")
        expect(bool(logits.isfinite().all()), "logits are NaN or infinite", "guard divisions, roots and logarithms")

    @clause("gives logits, not probabilities", after=(LOGITS,))
    def logits_are_no_probabilities(self) -> None:
        """Cross-entropy takes the softmax itself, and attacks would see a flattened slope."""
        if self.setting.loss != "cross_entropy":
            return
        logits = self.predictions()
        sums = logits.sum(-1)
        probable = bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())
        expect(not probable, "each query's logits are positive and sum to 1", "return them as before the softmax")

    @clause(TOUCHES, after=(RUNS, _TENSORS))
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

    @clause(REPEATS, after=(RUNS, LOGITS, TOUCHES))
    def repeats(self) -> None:
        """Nothing is kept from call to call: other tasks between two calls change nothing."""
        engine, weights, tasks = self.world()
        found = []
        for turn in range(2):
            seed_all(0)
            with torch.no_grad():
                adapted = engine.adapt(detached(engine, weights), tasks.support)
                found.append(engine.logits(adapted, tasks.query.x))
                if turn == 0:
                    other = tasks_of(self.setting, seed=1)
                    engine.logits(engine.adapt(detached(engine, weights), other.support), other.query.x)
        expect(
            apart(*found) <= 1e-6, f"logits differ by {apart(*found):.2g} of their size between equal calls",
            "let `adapt` and `logits` depend on their arguments alone, and draw from torch's generator if at all",
        )  # fmt: skip

    @clause(_SEEDED, after=(_TENSORS,))
    def init_is_seeded(self) -> None:
        """A run seeds the global generators of torch, numpy and Python before it calls `init`."""
        (_, first, _), (_, second, _) = self.world(), self.world()
        differ = [name for name in first if name not in second or not torch.equal(first[name], second[name])]
        expect(
            not differ, f"init gives another θ from the same seed: {', '.join(differ[:3])}",
            "draw in `init` from torch's, numpy's or Python's global generator, not from one that the clock seeds",
        )  # fmt: skip

    @clause(QUIET, after=(REPEATS, _SEEDED))
    def is_quiet(self) -> None:
        """In evaluation mode: a prediction that varies cannot be attacked, nor counted, twice alike."""
        remedy = "draw nothing at the test (dropout follows the module's mode), or fix what is drawn in the state"
        expect_quiet(self.predictions, "logits", remedy)

    @clause("answers each query by itself, or declares transductive", after=(QUIET,))
    def minds_each_query(self) -> None:
        """Alone, in another order, and with another neighbour."""
        if self.plugin.transductive:
            return
        engine, weights, tasks = self.world()
        remedy = "let nothing run over the queries, or declare `transductive = True`"
        with torch.no_grad():
            adapted = engine.adapt(detached(engine, weights), tasks.support)
            expect_no_mates(partial(engine.logits, adapted), tasks.query.x, "a query's logits", remedy)

    @clause("predicts from θ alone, or declares theta_predicts = False", after=(LOGITS,))
    def theta_predicts(self) -> None:
        """Attacks on the support set are made on θ."""
        if not self.plugin.theta_predicts:
            return
        engine, weights, tasks = self.world()
        remedy = "declare theta_predicts = False: the support is then attacked through an adapted state"
        try:
            with torch.no_grad():
                logits = engine.logits(detached(engine, weights), tasks.query.x)
        except Exception as error:
            raise Broken(as_broken(error, "on θ, ").seen, remedy) from error
        expected = (*tasks.query.y.shape, self.setting.way)
        expect(
            tuple(logits.shape) == expected and bool(logits.isfinite().all()),
            f"on θ, logits are {tuple(logits.shape)}, or not finite; expected finite {expected}", remedy,
        )  # fmt: skip


def detached(engine: Engine, weights: Weights) -> State:
    """θ as data."""
    return engine.theta({name: weight.detach() for name, weight in weights.items()})


def _named(tree: Any, what: str) -> dict[str, Tensor]:
    return {f"{what}, tensor {place}": leaf for place, leaf in enumerate(pytree.tree_leaves(tree))}


def _module(engine: Engine) -> dict[str, Tensor]:
    module = engine.network.module
    return dict([*module.named_parameters(), *module.named_buffers()])


def _unchanged(what: str, given: dict[str, Tensor], call: Callable[[], Any]) -> Any:
    """What the call returns; Broken if it changes a tensor that it was given."""
    before = Snapshot(given)
    returned = call()
    changed = before.written()
    expect(not changed, f"{what} changed {', '.join(changed)} in place", "compute new tensors (x = x + …, not x += …)")
    return returned
