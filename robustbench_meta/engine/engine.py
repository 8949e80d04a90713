"""The only place that maps over tasks: adapt, logits, loss, perturb, and the meta-gradient."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from robustbench_meta.contracts import AnyLearner, Random, Toward, Update, Weights
from robustbench_meta.contracts.state import Forward, State, WithSupport
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import DeferredViolations
from robustbench_meta.engine.attacked_model import AttackedModel, Perturbation, Target
from robustbench_meta.engine.metrics import QueryMetrics, ValidationMetrics
from robustbench_meta.engine.network import Network
from robustbench_meta.engine.parallel import Cores, Pool, shared
from robustbench_meta.errors import BenchError, PluginError, place_of
from robustbench_meta.runtime.seeds import seed_from, seeded

_log = logging.getLogger(__name__)
COMPILER = "inductor"
"""The backend of torch.compile."""
TaskMapping = Literal["vmap", "loop"]
_BY_AUTOGRAD = (
    "asks torch.autograd (grad or backward) for a gradient of tensors that record none; use "
    "robustbench_meta.contracts.inner_loop.gradient_step(loss, weights, rate), or torch.func.grad(loss)(weights), "
    "where loss is a function of the weights: they work without `requires_grad`, and can be mapped over tasks"
)
_IN_PLACE = "changes a weight in place; compute new tensors (w = w - rate * g, not w -= rate * g)"
_EXPLAINED = {
    "does not require grad": _BY_AUTOGRAD,
    "inside of a functorch transform": _BY_AUTOGRAD,
    "inside a functorch transform": _BY_AUTOGRAD,
    "leaf Variable that requires grad is being used in an in-place operation": _IN_PLACE,
}
"""What to do about errors of torch, by a part of their message."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """How to map over tasks: all at once (vmap) or one by one (loop), and how many tasks at a time.

    `shared` is for operations whose weights all tasks share (folded into the batch by vmap), `own`
    for those where each task has its own. `compiled`: through torch.compile, on a single core.
    """

    shared: TaskMapping = "vmap"
    own: TaskMapping = "loop"
    chunk: int = 8
    compiled: bool = False
    few: int = 0
    """Logits of so many examples a task, or fewer, are mapped by vmap also where each task has its own weights: there
    the loop's cost is its calls."""


class ChunkGradients(NamedTuple):
    """What one chunk of the tasks of a meta-step gave."""

    updates: list[tuple[list[Tensor], float]]
    """A gradient, weight by weight, and a rate for each meta-update."""
    judged: QueryMetrics


@dataclass
class Engine:
    """Maps a learner's one-task functions over tasks, as the plan says; implements `Operations`.

    Chunks of tasks are shared out to the cores. The plan alone decides what a chunk is and in which
    order chunks are added up, so that no number depends on how many cores there are.
    """

    learner: AnyLearner
    network: Network
    event_ndim: int
    """How many axes one example has."""
    transductive: bool = False
    plan: Plan = field(default_factory=Plan)
    training: bool = False
    """Whether `adapt` takes the inner steps of meta-training or those of the test."""
    ways: tuple[int, int] = (0, 0)
    """Of tasks at the test and in meta-training; 0: as the network says."""
    base_classes: int = 0
    progress: float = 0.0
    """The share of meta-training that is done."""
    attack: Perturbation | None = None
    """The learner's training attack, for `perturb`."""
    deferred: DeferredViolations | None = None
    """Where the training attack's excesses are noted, to be judged at validation."""
    surrogate_network: Network | None = None
    surrogate_weights: Weights | None = None
    seeds: Sequence[int] = ()
    """One seed a task of the batch at hand, for attacks that draw; set by `set_task_seeds`."""
    cores: Cores = field(default_factory=Cores)
    judged: QueryMetrics = field(default_factory=QueryMetrics)
    compiled: dict[Any, Any] = field(default_factory=dict)
    """What torch.compile made so far, by name; shared by the engine and its copies."""
    may_halve: bool = True
    """Whether it goes on with smaller chunks when the device runs out of memory."""
    _attacks: int = 0
    _steps: _StepPool | None = field(default=None, init=False)

    def set_mode(self, training: bool) -> None:
        """Say whether tasks are for meta-training: inner steps, and the mode of modules such as dropout."""
        self.training = training
        self.network.module.train(training)
        self.network.way = self.ways[training] or self.network.way

    def set_task_seeds(self, seeds: Sequence[int]) -> None:
        """One seed a task of the next batch of tasks; each attack on it draws from seeds of its own."""
        self.seeds, self._attacks = seeds, 0

    def seeded_for(self, purpose: str, device: torch.device) -> AbstractContextManager[None]:
        """Inside, what learner and backbone draw for the batch at hand depends on its tasks' seeds and the purpose."""
        return seeded(seed_from("drawing", purpose, *self.seeds), device)

    def theta(self, weights: Weights) -> State:
        """θ as a state."""
        return State.shared(weights, self._forward)

    def adapt(self, theta: State, support: Batch, **settings: Any) -> State:
        """One adapted state a task: `inner_steps` applications of the learner's `adapt`.

        A network that reads the support set is given it from then on: its images go beside the learner's tree.
        """
        state = theta.without_support()
        for state in self._states(theta, support, settings):  # noqa: B007  # the last one
            pass
        return state.with_support(support.x) if self.network.reads_support else state

    def trajectory(self, theta: State, support: Batch, **settings: Any) -> list[State]:
        """The states after each application of the learner's `adapt`."""
        reads = self.network.reads_support
        return [state.with_support(support.x) if reads else state for state in self._states(theta, support, settings)]

    def _states(self, theta: State, support: Batch, settings: dict[str, Any]) -> Iterator[State]:
        self._check_whole(support.x)
        state = theta.without_support()
        numbered = self.learner.takes_step
        for step in range(self.learner.inner_steps(self.training)):
            given = {**settings, "step": step} if numbered else settings
            with self._explaining("adapt"):
                state = self._adapt_once(state, support, given)
            yield state

    def base_classifier(self, theta: State) -> State:
        """θ as a classifier of the base classes."""
        return State.shared(theta.tree, self._base_forward)

    def unsmoothed(self, state: State) -> State:
        """The same state, whose logits are the learner's `unsmoothed`."""
        return State(state.tree, state.dims, self._unsmoothed_forward)

    def logits(self, state: State, x: Tensor) -> Tensor:
        """Logits [tasks, n, way]."""
        self._check_whole(x)
        with self._explaining("logits"):
            mapped: Tensor = self._map(state.forward, state, x, name="logits")
        return mapped

    def loss(self, state: State, batch: Batch) -> Tensor:
        """The loss of each task [tasks]; its accuracy goes into `judged`."""

        def judge(tree: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = state.forward(tree, x)
            return self.network.loss(logits, y), (logits.detach().argmax(-1) == y).float().mean()

        self._check_whole(batch.x)
        losses, accuracies = self._map(judge, state, batch.x, batch.y, name="loss")
        self.judged.add(losses, accuracies)
        return losses  # type: ignore[no-any-return]  # _map is generic in what the function returns

    def perturb(self, state: State, batch: Batch, attack: Perturbation | None = None) -> Batch:
        """The batch attacked through `state`, by the learner's training attack unless another is given.

        An attack's draws depend on the task's seed, and on which attack on this batch it is.
        """
        chosen = attack or self.attack
        if chosen is None:
            raise BenchError(
                f"learner '{self.learner.name}' calls ops.perturb but names no attack: define training_attack(self), "
                "for example returning ('fgsm', None)"
            )
        self._attacks += 1
        way = self.base_classes if state.forward == self._base_forward else self.network.way
        return self.attacked(AttackedModel(self, state, batch.y.shape[1], way), batch, chosen, self._attacks)

    def attacked(
        self, victim: Target, batch: Batch, attack: Perturbation, role: str | int, start: Tensor | None = None
    ) -> Batch:
        """The batch attacked through a victim; the attack's draws depend on the task's seed and on `role`."""
        seeds = [seed_from(seed, role) for seed in self.seeds or range(len(batch.x))]
        return Batch(attack(victim, batch.x, batch.y, Random(seeds), start), batch.y)

    def surrogate(self, batch: Batch) -> State:
        """The separate model of the learner's `surrogate_backbone`: own random weights, fixed, shared by all tasks."""
        if self.surrogate_network is None or self.surrogate_weights is None:
            raise BenchError(
                f"learner '{self.learner.name}' calls ops.surrogate but names no backbone: define "
                "surrogate_backbone(self), for example returning 'linear'"
            )
        return State.shared(self.surrogate_weights, self.surrogate_network)

    def meta_gradients(
        self, weights: Weights, tasks: TaskBatch, seeds: Sequence[int] = (), *, base: bool = False
    ) -> list[tuple[Weights, float]]:
        """One (gradient of the mean loss over tasks, rate) a meta-update; memory is bounded by the plan's chunk.

        Args:
            weights: θ, leaves that require a gradient.
            tasks: the tasks of one meta-step.
            seeds: one seed a task for the training attack.
            base: the queries are parts of a batch of the base classes, for supervised training.
        """

        def part(engine: Engine, which: slice) -> ChunkGradients:
            return engine.part(weights, tasks.part(which), tasks.tasks, seeds[which], base=base)

        def by_pool(slices: Sequence[slice], count: int) -> list[ChunkGradients]:
            items = [(which, list(seeds[which]), self.progress, base) for which in slices]
            return self._step_pool(weights, tasks, count).run(weights, tasks, items)

        total: list[tuple[list[Tensor], float]] = []
        for updates, judged in self._chunks(part, tasks.tasks, by_pool):
            self.judged.merge(judged)
            if not total:
                total = updates
            else:  # not in place: autograd may give one tensor for two weights
                total = [
                    (list(torch._foreach_add(sums, gradients)), rate)
                    for (sums, rate), (gradients, _) in zip(total, updates, strict=True)
                ]
        return [(dict(zip(weights, grads, strict=True)), rate) for grads, rate in total]

    def part(
        self, weights: Weights, tasks: TaskBatch, of: int, seeds: Sequence[int], *, base: bool = False
    ) -> ChunkGradients:
        """The share of these tasks, of so many in all, in the meta-gradients; on an engine with `judged` empty."""
        self.set_task_seeds(seeds)
        leaves = list(weights.values())
        with self.seeded_for("objective", tasks.support.x.device):
            theta = self.theta(weights)
            if base:
                updates = self.learner.base_objective(self, theta, tasks.query)
            else:
                updates = self.learner.objective(self, theta, tasks)
        _check_updates(self.learner.name, updates, tasks.tasks)
        gradients = [
            _steps_away(update.adapted, weights, tasks.tasks, of)
            if isinstance(update, Toward)
            else torch.autograd.grad(
                update.loss.sum() / of, leaves, retain_graph=update is not updates[-1], materialize_grads=True
            )
            for update in updates
        ]
        return ChunkGradients([(list(g), u.rate) for g, u in zip(gradients, updates, strict=True)], self.judged)

    def _step_pool(self, weights: Weights, tasks: TaskBatch, count: int) -> _StepPool:
        """The pool that stays from one meta-step to the next, forked anew when what it was forked with has changed."""
        frozen = (
            self.plan, self.training, self.learner, self.attack, self.network, self.network.module.training,
            self.surrogate_network, self.surrogate_weights,
        )  # fmt: skip
        if self._steps is None or not self._steps.fits(count, frozen, weights, tasks):
            self.close_pool()
            self._steps = _StepPool(self, count, frozen, weights, tasks)
        return self._steps

    def close_pool(self) -> None:
        """End the processes that meta-steps were shared out to."""
        if self._steps is not None:
            self._steps.pool.close()
            self._steps = None

    def judge(
        self, weights: Weights, draw: Callable[[Sequence[int]], TaskBatch], seeds: Sequence[int]
    ) -> ValidationMetrics:
        """Judge adapted states on their queries, whatever the objective asks for, without an update.

        Args:
            weights: θ.
            draw: gives the tasks of these places (0, 1, …), called for a chunk of them at a time.
            seeds: one seed a task for the training attack.
        """

        def part(engine: Engine, which: slice) -> ValidationMetrics:
            engine.set_task_seeds(seeds[which])
            tasks = draw(range(len(seeds))[which])
            clean, attacked = engine, engine.with_empty_metrics()
            with engine.seeded_for("validation", tasks.support.x.device):
                adapted = engine.adapt(engine.theta(weights), tasks.support)
                clean.loss(adapted, tasks.query)
                if engine.attack is not None:
                    attacked.loss(adapted, engine.perturb(adapted, tasks.query))
            return ValidationMetrics(clean.judged, attacked.judged)

        verdict = ValidationMetrics(QueryMetrics(), QueryMetrics())
        with torch.no_grad():
            for clean, attacked in self._chunks(part, len(seeds)):
                verdict.clean.merge(clean)
                verdict.attacked.merge(attacked)
        return verdict

    def with_empty_metrics(self) -> Engine:
        """The same engine, with nothing judged yet."""
        return replace(self, judged=QueryMetrics())

    def _chunks(
        self, work: Callable[[Engine, slice], Result], tasks: int,
        by_pool: Callable[[Sequence[slice], int], list[Result]] | None = None,
    ) -> list[Result]:  # fmt: skip
        """`work` on all chunks of so many tasks; on smaller ones from now on if these do not fit in the memory.

        Args:
            work: is given an engine with `judged` empty; what it changes elsewhere may be lost.
            tasks: how many there are.
            by_pool: does the same on so many processes, if not one that is forked for this.
        """
        while True:
            chunk = self.plan.chunk
            slices = [slice(start, min(start + chunk, tasks)) for start in range(0, tasks, chunk)]
            count = 1 if self.plan.compiled else min(self.cores.count(), len(slices))
            with contextlib.suppress(torch.OutOfMemoryError):
                if count == 1:
                    return [work(self.with_empty_metrics(), which) for which in slices]
                if by_pool is not None:
                    return by_pool(slices, count)
                pool = Pool[slice, Result](lambda which: work(self.with_empty_metrics(), which), count, self.cores)
                with contextlib.closing(pool):
                    return pool.map(slices)
            self.halve_chunk()

    def halve_chunk(self) -> None:
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

    def _check_whole(self, x: Tensor) -> None:
        """Raise ValueError, whoever asks, unless images have the axes of all tasks."""
        if x.dim() != self.event_ndim + 2:
            raise ValueError(
                f"images of shape {tuple(x.shape)} were given for all tasks; expected {self.event_ndim + 2} axes, "
                "[tasks, n, *shape]: what an objective and an attack call takes all tasks of a batch at once"
            )

    @contextlib.contextmanager
    def _explaining(self, what: str) -> Iterator[None]:
        """Say of torch's errors about gradients and memory what to use instead."""
        try:
            yield
        except RuntimeError as error:
            told = next((told for known, told in _EXPLAINED.items() if known in str(error)), None)
            if told is None:
                raise
            raise PluginError(f"learner '{self.learner.name}': {what} {told}{place_of(error)}") from error

    def _base_forward(self, tree: Any, x: Tensor) -> Tensor:
        return self.learner.base_logits(self.network, tree, x)

    def _forward(self, tree: Any, x: Tensor) -> Tensor:
        return self.learner.logits(*self._network_and_tree(tree), x)

    def _unsmoothed_forward(self, tree: Any, x: Tensor) -> Tensor:
        return self.learner.unsmoothed(*self._network_and_tree(tree), x)

    def _network_and_tree(self, tree: Any) -> tuple[Any, Any]:
        """The network, with the support set if it reads that, and the learner's tree."""
        if isinstance(tree, WithSupport):
            return self.network.with_support(tree.support), tree.tree
        return self.network, tree

    def _adapt_once(self, state: State, support: Batch, settings: dict[str, Any]) -> State:
        """One inner step of all tasks. Leaves that the learner hands through untouched stay shared."""
        passed = {id(leaf): leaf for leaf, dim in zip(*state.leaves, strict=True) if dim is None}
        shape: list[Any] = []

        def step(tree: Any, x: Tensor, y: Tensor) -> list[Tensor]:
            leaves, spec = pytree.tree_flatten(self.learner.adapt(self.network, tree, Batch(x, y), **settings))
            if not all(isinstance(leaf, Tensor) for leaf in leaves):
                other = next(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor))
                raise PluginError(
                    f"learner '{self.learner.name}': adapt returned {other}, or a state with one in it; expected "
                    "tensors, or lists, tuples or dicts of them"
                )
            shape[:] = [spec, [passed.get(id(leaf)) for leaf in leaves]]
            return [leaf for leaf in leaves if id(leaf) not in passed]

        def compilable(tree: Any, x: Tensor, y: Tensor) -> list[Tensor]:
            return pytree.tree_leaves(self.learner.adapt(self.network, tree, Batch(x, y), **settings))

        called = ("adapted", *state.leaves[1], self.training, *sorted(settings.items()))
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
        if name == "logits" and batched[0].shape[1] <= self.plan.few:
            mapping = "vmap"
        in_dims = (state.dims, *(0 for _ in batched))
        if mapping == "vmap":
            mapped = torch.func.vmap(function, in_dims, randomness="different")
            return self._compile(mapped, (name, "vmap", *state.leaves[1]), state.forward)(state.tree, *batched)
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
            settings = torch._dynamo.config  # vmap sends many operations through one line of code
            many = settings.patch(recompile_limit=max(settings.recompile_limit, 64))
            self.compiled[key] = many(torch.compile(function, backend=COMPILER, dynamic=False))
        compiled: Callable[..., Any] = self.compiled[key]
        return compiled


class _StepPool:
    """A pool that stays from one meta-step to the next: θ and the tasks lie in memory that all its processes see.

    Args:
        engine: as it is at the fork.
        count: how many processes.
        frozen: what must not have changed since the fork.
        weights: θ, for the shapes.
        tasks: of a meta-step, for the shapes.
    """

    def __init__(
        self, engine: Engine, count: int, frozen: tuple[object, ...], weights: Weights, tasks: TaskBatch
    ) -> None:
        self._engine, self._frozen = engine, frozen
        self._weights = {name: shared(weight).requires_grad_() for name, weight in weights.items()}
        self._tasks = TaskBatch(*(Batch(shared(batch.x), shared(batch.y)) for batch in tasks))
        self.pool: Pool[Any, Any] = Pool(self._part, count, engine.cores)

    def fits(self, count: int, frozen: tuple[object, ...], weights: Weights, tasks: TaskBatch) -> bool:
        """Whether it can do such meta-steps."""
        same = all(now is then for now, then in zip(frozen, self._frozen, strict=True))
        return count == self.pool.count and same and _kinds(weights, tasks) == _kinds(self._weights, self._tasks)

    def run(
        self, weights: Weights, tasks: TaskBatch, items: list[tuple[slice, list[int], float, bool]]
    ) -> list[ChunkGradients]:
        """What chunks of the tasks give, each with its seeds and the progress; after an error, nothing."""
        with torch.no_grad():
            for ours, theirs in zip(_tensors(self._weights, self._tasks), _tensors(weights, tasks), strict=True):
                ours.copy_(theirs)
        try:
            found = self.pool.map(items)
        except BaseException:
            self._engine.close_pool()  # some may still be at work on this step
            raise
        return [
            ChunkGradients([([torch.from_numpy(each) for each in arrays], rate) for arrays, rate in updates], judged)
            for updates, judged in found
        ]

    def _part(self, item: tuple[slice, list[int], float, bool]) -> tuple[list[Any], QueryMetrics]:
        """One chunk, in one of the processes; gradients as arrays, which are quick to pickle."""
        which, seeds, progress, base = item
        engine = self._engine.with_empty_metrics()
        engine.progress = progress
        updates, judged = engine.part(self._weights, self._tasks.part(which), self._tasks.tasks, seeds, base=base)
        return [([gradient.numpy() for gradient in gradients], rate) for gradients, rate in updates], judged


def _tensors(weights: Weights, tasks: TaskBatch) -> list[Tensor]:
    return [*weights.values(), *(tensor for batch in tasks for tensor in batch)]


def _kinds(weights: Weights, tasks: TaskBatch) -> list[object]:
    return [*weights, *((tensor.shape, tensor.dtype) for tensor in _tensors(weights, tasks))]


def _steps_away(adapted: State, weights: Weights, tasks: int, of: int) -> list[Tensor]:
    """θ − φ of each weight, summed over these tasks, as a share of all; nothing where φ has none."""
    bare = adapted.without_support()

    def away(name: str, theta: Tensor) -> Tensor:
        if name not in bare.tree:
            return torch.zeros_like(theta)
        difference: Tensor = (theta - bare.tree[name]).detach()
        return (difference.sum(0) if bare.dims[name] == 0 else tasks * difference) / of

    return [away(name, theta) for name, theta in weights.items()]


def _check_updates(learner: str, updates: Any, tasks: int) -> None:
    """Raise PluginError unless an objective gave updates, each with a loss a task that depends on θ."""
    who = f"the objective of learner '{learner}'"
    kinds = (Update, Toward)
    listed = isinstance(updates, list) and bool(updates) and all(isinstance(update, kinds) for update in updates)
    if not listed:
        hint = ": is a `return` missing?" if updates is None else ""
        raise PluginError(f"{who} returned {type(updates).__name__}; expected a list of Update(loss){hint}")
    for update in updates:
        if isinstance(update, Toward):
            if not isinstance(update.adapted, State) or not isinstance(update.adapted.adapted, dict):
                raise PluginError(f"{who} gave Toward something else than an adapted state that is a dict of weights")
            continue
        loss = update.loss
        if not isinstance(loss, Tensor) or loss.shape != (tasks,):
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise PluginError(f"{who} gave a loss of {what}; expected one for each of the {tasks} tasks, not averaged")
        if not loss.requires_grad:
            raise PluginError(f"{who} gave a loss that does not depend on θ: was it detached, or made of numbers?")
