"""Checks of a learner on its backbone before it is trained: may it be vmapped, and is it what it declares?"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from robustbench_meta.contracts import Weights
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.engine.batch_dependence import MATES, VARIES, influence_of_mates, variation
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.errors import BenchError
from robustbench_meta.runtime.tensor_snapshot import Snapshot

_log = logging.getLogger(__name__)


class InPlaceError(BenchError):
    """A learner or backbone changes what it was given."""


_PRECISIONS = ((torch.float64, 1e-6), (torch.float32, 1e-3))
"""What is tried in turn, and how far apart vectors of each may lie, as a share of their length."""


def may_be_vmapped(engine: Engine, weights: Weights, tasks: TaskBatch) -> bool | None:
    """Whether vmap works on this learner and gives the plain loop's meta-gradient, on unattacked tasks.

    None: not even the plain loop gives one, or not in numbers; training will tell why.

    Some operations of torch have a wrong second derivative under vmap (batch and instance norm in
    2.13), and some Python cannot be vmapped at all (`.item()`, branches on values).
    """
    for dtype, tolerance in _PRECISIONS:
        try:
            plain = _gradient(engine, weights, tasks, Plan("loop", "loop", 1), dtype)
        except InPlaceError:
            raise
        except Exception:  # a learner may be written for one precision only: the next, or the training, will tell
            _log.debug("no %s loop", dtype, exc_info=True)
            continue
        if not plain.isfinite().all():
            return None
        try:
            mapped = _gradient(engine, weights, tasks, Plan("vmap", "vmap", tasks.tasks), dtype)
        except Exception:  # vmap refuses in many ways
            _log.debug("no vmap", exc_info=True)
            return False
        return bool((plain - mapped).norm() <= tolerance * plain.norm().clamp_min(1e-6))
    return None


def can_be_vmapped(engine: Engine, weights: Weights, tasks: TaskBatch) -> bool:
    """Whether vmap works on this learner in the precision at hand; what it computes is checked in a higher one."""
    try:
        _gradient(engine, weights, tasks, Plan("vmap", "vmap", tasks.tasks), torch.float32)
    except Exception:  # as above
        _log.debug("no vmap in %s", engine.network.precision, exc_info=True)
        return False
    return True


def _copied(tasks: TaskBatch) -> TaskBatch:
    return TaskBatch(*(Batch(batch.x.clone(), batch.y.clone()) for batch in tasks))


def _tensors(engine: Engine, state: Any, tasks: TaskBatch) -> dict[str, Tensor]:
    """What a learner and its backbone are given, and must leave as it is, by what messages call it."""
    module = engine.network.module
    leaves = state if isinstance(state, dict) else dict(enumerate(pytree.tree_leaves(state)))
    named = {f"the state's '{name}'": leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    for what, batch in zip(("support", "query"), tasks, strict=True):
        named |= {f"{what}.x": batch.x, f"{what}.y": batch.y}
    own = [*module.named_parameters(), *module.named_buffers()]
    return named | {f"the network's '{name}'": tensor for name, tensor in own}


def _check_kept(kept: Snapshot, what: str) -> None:
    written = kept.written()
    if written:
        raise InPlaceError(
            f"{what} changes {', '.join(written[:3])}{' and others' if len(written) > 3 else ''} in place, so that one "
            "task leaks into the next; compute new tensors (x = x - 0.5, not x -= 0.5), and give an optimiser clones "
            "(weight.detach().clone())"
        )


def _gradient(engine: Engine, weights: Weights, tasks: TaskBatch, plan: Plan, dtype: torch.dtype) -> Tensor:
    """The meta-gradients of all updates, end to end, without attack and in evaluation mode (no dropout).

    Of a learner that trains on base classes alone, queries stand for images of these.
    """
    base = engine.learner.base_training(1)
    theta = {name: weight.detach().to(dtype).requires_grad_() for name, weight in weights.items()}
    exact = TaskBatch(*(Batch(batch.x.to(dtype), batch.y) for batch in tasks))
    kept = Snapshot(_tensors(engine, theta, exact))
    clean = replace(
        engine, attack=lambda model, x, y, random, start=None: x, judged=QueryMetrics(), plan=plan, cores=Cores()
    )
    engine.network.module.eval()
    try:
        updates = clean.meta_gradients(theta, exact, [0] * tasks.tasks, base=base is not None and base.steps > 0)
    finally:
        engine.network.module.train()
    _check_kept(kept, f"learner '{engine.learner.name}': objective")
    return torch.cat([gradient.flatten() for gradients, _ in updates for gradient in gradients.values()])


def check_declared(engine: Engine, weights: Weights, tasks: TaskBatch, who: str) -> None:
    """Let no result depend on what a plugin forgot to say.

    Raises:
        BenchError: something is changed in place or drawn outside the run's seeds, predictions change with the other
            queries though learner and backbone say that they do not, or logits have another shape than [queries, way].
    """
    probe = replace(engine, plan=Plan("loop", "loop", 1), judged=QueryMetrics(), cores=Cores())
    probe.set_task_seeds(range(tasks.tasks))
    probe.set_mode(training=False)
    with torch.no_grad():
        theta = probe.theta({name: weight.detach().clone() for name, weight in weights.items()})
        tasks = _copied(tasks)
        with probe.seeded_for("check", tasks.query.x.device):
            kept = Snapshot(_tensors(engine, theta.tree, tasks))
            adapted = probe.adapt(theta, tasks.support)
            _check_kept(kept, f"{who}: adapt")
            answers = partial(probe.logits, adapted)
            kept = Snapshot(_tensors(engine, adapted.tree, tasks))
            whole = answers(tasks.query.x)
            _check_kept(kept, f"{who}: logits")
        expected = (*tasks.query.y.shape, engine.network.way)
        if whole.shape != expected:
            raise BenchError(f"{who}: logits are {tuple(whole.shape)}; expected {expected}, [tasks, queries, way]")
        with probe.seeded_for("check", tasks.query.x.device):
            again = probe.logits(probe.adapt(theta, tasks.support), tasks.query.x)
        if float((again - whole).abs().max()) > MATES["float32"] * float(whole.abs().max()):
            raise BenchError(
                f"{who}: the same task gives other logits when it is adapted to again, from the same seeds; draw from "
                "torch's, numpy's or Python's global generator, which are seeded, and keep nothing from call to call"
            )
        # of outputs that vary by themselves nothing can be told from differences: they are flagged later
        drawn = variation(answers, tasks.query.x, whole) > VARIES["float32"]
        apart = 0.0 if drawn else max(influence_of_mates(answers, tasks.query.x, whole).values())
    probe.set_mode(training=True)
    if apart > MATES["float32"] and not engine.transductive:
        raise BenchError(
            f"{who} is declared inductive, but a query's logits change by {100 * apart:.2g} % with the other queries "
            "in its batch; declare `transductive` in the backbone or the learner, or normalise each example by itself"
        )


def meta_gradient_error() -> float:
    """How far this torch's meta-gradient is off, as a share of its length, on a case that is derived by hand.

    For L(θ; a, b) = ½(aθ − b)², support (a, b) and query (c, d) the meta-gradient of a task is c(cθ′ − d)(1 − αa²) at
    θ′ = θ − αa(aθ − b); several tasks are mapped by vmap, in float64.
    """
    alpha, theta = 0.1, torch.tensor(0.7, dtype=torch.float64)
    a, b, c, d = torch.linspace(-1, 2, 20, dtype=torch.float64).reshape(4, 5)

    def loss(weight: Tensor, slope: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (slope * weight - target) ** 2

    def outer(weight: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return loss(weight - alpha * torch.func.grad(loss)(weight, a, b), c, d)

    found = torch.func.vmap(torch.func.grad(outer), in_dims=(None, 0, 0, 0, 0))(theta, a, b, c, d)
    expected = c * (c * (theta - alpha * a * (a * theta - b)) - d) * (1 - alpha * a**2)
    return float((found - expected).norm() / expected.norm())
