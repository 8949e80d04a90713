"""One training and its cells: checked, meta-trained or loaded, evaluated, and their records; in any process."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_meta import __version__
from robustbench_meta.checks import unchecked
from robustbench_meta.contracts import Weights
from robustbench_meta.devices import device_name, peak_memory, reset_peak_memory
from robustbench_meta.engine import Engine, Plan
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.evaluation import Outcome, evaluate, test_episodes
from robustbench_meta.executors import Hear, Job
from robustbench_meta.grid import Cell, Grid, Surrogate, Training
from robustbench_meta.lanes import Lanes
from robustbench_meta.locking import alone_at
from robustbench_meta.precision import computing_in
from robustbench_meta.selfcheck import can_be_vmapped, check_declared, may_be_vmapped
from robustbench_meta.store import SCHEMA, Store, pack, read_checkpoint
from robustbench_meta.surrogates import file_digest
from robustbench_meta.training import Trained, make_engine, meta_train
from robustbench_meta.tuning import compiled_plan, compiles, default_plan, measured_plan

_log = logging.getLogger(__name__)
FEW = 8
"""Of `Plan.few` at test: for the searches that go on with the few examples that withstand."""
MEASURE_FROM = 100
"""Meta-steps or episodes from which on it pays to measure which plan is fastest."""
_CHANGED = "code or data changed while the run was under way; give the same command again"
_PACKAGES = ("torch", "torchattacks", "numpy", "pillow", "matplotlib")


@dataclass(frozen=True)
class Workplace:
    """Where trainings are done: their grid, the folder of the checkpoints, the device, and lanes to share out."""

    grid: Grid
    store: Store
    device: torch.device
    lanes: Lanes


def do_job(place: Workplace, job: Job, hear: Hear) -> None:
    """Train (or load) one learner and evaluate its cells; a cell that fails costs no other.

    The checkpoint is written here, into the results folder, which all workers must see; the records are told, and
    the one who hears them writes them.

    Args:
        place: where.
        job: which training, and which of its cells.
        hear: see `Executor.run`.

    Raises:
        StorageError: the checkpoint cannot be written.
    """
    training = next((each for each in place.grid.trainings if each.key == job.training), None)
    cells = [cell for cell in place.grid.cells if cell.key in set(job.cells)]
    if training is None or len(cells) < len(job.cells):
        for key in job.cells:
            hear("cell_failed", key=key, reason=_CHANGED)
    else:
        _do_training(place, training, cells, hear)


def _do_training(place: Workplace, training: Training, cells: list[Cell], hear: Hear) -> None:
    grid, device = place.grid, place.device
    hear("training_progress", training=training.title, step=0, steps=training.spec.meta_steps, metrics={})
    count = cells[0].spec.episodes
    try:
        with computing_in(training.spec.precision, device):
            vmap = self_check(place, training)
            trained = _train(place, training, vmap, hear)
            engine, _ = make_engine(grid, training, device, Plan(), place.lanes)
            at_test = test_plan(place, training, count, vmap)
            engine.plan = at_test = replace(at_test, few=FEW if vmap else 0)
            surrogates = _surrogates(place, cells, hear)
            cells = [cell for cell in cells if cell.surrogate is None or cell.surrogate.key in surrogates]
            if not cells:
                return
            _forget_memory(place)
            outcomes = evaluate(
                engine, trained.weights, grid.splits.test.to(device), cells, device,
                lambda done: hear("evaluation_progress", training=training.title, done=done, total=len(cells) * count),
                battery=grid.battery, surrogates=surrogates,
            )  # fmt: skip
            memory = {"train_bytes": trained.peak_memory, "test_bytes": _most_memory(place)}
    except StorageError:
        raise
    except Exception as error:  # a learner is a plugin, and may raise anything: its cells fail, the grid goes on
        _log.debug("%s failed", training.title, exc_info=True)
        for cell in cells:
            hear("cell_failed", key=cell.key, reason=_reason(training, error))
        return
    plans = {"train": trained.plan, "test": asdict(at_test)}
    for cell in cells:
        outcome = outcomes[cell.key]
        if isinstance(outcome, BenchError):
            hear("cell_failed", key=cell.key, reason=str(outcome))
        else:
            hear("cell_finished", record=_record(grid, cell, outcome, trained, device, plans, memory))


def _surrogates(place: Workplace, cells: list[Cell], hear: Hear) -> dict[str, tuple[Engine, Weights]]:
    """The models on which these cells' transferred attacks are made, by key: loaded, or trained first.

    One that cannot be had fails the cells that want it.
    """
    found = {}
    for surrogate in {cell.surrogate.key: cell.surrogate for cell in cells if cell.surrogate is not None}.values():
        try:
            found[surrogate.key] = _surrogate(place, surrogate, hear)
        except StorageError:
            raise
        except Exception as error:  # as of a learner
            _log.debug("surrogate %s failed", surrogate.label, exc_info=True)
            for cell in cells:
                if cell.surrogate is not None and cell.surrogate.key == surrogate.key:
                    hear("cell_failed", key=cell.key, reason=f"surrogate: {_reason(surrogate.training, error)}")
    return found


def _surrogate(place: Workplace, surrogate: Surrogate, hear: Hear) -> tuple[Engine, Weights]:
    training = surrogate.training
    vmap = self_check(place, training)
    engine, like = make_engine(place.grid, training, place.device, Plan())
    engine.plan = default_plan(place.device, 8) if vmap else Plan("loop", "loop", 8)
    if surrogate.path is None:
        return engine, _train(place, training, vmap, hear).weights
    if file_digest(surrogate.path.read_bytes()) != surrogate.key:
        raise BenchError(f"{surrogate.path} is another file than when the run began; give the same command again")
    return engine, read_checkpoint(surrogate.path, like).weights


def self_check(place: Workplace, training: Training) -> bool:
    """Whether the learner may be vmapped on this backbone.

    Raises:
        BenchError: it is not what it declares.
    """
    grid, spec = place.grid, training.spec
    engine, weights = make_engine(grid, training, place.device, Plan(), place.lanes)
    tasks = grid.splits.train.to(place.device).sample([0], spec.way, spec.shot, spec.query, 2)
    who = f"{training.label} on {training.spec.backbone.name}"
    engine.network.precision = "float32"  # what is computed is checked, not how it is rounded
    with computing_in("float32", place.device):
        check_declared(engine, weights, tasks, who)
        if not weights:
            return False
        vmap = may_be_vmapped(engine, weights, tasks)
    engine.network.precision = spec.precision
    if vmap and (spec.precision == "float32" or can_be_vmapped(engine, weights, tasks)):
        return True
    _log.warning(
        "%s cannot be vmapped, or gets another gradient there (torch's batch and instance norm do): "
        "mapping by a plain loop, which is right and slower", who,
    )  # fmt: skip
    return False


def _train(place: Workplace, training: Training, vmap: bool, hear: Hear) -> Trained:
    """From the checkpoint, or by meta-training, which no other process does at the same time."""
    with alone_at(place.store.checkpoint(training.key), training.title):
        return _load_or_train(place, training, vmap, hear)


def _load_or_train(place: Workplace, training: Training, vmap: bool, hear: Hear) -> Trained:
    grid, store, device, lanes = place.grid, place.store, place.device, place.lanes
    _, weights = make_engine(grid, training, device, Plan(), lanes)
    trained = store.load_checkpoint(training.key, weights)
    if trained is None:
        steps, plan = training.spec.meta_steps, train_plan(place, training, vmap)
        _forget_memory(place)
        trained = meta_train(
            grid, training, device, plan,
            lambda step, metrics: hear(
                "training_progress", training=training.title, step=step, steps=steps, metrics=metrics),
            lanes,
        )  # fmt: skip
        trained.peak_memory = _most_memory(place)
        store.save_checkpoint(training.key, trained, training.spec.model_dump(mode="json"))
    return trained


def _forget_memory(place: Workplace) -> None:
    place.lanes.peak = 0
    reset_peak_memory(place.device)


def _most_memory(place: Workplace) -> int | None:
    """The peak of the process, this or a lane's, that held most."""
    here = peak_memory(place.device)
    return None if here is None else max(here, place.lanes.peak)


def _reason(training: Training, error: Exception) -> str:
    if isinstance(error, BenchError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{training.title} does not fit in the device's memory: lower --tasks-per-step, --query or the width"
    return f"learner '{training.title}' failed: {type(error).__name__}: {error}"


def train_plan(place: Workplace, training: Training, vmap: bool) -> Plan:
    """The fastest plan for the meta-gradient; a plain loop where vmap is out of the question."""
    grid, device, spec = place.grid, place.device, training.spec
    if not vmap:
        return Plan("loop", "loop", min(8, (spec.tasks_per_step + 1) // 2))
    engine, weights = make_engine(grid, training, device, Plan(), Lanes())
    engine.may_halve = False
    tasks = grid.splits.train.to(device).sample([0], spec.way, spec.shot, spec.query, spec.tasks_per_step)
    seeds = list(range(spec.tasks_per_step))

    def work(plan: Plan) -> Tensor:
        engine.plan = plan
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # for dropout: two plans are compared
            updates = engine.meta_gradients(weights, tasks, seeds)
        return torch.cat([gradient.flatten() for gradients, _ in updates for gradient in gradients.values()])

    what, plan = _what("meta-gradient", grid, training), default_plan(device, spec.tasks_per_step)
    if spec.meta_steps >= MEASURE_FROM:
        plan = measured_plan(what, device, spec.tasks_per_step, work)
    if grid.run.compile == "on" and compiles(plan, work):
        return replace(plan, compiled=True)
    if grid.run.compile == "auto" and device.type == "cuda":
        return compiled_plan(what, device, spec.tasks_per_step, plan, work, spec.meta_steps)
    return plan


def test_plan(place: Workplace, training: Training, count: int, vmap: bool) -> Plan:
    """By the work that most attacks repeat: the gradient of adapted models in their queries' pixels."""
    grid, device, spec = place.grid, place.device, training.spec
    most = min(count, 16 if device.type == "cpu" else 128)
    if not vmap:
        return Plan("loop", "loop", min(8, most))
    if count < MEASURE_FROM:
        return default_plan(device, most)
    engine, weights = make_engine(grid, training, device, Plan(), Lanes())
    engine.may_halve = False
    engine.set_mode(training=False)
    tasks = test_episodes(grid.splits.test.to(device), spec, range(most))
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
        "code": spec.code,
        **{name: getattr(spec, name).model_dump(mode="json") for name in ("learner", "backbone")},
        "training_attack": spec.attack.model_dump(mode="json") if spec.attack else None,
        **{name: getattr(spec, name) for name in ("way", "shot", "query", "precision")},
        "shape": list(grid.setting.shape),
    }


def _labels(cell: Cell) -> dict[str, str]:
    """What tables show of the learner, its training attack, the attack, ε, and what the attack began from."""
    threat = cell.training.attack
    return {
        "learner": cell.learner,
        "attack": cell.attack,
        "eps": cell.eps,
        "training_attack": threat.label if threat else "none",
        "training_eps": threat.eps.text if threat else "0",
        "surrogate": cell.surrogate.label if cell.surrogate else "none",
        "warm_start": cell.threat.sweep[-1].text if cell.spec.attack.sweep else "",
    }


def _record(
    grid: Grid, cell: Cell, outcome: Outcome, trained: Trained, device: torch.device, plans: Mapping[str, Any],
    memory: Mapping[str, int | None],
) -> dict[str, Any]:  # fmt: skip
    """A cell's record: everything that a row needs, and what it takes to check or repeat it. Plain data."""
    training = cell.training
    transductive = grid.setting.transductive or training.learner.transductive
    certificate = outcome.certificate
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
            "check_ms_per_task": outcome.check_ms_per_task,
        },
        "memory": dict(memory),
        "method": cell.threat.attack.how(),
        "flags": certificate.flags if certificate is not None else unchecked(cell.spec.episodes),
        "checks": certificate.plain() if certificate is not None else None,
        "parameters": trained.parameters,
        "device": device_name(device),
        "precision": training.spec.precision,
        "plans": dict(plans),
        "versions": {
            "robustbench_meta": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
