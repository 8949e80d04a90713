"""Runs a grid: skips what is done, trains each learner once, evaluates its cells, writes their records."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from robustbench_meta import __version__
from robustbench_meta.contracts import Weights
from robustbench_meta.devices import device_name
from robustbench_meta.engine import Engine, Plan
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.evaluation import Outcome, episodes, evaluate
from robustbench_meta.grid import Cell, Grid, Training, Work, prepare
from robustbench_meta.registry import Registry
from robustbench_meta.selfcheck import check_declared, may_be_vmapped
from robustbench_meta.store import SCHEMA, Store, pack
from robustbench_meta.training import Trained, make_engine, meta_train
from robustbench_meta.tuning import default_plan, measured_plan

__all__ = ["Cell", "Grid", "Summary", "Training", "Work", "prepare", "run"]

_log = logging.getLogger(__name__)
MEASURE_FROM = 100
"""Meta-steps or episodes from which on it pays to measure which plan is fastest."""
_PACKAGES = ("torch", "torchattacks", "numpy", "pillow", "matplotlib")


@dataclass
class Summary:
    """What became of a run's cells."""

    finished: int = 0
    skipped: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)


def run(grid: Grid, registry: Registry, store: Store, device: torch.device) -> Summary:
    """Compute the cells of a grid that the store does not hold yet; a cell that fails costs no other.

    Progress is told through the event hooks.
    """
    tell = registry.tell
    summary = Summary()
    pending = [cell for cell in grid.cells if not store.has(cell.key)]
    summary.skipped = len(grid.cells) - len(pending)
    about = grid.run.model_dump(mode="json")
    tell("run_started", run=about, cells=len(pending))
    if device.type == "cuda":
        _be_exact()
    for training in grid.trainings:
        cells = [cell for cell in pending if cell.training is training]
        if cells:
            _run_training(grid, training, cells, store, device, summary, tell)
    tell("run_finished", run=about, finished=summary.finished, failed=len(summary.failed))
    return summary


def _be_exact() -> None:
    """On CUDA: float32 that is float32 (no TF32), and kernels that give the same numbers again."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _run_training(
    grid: Grid,
    training: Training,
    cells: list[Cell],
    store: Store,
    device: torch.device,
    summary: Summary,
    tell: Callable[..., None],
) -> None:
    """Train (or load) one learner and evaluate its cells, then write their records."""

    def fail(cell: Cell, reason: str) -> None:
        summary.failed.append((cell, reason))
        tell("cell_failed", cell=cell.spec.model_dump(mode="json"), reason=reason)

    tell("training_progress", training=training.title, step=0, steps=training.spec.meta_steps, metrics={})
    total = len(cells) * cells[0].spec.episodes
    try:
        vmap = _self_check(grid, training, device)
        trained = _train(grid, training, store, device, vmap, tell)
        engine, weights = make_engine(grid, training, device, Plan())
        test_plan = _test_plan(grid, training, engine, weights, cells[0].spec.episodes, device, vmap)
        engine.plan = test_plan
        outcomes = evaluate(
            engine, trained.weights, grid.splits.test.to(device), cells, device,
            lambda done: tell("evaluation_progress", training=training.title, done=done, total=total),
        )  # fmt: skip
    except StorageError:
        raise
    except Exception as error:  # a learner is a plugin, and may raise anything: its cells fail, the grid goes on
        _log.debug("%s failed", training.title, exc_info=True)
        for cell in cells:
            fail(cell, _reason(training, error))
        return
    for cell in cells:
        outcome = outcomes[cell.key]
        if isinstance(outcome, BenchError):
            fail(cell, str(outcome))
            continue
        record = _record(grid, cell, outcome, trained, device, {"train": trained.plan, "test": asdict(test_plan)})
        store.write_record(record)
        summary.finished += 1
        tell("cell_finished", record=record)


def _self_check(grid: Grid, training: Training, device: torch.device) -> bool:
    """Whether the learner may be vmapped on this backbone.

    Raises:
        BenchError: it is not what it declares.
    """
    spec = training.spec
    engine, weights = make_engine(grid, training, device, Plan())
    tasks = grid.splits.train.to(device).sample([0], spec.way, spec.shot, spec.query, 2)
    who = f"{training.label} on {grid.labels['backbone']}"
    check_declared(engine, weights, tasks, who)
    if not weights:
        return False
    if may_be_vmapped(engine, weights, tasks):
        return True
    _log.warning(
        "%s cannot be vmapped, or gets another gradient there (torch's batch and instance norm do): "
        "mapping by a plain loop, which is right and slower", who,
    )  # fmt: skip
    return False


def _train(
    grid: Grid, training: Training, store: Store, device: torch.device, vmap: bool, tell: Callable[..., None]
) -> Trained:
    """From the checkpoint, or by meta-training."""
    _, weights = make_engine(grid, training, device, Plan())
    trained = store.load_checkpoint(training.key, weights)
    if trained is None:
        steps = training.spec.meta_steps
        trained = meta_train(
            grid, training, device, _train_plan(grid, training, device, vmap),
            lambda step, metrics: tell(
                "training_progress", training=training.title, step=step, steps=steps, metrics=metrics),
        )  # fmt: skip
        store.save_checkpoint(training.key, trained, training.spec.model_dump(mode="json"))
    return trained


def _reason(training: Training, error: Exception) -> str:
    if isinstance(error, BenchError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{training.title} does not fit in the device's memory: lower --tasks-per-step, --query or the width"
    return f"learner '{training.title}' failed: {type(error).__name__}: {error}"


def _train_plan(grid: Grid, training: Training, device: torch.device, vmap: bool) -> Plan:
    """The fastest plan for the meta-gradient; a plain loop where vmap is out of the question."""
    spec = training.spec
    if not vmap:
        return Plan("loop", "loop", min(8, spec.tasks_per_step))
    if spec.meta_steps < MEASURE_FROM:
        return default_plan(device, spec.tasks_per_step)
    engine, weights = make_engine(grid, training, device, Plan())
    tasks = grid.splits.train.to(device).sample([0], spec.way, spec.shot, spec.query, spec.tasks_per_step)
    seeds = list(range(spec.tasks_per_step))

    def work(plan: Plan) -> None:
        engine.plan = plan
        engine.meta_gradients(weights, tasks, seeds)

    return measured_plan(_what("meta-gradient", grid, training), device, spec.tasks_per_step, work)


def _test_plan(
    grid: Grid, training: Training, engine: Engine, weights: Weights, count: int, device: torch.device, vmap: bool
) -> Plan:
    """By the work that most attacks repeat: the gradient of adapted models in their queries' pixels."""
    spec, most = training.spec, min(count, 32)
    if not vmap:
        return Plan("loop", "loop", min(8, most))
    if count < MEASURE_FROM:
        return default_plan(device, most)
    engine.set_mode(training=False)
    tasks = next(episodes(grid.splits.test.to(device), spec.way, spec.shot, spec.query, most, most))
    theta = engine.theta({name: weight.detach() for name, weight in weights.items()})

    def work(plan: Plan) -> None:
        engine.plan = plan
        for start in range(0, most, plan.chunk):
            part = tasks.part(slice(start, start + plan.chunk))
            with torch.no_grad():
                adapted = engine.adapt(theta, part.support)
            x = part.query.x.clone().requires_grad_()
            torch.autograd.grad(engine.logits(adapted, x).square().sum(), x)

    return measured_plan(_what("input-gradient", grid, training), device, most, work)


def _what(operation: str, grid: Grid, training: Training) -> dict[str, Any]:
    spec = training.spec
    return {
        "operation": operation,
        **{name: getattr(spec, name).model_dump(mode="json") for name in ("learner", "backbone")},
        "training_attack": spec.attack.model_dump(mode="json") if spec.attack else None,
        **{name: getattr(spec, name) for name in ("way", "shot", "query")},
        "shape": list(grid.setting.shape),
    }


def _labels(cell: Cell) -> dict[str, str]:
    """What tables show of the learner, its training attack, the attack and ε."""
    threat = cell.training.attack
    return {
        "learner": cell.learner,
        "attack": cell.attack,
        "eps": cell.eps,
        "training_attack": threat.label if threat else "none",
        "training_eps": threat.eps.text if threat else "0",
    }


def _record(
    grid: Grid, cell: Cell, outcome: Outcome, trained: Trained, device: torch.device, plans: Mapping[str, Any]
) -> dict[str, Any]:
    """A cell's record: everything that a row needs, and what it takes to check or repeat it. Plain data."""
    training = cell.training
    transductive = grid.setting.transductive or training.learner.transductive
    return {
        "schema": SCHEMA,
        "key": cell.key,
        "training": training.key,
        "spec": cell.spec.model_dump(mode="json"),
        "labels": {**grid.labels, **_labels(cell)},
        "norm_layer": grid.backbone.norm_layer,
        "inference": "transductive" if transductive else "inductive",
        "episodes_digest": outcome.episodes_digest,
        "accuracies": [round(float(value), 6) for value in outcome.robust.mean(1)],
        "clean": pack(outcome.clean),
        "robust": pack(outcome.robust),
        "chosen_step": trained.chosen_step,
        "history": trained.history,
        "timings": {
            "train_seconds": trained.seconds,
            "adapt_ms_per_task": outcome.adapt_ms_per_task,
            "attack_ms_per_task": outcome.attack_ms_per_task,
        },
        "flags": [],
        "parameters": trained.parameters,
        "device": device_name(device),
        "precision": "float32",
        "plans": dict(plans),
        "versions": {
            "robustbench_meta": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
