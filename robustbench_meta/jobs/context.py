"""What a job is computed with: device, checkpoints, and how its learner may be mapped over tasks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustbench_meta.contracts import Weights
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.engine.plans import FEW, compiled, plan_for
from robustbench_meta.engine.preflight import can_be_vmapped, check_declared, may_be_vmapped
from robustbench_meta.engine.training import make_engine
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.checkpoints import Trained, checkpoint_name, read_checkpoint, read_file
from robustbench_meta.experiment.grid import Grid, Surrogate, Training
from robustbench_meta.experiment.surrogates import surrogate_key
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.atomic_files import read_bytes
from robustbench_meta.runtime.interrupts import Stop
from robustbench_meta.runtime.precision import computing_in

_log = logging.getLogger(__name__)
MOST_AT_ONCE = 16
"""Episodes that a plan is made for: an attack's batch on a CPU."""


@dataclass
class WorkerContext:
    """Where a worker reads and writes, and what it computes on."""

    store: Store
    device: torch.device
    cores: Cores = field(default_factory=Cores)
    """How many cores it may use."""
    stop: Stop = field(default_factory=Stop)
    mappable: dict[str, bool] = field(default_factory=dict)
    """By the key of a training that was checked: whether it may be vmapped."""


def checkpoint_of(context: WorkerContext, training: Training, like: Weights | None) -> Trained:
    """The checkpoint of a training."""
    name = checkpoint_name(training.key)
    try:
        return read_checkpoint(read_bytes(context.store.root / name) or b"", like, training.key)
    except BenchError as error:
        raise BenchError(
            f"the checkpoint {name} of {training.title} cannot be used: {error}; "
            "remove it and add --retry-failed, or use --fresh"
        ) from error


def trained_engine(
    context: WorkerContext, grid: Grid, trained: Training | Surrogate, count: int
) -> tuple[Engine, Weights]:
    """The engine and θ of a training, or of a surrogate (perhaps a file), for so many test episodes."""
    surrogate = trained if isinstance(trained, Surrogate) else None
    training = trained.training if isinstance(trained, Surrogate) else trained
    vmap = self_check(context, grid, training)
    engine, like = make_engine(grid, training, context.device, Plan())
    engine.plan = test_plan(context, grid, count, vmap)
    if surrogate is None or surrogate.path is None:
        return engine, checkpoint_of(context, training, like).weights
    data = read_file(surrogate.path)
    if surrogate_key(data) != surrogate.key:
        raise BenchError(f"{surrogate.path} changed since the run began; rerun the same command")
    return engine, read_checkpoint(data, like).weights


def self_check(context: WorkerContext, grid: Grid, training: Training) -> bool:
    """Whether the learner may be vmapped on this backbone; computed once a training.

    Raises:
        BenchError: it is not what it declares.
    """
    key = training.key
    if key not in context.mappable:
        context.mappable[key] = _self_check(context, grid, training)
    return context.mappable[key]


def _self_check(context: WorkerContext, grid: Grid, training: Training) -> bool:
    spec = training.spec
    engine, weights = make_engine(grid, training, context.device, Plan(), context.cores)
    shown = grid.splits.train.to(context.device).sample([0], spec.way, spec.shot, spec.query, 2)
    tasks = grid.splits.train.to(context.device).sample([0], *training.learner.train_tasks(grid.setting), 2)
    who = f"{training.label} on {training.spec.backbone.name}"
    _, again = make_engine(grid, training, context.device, Plan())
    if not all(torch.equal(weight, again[name]) for name, weight in weights.items()):
        raise BenchError(
            f"{who}: θ differs each time that it is made (build of the backbone, init of the learner), from the same "
            "seed; draw from torch's, numpy's or Python's global generator, which are seeded"
        )
    engine.network.precision = "float32"  # what is computed is checked, not how it is rounded
    with computing_in("float32", context.device):
        check_declared(engine, weights, shown, who)
        if not weights:
            return False
        vmap = may_be_vmapped(engine, weights, tasks)
    engine.network.precision = spec.precision
    if vmap is None:
        return False
    if vmap and (spec.precision == "float32" or can_be_vmapped(engine, weights, tasks)):
        return True
    _log.warning(
        "%s cannot be vmapped, or gets another gradient there (torch's batch and instance norm do): "
        "mapping by a plain loop, which is right and slower", who,
    )  # fmt: skip
    return False


def train_plan(context: WorkerContext, grid: Grid, training: Training, vmap: bool) -> Plan:
    """How the tasks of a meta-step are mapped."""
    device, spec = context.device, training.spec
    plan = plan_for(device, spec.tasks_per_step, vmap=vmap, chunk=grid.run.chunk)
    if grid.run.compile == "off" or not vmap:
        return plan
    engine, weights = make_engine(grid, training, device, Plan(), Cores())
    tasks = grid.splits.train.to(device).sample([0], *training.learner.train_tasks(grid.setting), spec.tasks_per_step)

    def gradient(plan: Plan) -> Tensor:
        engine.plan = plan
        updates = engine.meta_gradients(weights, tasks, list(range(spec.tasks_per_step)))
        return torch.cat([gradient.flatten() for gradients, _ in updates for gradient in gradients.values()])

    return compiled(plan, gradient)


def test_plan(context: WorkerContext, grid: Grid, count: int, vmap: bool) -> Plan:
    """How so many test episodes are mapped."""
    most = min(count, MOST_AT_ONCE if context.device.type == "cpu" else 8 * MOST_AT_ONCE)
    return plan_for(context.device, most, vmap=vmap, few=FEW, chunk=grid.run.chunk)
