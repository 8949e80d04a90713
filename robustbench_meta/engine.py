"""The only place that maps over tasks: adapt, logits, loss, perturb, and the meta-gradient."""

from __future__ import annotations

import contextlib
import logging
import mmap
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import repeat
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from robustbench_meta.contracts import Learner, LossName, Random, Weights
from robustbench_meta.errors import BenchError
from robustbench_meta.lanes import Crew, Lanes
from robustbench_meta.options import Precision
from robustbench_meta.precision import lowered
from robustbench_meta.seeds import seed_from
from robustbench_meta.tasks import Batch, TaskBatch
from robustbench_meta.threat import Doubts

_log = logging.getLogger(__name__)
COMPILER = "inductor"
"""The backend of torch.compile."""
Mapping = Literal["vmap", "loop"]
Item = TypeVar("Item")
Result = TypeVar("Result")
Forward = Callable[[Any, Tensor], Tensor]
Perturbation = Callable[["AttackedModel", Tensor, Tensor, Random], Tensor]
"""A bound attack that the harness has wrapped: (model, x, y, random) → verified x_adv."""


@dataclass(frozen=True)
class Plan:
    """How to map over tasks: all at once (vmap) or one by one (loop), and how many tasks at a time.

    `shared` is for operations whose weights all tasks share (folded into the batch by vmap), `own`
    for those where each task has its own. `compiled`: through torch.compile, on a single lane.
    """

    shared: Mapping = "vmap"
    own: Mapping = "loop"
    chunk: int = 8
    compiled: bool = False


class Network:
    """A backbone as a pure function of its weights, with the data set's loss, for ONE task."""

    def __init__(self, module: nn.Module, loss: LossName, way: int, precision: Precision = "float32") -> None:
        self.module, self.loss_name, self.way, self.precision = module, loss, way, precision

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Outputs [n, outputs]."""
        outputs: Tensor
        if self.precision == "bf16":
            with lowered(x.device):
                outputs = torch.func.functional_call(self.module, weights, (x,))
            return outputs.to(x.dtype)
        outputs = torch.func.functional_call(self.module, weights, (x,))
        return outputs

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss averaged over examples."""
        return self.losses(logits, y).mean()

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of each example: cross-entropy, or mean squared distance to the one-hot label."""
        if self.loss_name == "cross_entropy":
            return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)
        one_hot = (y[..., None] == torch.arange(logits.shape[-1], device=y.device)).to(logits.dtype)
        return (logits - one_hot).square().mean(-1)


@dataclass(frozen=True)
class State:
    """θ or adapted states of a batch of tasks, with the function that turns them into logits.

    `tree` is any pytree of tensors; `dims` says of each leaf whether all tasks share it (None) or
    each has its own along a leading axis (0).
    """

    tree: Any
    dims: Any
    forward: Forward
    """(one task's tree, x [n, *shape]) → logits [n, way]."""

    @classmethod
    def shared(cls, tree: Any, forward: Forward) -> State:
        """One tree for all tasks."""
        return cls(tree, pytree.tree_map(lambda _: None, tree), forward)

    @cached_property
    def leaves(self) -> tuple[list[Any], list[int | None]]:
        """The leaves and their dims."""
        leaves, spec = pytree.tree_flatten(self.tree)
        dims = pytree.tree_leaves(self.dims, is_leaf=lambda leaf: leaf is None)
        assert len(dims) == spec.num_leaves
        return leaves, dims

    @property
    def kind(self) -> Literal["shared", "own"]:
        """Whether tasks share at least part of it: what decides how to map."""
        return "shared" if None in self.leaves[1] else "own"

    def detach(self) -> State:
        """The same state as data: nothing that is computed from it differentiates into θ."""
        return State(pytree.tree_map(torch.Tensor.detach, self.tree), self.dims, self.forward)

    def each(self) -> Iterator[Any]:
        """One tree a task."""
        leaves, dims = self.leaves
        _, spec = pytree.tree_flatten(self.tree)
        columns = [repeat(leaf) if dim is None else leaf.unbind(0) for leaf, dim in zip(leaves, dims, strict=True)]
        if all(dim is None for dim in dims):
            return repeat(self.tree)
        return (pytree.tree_unflatten(list(row), spec) for row in zip(*columns, strict=False))

    def task(self, index: int) -> Any:
        """One task's tree."""
        return pytree.tree_map(
            lambda leaf, dim: leaf if dim is None else leaf[index], self.tree, self.dims, is_leaf=_is_tensor
        )


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


class AttackedModel:
    """A state as an attack sees it: x [tasks, n, *shape] → logits [tasks, n, way], fixed weights."""

    def __init__(self, engine: Engine, state: State) -> None:
        self._engine, self._state = engine, state.detach()
        self.way, self.event = engine.network.way, engine.event
        self.transductive = engine.transductive

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x."""
        return self._engine.logits(self._state, x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example [tasks, n]."""
        return self._engine.network.losses(self(x), y)

    def task(self, index: int) -> AttackedTask:
        """The model of one task."""
        return AttackedTask(self, self._state.task(index), self._state.forward)

    def tensors(self) -> list[Tensor]:
        """Everything that an attack must leave as it is."""
        return [leaf for leaf in self._state.leaves[0] if isinstance(leaf, Tensor)]


class AttackedTask:
    """One task's model as an attack sees it: x [n, *shape] → logits [n, way]."""

    def __init__(self, batch: AttackedModel, tree: Any, forward: Forward) -> None:
        self._batch, self._tree, self._forward = batch, tree, forward
        self.way, self.event, self.transductive = batch.way, batch.event, batch.transductive

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x."""
        return self._forward(self._tree, x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example [n]."""
        return self._batch._engine.network.losses(self(x), y)


@dataclass
class Judged:
    """Running sums of what `loss` saw, on the device: loss and accuracy of the judged queries."""

    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    batches: int = 0

    def add(self, losses: Tensor, accuracies: Tensor) -> None:
        """Add the losses and accuracies [tasks] of one call."""
        self.loss = self.loss + losses.detach().sum()
        self.correct = self.correct + accuracies.detach().sum()
        self.batches += losses.shape[0]

    def merge(self, other: Judged) -> None:
        """Add what another one saw."""
        self.loss, self.correct = self.loss + other.loss, self.correct + other.correct
        self.batches += other.batches

    def means(self) -> dict[str, float]:
        """Mean loss and accuracy since the start; waits for the device."""
        return {
            name: float(value) / max(self.batches, 1)
            for name, value in [("loss", self.loss), ("accuracy", self.correct)]
        }


class _Part(NamedTuple):
    """What one chunk of tasks gave: a gradient and a rate a meta-update, and what `loss` saw."""

    updates: list[tuple[list[Tensor], float]]
    judged: Judged


@dataclass
class Engine:
    """Maps a learner's one-task functions over tasks, as the plan says; implements `Operations`.

    Chunks of tasks are shared out to the lanes. The plan alone decides what a chunk is and in which
    order chunks are added up, so that no number depends on how many lanes there are.
    """

    learner: Learner
    network: Network
    event: int
    """How many axes one example has."""
    transductive: bool = False
    plan: Plan = field(default_factory=Plan)
    training: bool = False
    """Whether `adapt` takes the inner steps of meta-training or those of the test."""
    attack: Perturbation | None = None
    """The learner's training attack, for `perturb`."""
    doubts: Doubts | None = None
    """Where the training attack's excesses are noted, to be judged at validation."""
    surrogate_network: Network | None = None
    surrogate_weights: Weights | None = None
    seeds: Sequence[int] = ()
    """One seed a task of the batch at hand, for attacks that draw; set by `batch_seeds`."""
    lanes: Lanes = field(default_factory=Lanes)
    judged: Judged = field(default_factory=Judged)
    compiled: dict[Any, Any] = field(default_factory=dict)
    """What torch.compile made so far, by name; shared by the engine and its copies."""
    may_halve: bool = True
    """Whether it goes on with smaller chunks when the device runs out of memory."""
    _attacks: int = 0
    _draws: bool | None = field(default=None, init=False)
    """Whether learner or backbone draw from global generators, which lanes cannot share; None: not yet seen."""
    _steps: _Stepping | None = field(default=None, init=False)

    def set_mode(self, training: bool) -> None:
        """Say whether tasks are for meta-training: inner steps, and the mode of modules such as dropout."""
        self.training = training
        self.network.module.train(training)

    def batch_seeds(self, seeds: Sequence[int]) -> None:
        """One seed a task of the next batch of tasks; each attack on it draws from seeds of its own."""
        self.seeds, self._attacks = seeds, 0

    def theta(self, weights: Weights) -> State:
        """θ as a state."""
        return State.shared(weights, self._forward)

    def adapt(self, theta: State, support: Batch, **settings: Any) -> State:
        """One adapted state a task: `inner_steps` applications of the learner's `adapt`."""
        state = theta
        for _ in range(self.learner.inner_steps(self.training)):
            state = self._adapt_once(state, support, settings)
        return state

    def logits(self, state: State, x: Tensor) -> Tensor:
        """Logits [tasks, n, way]."""
        mapped: Tensor = self._map(state.forward, state, x, name="logits")
        return mapped

    def loss(self, state: State, batch: Batch) -> Tensor:
        """The loss of each task [tasks]; its accuracy goes into `judged`."""

        def judge(tree: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = state.forward(tree, x)
            return self.network.loss(logits, y), (logits.detach().argmax(-1) == y).float().mean()

        losses, accuracies = self._map(judge, state, batch.x, batch.y, name="loss")
        self.judged.add(losses, accuracies)
        return losses  # type: ignore[no-any-return]  # _map is generic in what the function returns

    def perturb(self, state: State, batch: Batch, attack: Perturbation | None = None, role: str = "") -> Batch:
        """The batch attacked through `state`, by the learner's training attack unless another is given.

        An attack's draws depend on the task's seed and on `role`, or on which attack on this batch it is.
        """
        chosen = attack or self.attack
        if chosen is None:
            raise BenchError(
                f"learner '{self.learner.name}' calls ops.perturb but names no attack: define training_attack(self), "
                "for example returning ('fgsm', None)"
            )
        self._attacks += 1
        seeds = [seed_from(seed, role or self._attacks) for seed in self.seeds or range(len(batch.x))]
        return Batch(chosen(AttackedModel(self, state), batch.x, batch.y, Random(seeds)), batch.y)

    def surrogate(self, batch: Batch) -> State:
        """The separate model of the learner's `surrogate_backbone`: own random weights, fixed, shared by all tasks."""
        if self.surrogate_network is None or self.surrogate_weights is None:
            raise BenchError(
                f"learner '{self.learner.name}' calls ops.surrogate but names no backbone: define "
                "surrogate_backbone(self), for example returning 'linear'"
            )
        return State.shared(self.surrogate_weights, self.surrogate_network)

    def meta_gradients(
        self, weights: Weights, tasks: TaskBatch, seeds: Sequence[int] = ()
    ) -> list[tuple[Weights, float]]:
        """One (gradient of the mean loss over tasks, rate) a meta-update; memory is bounded by the plan's chunk.

        Args:
            weights: θ, leaves that require a gradient.
            tasks: the tasks of one meta-step.
            seeds: one seed a task for the training attack.
        """
        total: list[tuple[list[Tensor], float]] = []
        for updates, judged in self._parts(weights, tasks, seeds):
            self.judged.merge(judged)
            if not total:
                total = updates
            else:  # not in place: autograd may give one tensor for two weights
                total = [
                    (list(torch._foreach_add(sums, gradients)), rate)
                    for (sums, rate), (gradients, _) in zip(total, updates, strict=True)
                ]
        return [(dict(zip(weights, grads, strict=True)), rate) for grads, rate in total]

    def part(self, weights: Weights, tasks: TaskBatch, of: int, seeds: Sequence[int]) -> _Part:
        """The share of these tasks, of so many in all, in the meta-gradients; on an engine with `judged` empty."""
        self.batch_seeds(seeds)
        updates, leaves = self.learner.objective(self, self.theta(weights), tasks), list(weights.values())
        gradients = [
            torch.autograd.grad(
                update.loss.sum() / of, leaves, retain_graph=update is not updates[-1], materialize_grads=True
            )
            for update in updates
        ]
        return _Part([(list(g), u.rate) for g, u in zip(gradients, updates, strict=True)], self.judged)

    def _parts(self, weights: Weights, tasks: TaskBatch, seeds: Sequence[int]) -> list[_Part]:
        """What each chunk of the tasks gives; with several lanes, by a crew that stays for the next meta-step."""

        def part(engine: Engine, which: slice) -> _Part:
            return engine.part(weights, tasks.part(which), tasks.tasks, seeds[which])

        while True:
            chunks = self._slices(tasks.tasks)
            with contextlib.suppress(torch.OutOfMemoryError):
                lanes, found = self._lanes_for(len(chunks)), None
                if lanes > 1 and self._draws is False:
                    found = self._stepping(weights, tasks, lanes).run(weights, tasks, seeds)
                if found is not None:
                    return found
                if lanes == 1 or self._draws:
                    return [part(self.fresh(), which) for which in chunks]
                watched = [self._watched(part, which) for which in chunks]  # the first step shows what is drawn
                self._draws = any(drew for _, drew in watched)
                return [result for result, _ in watched]
            self.halve()

    def _stepping(self, weights: Weights, tasks: TaskBatch, lanes: int) -> _Stepping:
        """The crew for meta-steps of this kind."""
        tensors = [*weights.items(), *((field, tensor) for batch in tasks for field, tensor in batch._asdict().items())]
        kind = (
            lanes, self.plan, self.training, self.learner, self.attack, self.network, self.network.module.training,
            self.surrogate_network, id(self.surrogate_weights),
            *((name, tensor.shape, tensor.dtype) for name, tensor in tensors),
        )  # fmt: skip
        if self._steps is None or self._steps.kind != kind:
            self.dismiss()
            self._steps = _Stepping(kind, self, weights, tasks, lanes)
        return self._steps

    def dismiss(self) -> None:
        """End the processes that meta-steps were shared out to."""
        if self._steps is not None:
            self._steps.crew.dismiss()
            self._steps = None

    def judge(self, weights: Weights, draw: Callable[[Sequence[int]], TaskBatch], seeds: Sequence[int]) -> None:
        """Add to `judged` the queries that the learner's objective judges, without an update.

        Args:
            weights: θ.
            draw: gives the tasks of these places (0, 1, …), called for a chunk of them at a time.
            seeds: one seed a task for the training attack.
        """

        def part(engine: Engine, which: slice) -> Judged:
            engine.batch_seeds(seeds[which])
            engine.learner.objective(engine, engine.theta(weights), draw(range(len(seeds))[which]))
            return engine.judged

        with torch.no_grad():
            for judged in self._chunks(part, len(seeds)):
                self.judged.merge(judged)

    def share_out(
        self, work: Callable[[Engine, Item], Result], items: Sequence[Item], done: Callable[[int], None] | None = None
    ) -> list[Result]:
        """`work` on each item, on as many lanes as there are; results in the order of the items.

        Where learner or backbone draw from torch's global generator (dropout), items go one after the
        other whatever the lanes: what is drawn depends on the order.

        Args:
            work: is given an engine with `judged` empty; what it changes elsewhere is lost.
            items: what to work on.
            done: told how many items are finished.
        """
        lanes, results, rest = self._lanes_for(len(items)), list[Result](), list(items)
        if lanes > 1 and self._draws is None:  # the first one shows whether anything is drawn
            result, self._draws = self._watched(work, rest.pop(0))
            results += _counted([result], done)
        if lanes > 1 and not self._draws:
            with Crew(partial(self._watched, work), lanes, self.lanes) as crew:
                found = list(_counted(crew.map(rest), done, len(results)))
            if not any(drew for _, drew in found):
                return results + [result for result, _ in found]
            self._draws = True
        return results + list(_counted((work(self.fresh(), item) for item in rest), done, len(results)))

    def fresh(self) -> Engine:
        """The same engine, with nothing judged yet."""
        return replace(self, judged=Judged())

    def _lanes_for(self, items: int) -> int:
        """How many lanes may share so many items."""
        return 1 if self.plan.compiled or self._draws else min(self.lanes.count(), items)

    def _watched(self, work: Callable[[Engine, Item], Result], item: Item) -> tuple[Result, bool]:
        """The result, and whether a global generator (torch's, numpy's, Python's) was drawn from."""
        before = _random_states()
        result = work(self.fresh(), item)
        return result, _random_states() != before

    def _slices(self, tasks: int) -> list[slice]:
        return [slice(start, min(start + self.plan.chunk, tasks)) for start in range(0, tasks, self.plan.chunk)]

    def _chunks(self, work: Callable[[Engine, slice], Result], tasks: int) -> list[Result]:
        """`work` on all chunks of so many tasks; on smaller ones from now on if these do not fit in the memory."""
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):
                return self.share_out(work, self._slices(tasks))
            self.halve()

    def halve(self) -> None:
        """Take half as many tasks at a time, after the device ran out of memory.

        Raises:
            torch.OutOfMemoryError: it is one already.
        """
        if self.plan.chunk == 1 or not self.may_halve:
            raise torch.OutOfMemoryError(
                "not even one task at a time fits in the device's memory; lower --query, --shot or the width"
            )
        self.plan = replace(self.plan, chunk=self.plan.chunk // 2)
        _log.warning("out of memory on the device: going on with %d tasks at a time", self.plan.chunk)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _forward(self, tree: Any, x: Tensor) -> Tensor:
        return self.learner.logits(self.network, tree, x)

    def _adapt_once(self, state: State, support: Batch, settings: dict[str, Any]) -> State:
        """One inner step of all tasks. Leaves that the learner hands through untouched stay shared."""
        passed = {id(leaf): leaf for leaf, dim in zip(*state.leaves, strict=True) if dim is None}
        shape: list[Any] = []

        def step(tree: Any, x: Tensor, y: Tensor) -> list[Tensor]:
            leaves, spec = pytree.tree_flatten(self.learner.adapt(self.network, tree, Batch(x, y), **settings))
            shape[:] = [spec, [passed.get(id(leaf)) for leaf in leaves]]
            return [leaf for leaf in leaves if id(leaf) not in passed]

        def compilable(tree: Any, x: Tensor, y: Tensor) -> list[Tensor]:
            return pytree.tree_leaves(self.learner.adapt(self.network, tree, Batch(x, y), **settings))

        called = ("adapted", state.kind, self.training, *sorted(settings.items()))
        known = self.compiled.get(called) if self.plan.compiled else None
        if known is not None:  # a step without leaves handed through, as an earlier one has shown
            own = self._map(compilable, state, support.x, support.y, name=("adapt", *sorted(settings.items())))
            return State(pytree.tree_unflatten(own, known), pytree.tree_unflatten([0] * len(own), known), state.forward)
        own = iter(self._map(step, state, support.x, support.y))
        spec, shared = shape
        if all(leaf is None for leaf in shared):
            self.compiled[called] = spec
        leaves = [next(own) if leaf is None else leaf for leaf in shared]
        dims = [0 if leaf is None else None for leaf in shared]
        adapted = pytree.tree_unflatten(leaves, spec), pytree.tree_unflatten(dims, spec)
        return State(*adapted, state.forward)

    def _map(self, function: Callable[..., Any], state: State, *batched: Tensor, name: Any = None) -> Any:
        """Apply a one-task function to every task, by vmap or by a loop; results are stacked along a leading axis.

        A function that has a name may be compiled: it must then be the same whenever the name and the state's
        forward are.
        """
        mapping = self.plan.shared if state.kind == "shared" else self.plan.own
        in_dims = (state.dims, *(0 for _ in batched))
        if mapping == "vmap":
            mapped = torch.func.vmap(function, in_dims, randomness="different")
            return self._compile(mapped, (name, "vmap", state.kind), state.forward)(state.tree, *batched)
        one = self._compile(function, (name, "loop"), state.forward)
        rows = [one(tree, *row) for tree, *row in zip(state.each(), *batched, strict=False)]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *rows)

    def _compile(self, function: Callable[..., Any], name: tuple[Any, ...], forward: Forward) -> Callable[..., Any]:
        """The function as compiled when it was first met under this name; as it is without a name or with the plan."""
        ours = getattr(forward, "__func__", None) is Engine._forward
        if not self.plan.compiled or name[0] is None or not (ours or forward is self.surrogate_network):
            return function
        key = (*name, ours, self.training)
        if key not in self.compiled:
            limit: int = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, 64)  # many operations come through one line of vmap's
            self.compiled[key] = torch.compile(function, backend=COMPILER, dynamic=False)
        compiled: Callable[..., Any] = self.compiled[key]
        return compiled


class _Stepping:
    """A crew for meta-steps: θ and the tasks lie in memory that all its processes see."""

    def __init__(self, kind: object, engine: Engine, weights: Weights, tasks: TaskBatch, lanes: int) -> None:
        self.kind, self._engine = kind, engine
        self._weights = {name: _shared(weight).requires_grad_() for name, weight in weights.items()}
        self._tasks = TaskBatch(*(Batch(_shared(batch.x), _shared(batch.y)) for batch in tasks))
        self._slices = engine._slices(tasks.tasks)
        self.crew = Crew(partial(engine._watched, self._part), lanes, engine.lanes)

    def run(self, weights: Weights, tasks: TaskBatch, seeds: Sequence[int]) -> list[_Part] | None:
        """What each chunk gives; None if something was drawn from torch's global generator."""
        with torch.no_grad():
            for name, weight in weights.items():
                self._weights[name].copy_(weight)
            for ours, theirs in zip(self._tasks, tasks, strict=True):
                ours.x.copy_(theirs.x)
                ours.y.copy_(theirs.y)
        try:
            told = list(self.crew.map([(which, list(seeds[which])) for which in self._slices]))
        except BaseException:
            self._engine.dismiss()  # some may still be at work on this step
            raise
        if any(drew for _, drew in told):
            self._engine._draws = True
            return None
        return [
            _Part([([torch.from_numpy(each) for each in arrays], rate) for arrays, rate in updates], judged)
            for (updates, judged), _ in told
        ]

    def _part(self, engine: Engine, item: tuple[slice, list[int]]) -> tuple[list[Any], Judged]:
        """One chunk, in one of the processes; gradients as arrays, which are quick to pickle."""
        which, seeds = item
        updates, judged = engine.part(self._weights, self._tasks.part(which), self._tasks.tasks, seeds)
        return [([gradient.numpy() for gradient in gradients], rate) for gradients, rate in updates], judged


def _shared(like: Tensor) -> Tensor:
    """A copy in memory that stays shared with processes that are forked afterwards."""
    if like.numel() == 0:
        return like.detach().clone()
    memory = mmap.mmap(-1, like.numel() * like.element_size())
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape).copy_(like.detach())


def _random_states() -> tuple[object, ...]:
    """What changes when a global generator of the CPU is drawn from."""
    numpy_state: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), numpy_state[1].tobytes(), numpy_state[2:], random.getstate()


def _counted(results: Iterable[Result], done: Callable[[int], None] | None, before: int = 0) -> Iterator[Result]:
    """The results, telling how many there have been."""
    for count, result in enumerate(results, before + 1):
        if done is not None:
            done(count)
        yield result
