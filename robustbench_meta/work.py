"""One task: a learner checked and meta-trained, or its cells evaluated, with their records; in any process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustbench_meta import __version__, blobs
from robustbench_meta.checkpoints import Trained, checkpoint_bytes, checkpoint_name, read_checkpoint, read_file
from robustbench_meta.checks import unchecked
from robustbench_meta.contracts import Weights
from robustbench_meta.devices import device_name, is_lost, peak_memory, reset_peak_memory
from robustbench_meta.engine import Engine, Plan
from robustbench_meta.errors import BenchError, DeviceLostError, StorageError
from robustbench_meta.evaluation import Outcome, evaluate
from robustbench_meta.executors import Hear, Task
from robustbench_meta.grid import Cell, Grid, Surrogate, Training
from robustbench_meta.keeping import Keeper, Notebook
from robustbench_meta.lanes import Lanes
from robustbench_meta.plans import compiled, plan_for
from robustbench_meta.precision import computing_in
from robustbench_meta.records import SCHEMA, pack
from robustbench_meta.selfcheck import can_be_vmapped, check_declared, may_be_vmapped
from robustbench_meta.shelf import Shelf
from robustbench_meta.stopping import Stop, Stopped
from robustbench_meta.surrogates import file_digest
from robustbench_meta.training import make_engine, meta_train
from robustbench_meta.whereabouts import Whereabouts

_log = logging.getLogger(__name__)
WATCH_SECONDS = 1.0
"""Between two reports of which cells are under way."""
_BROKEN = (Exception, SystemExit)
"""What a plugin may raise without costing other learners anything."""
_CHANGED = "code or data changed while the run was under way; give the same command again"
_PACKAGES = ("torch", "torchattacks", "numpy", "pillow", "matplotlib")


class GoneError(BenchError):
    """A checkpoint that was there when the run began is not any more."""


@dataclass(frozen=True)
class Workplace:
    """Where tasks are done."""

    grid: Grid
    shelf: Shelf
    """Of checkpoints and of what is under way."""
    device: torch.device
    lanes: Lanes
    stop: Stop = field(default_factory=Stop)
    watches: bool = False
    """Whether somebody wants to be told which cells are under way."""
    mappable: dict[str, bool] = field(default_factory=dict)
    """What is known of trainings, by key: whether they may be vmapped."""

    def training(self, key: str) -> Training | None:
        """The training of that key, a surrogate's among them."""
        surrogates = [cell.surrogate.training for cell in self.grid.cells if cell.surrogate is not None]
        return next((each for each in [*self.grid.trainings, *surrogates] if each.key == key), None)


def do_task(place: Workplace, task: Task, hear: Hear) -> None:
    """Meta-train one learner, or evaluate some of its cells; a cell that fails costs no other.

    Checkpoints and what is under way are written here, to the shelf; records are told, and the one who hears them
    writes them.

    Args:
        place: where.
        task: what.
        hear: is told the events of `Desk.hear`.

    Raises:
        Stopped: it was told to stop; what can be resumed is kept.
        StorageError: something cannot be written.
        DeviceLostError: this process cannot compute on its CUDA device any more.
    """
    training = place.training(task.training)
    cells = [cell for cell in place.grid.cells if cell.key in set(task.cells)]
    if training is None or len(cells) < len(task.cells):
        if not task.cells:
            hear("training_failed", key=task.training, reason=_CHANGED, lasting=False)
        for key in task.cells:
            hear("cell_failed", key=key, reason=_CHANGED, lasting=False)
        return
    place.stop.check()
    try:
        with computing_in(training.spec.precision, place.device):
            if task.cells:
                _evaluate(place, training, cells, hear)
            else:
                _train(place, training, hear)
    except (StorageError, Stopped):
        raise
    except _BROKEN as error:  # a learner is a plugin, and may raise anything: its cells fail, the grid goes on
        _log.debug("%s failed", training.title, exc_info=True)
        _fail(training, task, error, hear)
        if is_lost(error):
            raise DeviceLostError(_reason(training, error)) from error


def _fail(training: Training, task: Task, error: BaseException, hear: Hear) -> None:
    """Tell what failed by that error: the task, or the one cell that was under way."""
    reason = _reason(training, error)
    if not task.cells:
        hear("training_failed", key=task.training, reason=reason)
    elif isinstance(error, DeviceLostError) and error.cell is not None:
        hear("cell_failed", key=error.cell, reason=reason)
    else:
        for key in task.cells:
            hear("cell_failed", key=key, reason=reason, lasting=not isinstance(error, GoneError))


def _train(place: Workplace, training: Training, hear: Hear) -> None:
    """Meta-train, from the beginning or from where it was left, and write the checkpoint."""
    steps, keeper = training.spec.meta_steps, Keeper(place.shelf, training.key, place.stop)
    state = keeper.state(place.device)
    done = state.step if state is not None else 0
    about = {"training": training.title, "key": training.key, "steps": steps}
    hear("training_progress", **about, step=done, metrics={})
    with place.stop.at_once():
        plan = state.plan if state is not None else train_plan(place, training, self_check(place, training))
    _forget_memory(place)
    trained = meta_train(
        place.grid, training, place.device, plan,
        lambda step, metrics: hear("training_progress", **about, step=step, metrics=metrics),
        place.lanes, keeper, state,
    )  # fmt: skip
    earlier = state.trained.peak_memory if state is not None else None
    trained.peak_memory = max(filter(None, (earlier, _most_memory(place))), default=None)
    spec = training.spec.model_dump(mode="json")
    place.shelf.write(checkpoint_name(training.key), checkpoint_bytes(trained, spec))
    keeper.forget()
    hear("trained", key=training.key)


def _evaluate(place: Workplace, training: Training, cells: list[Cell], hear: Hear) -> None:
    grid, device, count = place.grid, place.device, cells[0].spec.episodes
    hear("evaluation_progress", training=training.title, done=0, total=len(cells) * count)
    vmap = self_check(place, training)
    engine, like = make_engine(grid, training, device, Plan(), place.lanes)
    trained = _checkpoint(place, training, like)
    engine.plan = at_test = test_plan(place, engine, count, vmap)
    surrogates = _surrogates(place, cells, hear)
    cells = [cell for cell in cells if cell.surrogate is None or cell.surrogate.key in surrogates]
    if not cells:
        return
    _forget_memory(place)
    models = [trained.weights, *(theta for _, theta in surrogates.values())]
    how = f"{at_test} on {device_name(device)} of {' '.join(map(blobs.digest, models))}"
    notebook = Notebook(place.shelf, training.key, [cell.key for cell in cells], how)

    def tell(done: int) -> None:
        place.stop.check()  # what it raised at once, something of a plugin may have caught
        hear("evaluation_progress", training=training.title, done=done, total=len(cells) * count)

    with place.stop.at_once():
        outcomes = evaluate(
            engine, trained.weights, grid.splits.test.to(device), cells, device,
            tell,
            battery=grid.battery, surrogates=surrogates, notebook=notebook,
            watch=partial(_telling, hear) if place.watches else None,
        )  # fmt: skip
    memory = {"train_bytes": trained.peak_memory, "test_bytes": _most_memory(place)}
    plans = {"train": trained.plan, "test": asdict(at_test)}
    hear("pages", names=notebook.pages)
    for cell in cells:
        outcome = outcomes[cell.key]
        if isinstance(outcome, BenchError):
            hear("cell_failed", key=cell.key, reason=str(outcome))
        else:
            hear("cell_finished", record=_record(grid, cell, outcome, trained, device, plans, memory))


def _checkpoint(place: Workplace, training: Training, like: Weights) -> Trained:
    data = place.shelf.read(checkpoint_name(training.key))
    if data is None:
        raise GoneError(f"the checkpoint of {training.title} is gone; give the same command again")
    try:
        return read_checkpoint(data, like, training.key)
    except BenchError as error:
        raise BenchError(
            f"the checkpoint {checkpoint_name(training.key)} of {training.title} cannot be used: {error}; "
            "remove it and add --retry-failed, or use --fresh"
        ) from error


@contextlib.contextmanager
def _telling(hear: Hear, whereabouts: Whereabouts) -> Iterator[None]:
    """Inside, which cells are under way is told whenever it changes in this process, and once a second."""
    over = threading.Event()

    def now() -> None:
        hear("at", cells=whereabouts.under_way())

    def tell() -> None:
        while not over.wait(WATCH_SECONDS):
            now()

    whereabouts.moved = now
    thread = threading.Thread(target=tell, name="tell which cells are under way", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _surrogates(place: Workplace, cells: list[Cell], hear: Hear) -> dict[str, tuple[Engine, Weights]]:
    """The models on which these cells' transferred attacks are made, by key.

    One that cannot be had fails the cells that want it.
    """
    found = {}
    for surrogate in {cell.surrogate.key: cell.surrogate for cell in cells if cell.surrogate is not None}.values():
        try:
            found[surrogate.key] = _surrogate(place, surrogate, cells[0].spec.episodes)
        except (StorageError, Stopped, GoneError):
            raise
        except _BROKEN as error:  # as of a learner
            _log.debug("surrogate %s failed", surrogate.label, exc_info=True)
            for cell in cells:
                if cell.surrogate is not None and cell.surrogate.key == surrogate.key:
                    hear("cell_failed", key=cell.key, reason=f"surrogate: {_reason(surrogate.training, error)}")
    return found


def _surrogate(place: Workplace, surrogate: Surrogate, count: int) -> tuple[Engine, Weights]:
    training = surrogate.training
    vmap = self_check(place, training)
    engine, like = make_engine(place.grid, training, place.device, Plan())
    engine.plan = test_plan(place, engine, count, vmap)
    if surrogate.path is None:
        return engine, _checkpoint(place, training, like).weights
    data = read_file(surrogate.path)
    if file_digest(data) != surrogate.key:
        raise BenchError(f"{surrogate.path} is another file than when the run began; give the same command again")
    return engine, read_checkpoint(data, like).weights


def self_check(place: Workplace, training: Training) -> bool:
    """Whether the learner may be vmapped on this backbone.

    Raises:
        BenchError: it is not what it declares.
    """
    if training.key not in place.mappable:
        place.mappable[training.key] = _self_check(place, training)
    return place.mappable[training.key]


def _self_check(place: Workplace, training: Training) -> bool:
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
    if vmap is None:
        return False
    if vmap and (spec.precision == "float32" or can_be_vmapped(engine, weights, tasks)):
        return True
    _log.warning(
        "%s cannot be vmapped, or gets another gradient there (torch's batch and instance norm do): "
        "mapping by a plain loop, which is right and slower", who,
    )  # fmt: skip
    return False


def _forget_memory(place: Workplace) -> None:
    place.lanes.peak = 0
    reset_peak_memory(place.device)


def _most_memory(place: Workplace) -> int | None:
    """The peak of the process, this or a lane's, that held most."""
    here = peak_memory(place.device)
    return None if here is None else max(here, place.lanes.peak)


def _reason(training: Training, error: BaseException) -> str:
    if isinstance(error, BenchError):
        return str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return f"{training.title} does not fit in the device's memory: lower --tasks-per-step, --query or the width"
    return f"learner '{training.title}' failed: {type(error).__name__}: {error}"


def train_plan(place: Workplace, training: Training, vmap: bool) -> Plan:
    """How the tasks of a meta-step are mapped."""
    grid, device, spec = place.grid, place.device, training.spec
    engine, weights = make_engine(grid, training, device, Plan(), Lanes())
    plan = plan_for(device, engine.network.module, spec.tasks_per_step, vmap=vmap, chunk=grid.run.chunk)
    if grid.run.compile == "off" or not vmap:
        return plan
    tasks = grid.splits.train.to(device).sample([0], spec.way, spec.shot, spec.query, spec.tasks_per_step)

    def gradient(plan: Plan) -> Tensor:
        engine.plan = plan
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # for dropout: two plans are compared
            updates = engine.meta_gradients(weights, tasks, list(range(spec.tasks_per_step)))
        return torch.cat([gradient.flatten() for gradients, _ in updates for gradient in gradients.values()])

    return compiled(plan, gradient)


def test_plan(place: Workplace, engine: Engine, count: int, vmap: bool) -> Plan:
    """How so many test episodes are mapped."""
    most = min(count, 16 if place.device.type == "cpu" else 128)
    return plan_for(place.device, engine.network.module, most, vmap=vmap, chunk=place.grid.run.chunk)


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
        "cost": outcome.effort.plain(),
        "memory": dict(memory),
        "method": cell.threat.attack.how(),
        "flags": certificate.flags if certificate is not None else unchecked(cell.spec.episodes),
        "checks": certificate.plain() if certificate is not None else None,
        "gallery": outcome.gallery,
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
