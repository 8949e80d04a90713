"""Meta-training: the loop, the choice of the checkpoint on validation tasks, and going on where it was left."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache

import torch
from torch import nn

from robustbench_meta.contracts import Plugin, Setting, Weights
from robustbench_meta.contracts.state import OWN, feature_shape, trainable
from robustbench_meta.contracts.tasks import Batch, TaskBatch, TaskSource
from robustbench_meta.contracts.threat_model import DeferredViolations
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.augmentation import augmented
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.network import Network
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.engine.training_snapshots import TrainingSnapshots, TrainingState
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.experiment.checkpoints import Trained
from robustbench_meta.experiment.grid import Grid, Training
from robustbench_meta.registry.file_reads import files_read, unnamed
from robustbench_meta.runtime.devices import wait
from robustbench_meta.runtime.seeds import seed_from, seeded
from robustbench_meta.runtime.tensor_snapshot import Snapshot

_log = logging.getLogger(__name__)
Report = Callable[[int, dict[str, float]], None]


def make_engine(
    grid: Grid, training: Training, device: torch.device, plan: Plan, cores: Cores | None = None
) -> tuple[Engine, Weights]:
    """The engine of a training and θ as freshly initialised from the training's seed.

    Cores are for the CPU: without any, and on other devices, chunks of tasks go one after the other.
    """
    setting, seed = grid.setting, training.spec.seed
    with _reading(training.backbone):
        module = _build(
            training.backbone, setting.shape, training.learner.outputs(setting), seed_from(seed, "init"), device
        )
    network = Network(module, setting.loss, setting.way, training.spec.precision)
    engine = Engine(
        training.learner, network, event_ndim=len(setting.shape),
        transductive=training.transductive, plan=plan, ways=(setting.way, training.learner.train_tasks(setting)[0]),
        base_classes=setting.base_classes,
        cores=cores if cores is not None and device.type == "cpu" else Cores(),
    )  # fmt: skip
    engine.set_mode(training=True)
    if training.attack is not None:
        threat = training.attack
        engine.deferred = DeferredViolations() if device.type == "cuda" else None  # a CPU need not wait
        engine.attack = guarded(threat.attack, threat.model, engine.deferred)
    if training.surrogate is not None:
        with _reading(training.surrogate):
            separate = _build(training.surrogate, setting.shape, setting.way, seed_from(seed, "surrogate"), device)
        engine.surrogate_network = Network(separate, setting.loss, setting.way, training.spec.precision)
        engine.surrogate_weights = {name: weight.detach() for name, weight in separate.named_parameters()}
    with seeded(seed_from(seed, "init of the learner"), device), _reading(training.learner):
        network_weights = trainable(module)
        weights = training.learner.init(network_weights, feature_shape(module))
    unknown_names = [name for name in weights if name not in network_weights and not name.startswith(OWN)]
    if unknown_names:
        raise PluginError(
            f"learner '{training.learner.name}': init returned {', '.join(unknown_names[:3])}, which the network does "
            f"not have; names of meta-parameters of your own begin with '{OWN}'"
        )
    return engine, {name: weight.to(device).requires_grad_() for name, weight in weights.items()}


@contextmanager
def _reading(plugin: Plugin) -> Iterator[None]:
    """Warn of files that are read inside and that no option names."""
    with files_read() as read:
        yield
    for path in unnamed(plugin, read):
        _warn(f"'{plugin.name}' read {path}, which no option of type File names: results made with it stay, unnoticed, "
              "when it is exchanged; see 'A file' in docs/plugins.md")  # fmt: skip


@cache
def _warn(message: str) -> None:
    """Once a process."""
    _log.warning("%s", message)


def _build(backbone: object, shape: tuple[int, ...], outputs: int | None, seed: int, device: torch.device) -> nn.Module:
    with seeded(seed):
        module: nn.Module = backbone.build(shape, outputs)  # type: ignore[attr-defined]  # a Backbone plugin
    name = str(getattr(backbone, "name", backbone))
    _check_module(module, name)
    _check_pure(module, shape, name)
    return module.to(device)


def _check_module(module: object, name: str) -> None:
    """Whatever a plugin built must be a module whose weights are numbers."""
    if not isinstance(module, nn.Module):
        raise PluginError(
            f"backbone '{name}' built {type(module).__name__}; expected a torch.nn.Module"
            + (": is a `return` missing?" if module is None else "")
        )
    unfit = [key for key, weight in module.named_parameters() if not weight.isfinite().all()]
    if unfit:
        raise PluginError(f"backbone '{name}' begins with weights that are not finite: {', '.join(unfit)}")


def _check_pure(module: nn.Module, shape: tuple[int, ...], name: str) -> None:
    """Buffers may hold constants (a normalisation), but nothing that changes between calls; images stay as they are."""
    with seeded(0), torch.no_grad():
        x = torch.rand(4, *shape)
        buffers, images = Snapshot(dict(module.named_buffers())), Snapshot({"x": x})
        module(x)
    if images.written():
        raise BenchError(
            f"backbone '{name}' changes its images in place, which others see after it; compute new tensors "
            "(x = x - 0.5, not x.sub_(0.5); no inplace=True before the first layer)"
        )
    changed = buffers.changed()
    if changed:
        raise BenchError(
            f"backbone '{name}' keeps state between calls ({', '.join(changed)}); a backbone must be a pure function "
            "of its weights: use track_running_stats=False"
        )


def meta_train(
    grid: Grid,
    training: Training,
    device: torch.device,
    plan: Plan,
    report: Report | None = None,
    cores: Cores | None = None,
    keeper: TrainingSnapshots | None = None,
    state: TrainingState | None = None,
) -> Trained:
    """Meta-train a learner on the training split; keep the θ that does best on the validation tasks.

    The criterion is the accuracy of adapted states on clean queries, or where the learner has a training attack the
    mean of those on clean and on attacked queries, at the inner steps of the test; of equal ones, the least loss. Test
    tasks are never seen.

    Args:
        grid: the run.
        training: what to train.
        device: where.
        plan: how to map over tasks.
        report: told the step, and the numbers of the last validation.
        cores: of the CPU.
        keeper: keeps the state now and then; None: nobody does.
        state: what to go on from, to the same numbers bit for bit; None: from the beginning.

    Raises:
        Stopped: the keeper was told to stop, and has the state.
        BenchError: the weights diverged, or an attack did what it must not.
    """
    engine, weights = make_engine(grid, training, device, plan, cores)
    if not weights:  # nothing to learn, as with prototypes in pixel space
        return Trained(weights, plan=asdict(plan))
    try:
        return _steps(engine, weights, grid, training, device, report, keeper, state)
    finally:
        engine.close_pool()


def _steps(
    engine: Engine, weights: Weights, grid: Grid, training: Training, device: torch.device, report: Report | None,
    keeper: TrainingSnapshots | None, state: TrainingState | None,
) -> Trained:  # fmt: skip
    spec = training.spec
    optimizer = training.learner.make_optimizer(weights)
    rates = [group["lr"] for group in optimizer.param_groups]
    trained, done = Trained(weights), 0
    if state is not None:
        trained, done, engine.judged = state.trained, state.step, state.judged
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state.weights[name])
        optimizer.load_state_dict(state.optimizer)
    started = time.perf_counter() - trained.seconds
    base = training.learner.base_training(spec.meta_steps)
    source, validation = grid.splits.train.to(device), grid.splits.validation.to(device)
    for step in range(done + 1, spec.meta_steps + 1):
        engine.progress = (step - 1) / spec.meta_steps
        supervised = base is not None and step <= base.steps
        images = base.images if base is not None and supervised else 0
        whole = engine.transductive or engine.network.reads_support
        tasks = training_tasks(source, training, grid.setting, step, images, whole=whole)
        seeds = [seed_from(spec.seed, "training attack", step, task) for task in range(tasks.tasks)]
        factor = training.learner.rate_factor(engine.progress)
        for gradients, rate in engine.meta_gradients(weights, tasks, seeds, base=supervised):
            _step(optimizer, weights, gradients, [each * rate * factor for each in rates])
        if validates_at(step, spec.meta_steps, spec.validations):
            if engine.deferred is not None:
                engine.deferred.settle()
            entry = {"step": float(step), **engine.judged.means(), **_validate(engine, weights, validation, training)}
            engine.judged = QueryMetrics()
            if not torch.stack([weight.isfinite().all() for weight in weights.values()]).all():
                raise BenchError(
                    f"meta-training of {training.title} diverged: weights are not finite at step {step}; "
                    "lower meta_lr or alpha"
                )
            if not math.isfinite(entry["validation_loss"]):
                raise BenchError(
                    f"meta-training of {training.title}: the validation at step {step} can tell nothing, for the loss "
                    "of the validation queries is not finite; lower meta_lr or the inner rate, guard divisions and "
                    "logarithms"
                )
            if all(_merit(entry) > _merit(earlier) for earlier in trained.history):
                trained.chosen_step = step
                trained.weights = {name: weight.detach().clone() for name, weight in weights.items()}
            trained.history.append(entry)
        if report is not None:
            report(step, trained.history[-1] if trained.history else {})
        if keeper is not None and keeper.wants(step, spec.meta_steps):
            if engine.deferred is not None:
                engine.deferred.settle()
            wait(device)
            trained.seconds = time.perf_counter() - started
            keeper.keep(TrainingState(
                step, weights, optimizer.state_dict(), trained, engine.judged, engine.plan, device.type,
            ))  # fmt: skip
    wait(device)
    trained.seconds = time.perf_counter() - started
    trained.plan = asdict(engine.plan)
    trained.weights = {name: weight.detach() for name, weight in trained.weights.items()}
    return trained


def _merit(entry: Mapping[str, float]) -> tuple[float, float]:
    """What a validation is chosen by: its accuracy, and of equal ones (all at chance, say) the least loss."""
    return entry["validation_accuracy"], -entry["validation_loss"]


def validates_at(step: int, steps: int, times: int) -> bool:
    """True at `times` steps spread evenly over `steps`, the last one among them."""
    times = min(times, steps)
    return step * times // steps > (step - 1) * times // steps


def training_tasks(
    source: TaskSource, training: Training, setting: Setting, step: int, images: int = 0, *, whole: bool = False
) -> TaskBatch:
    """The tasks of a meta-step, or so many images of the base classes, as queries of tasks without support.

    Images come in equal parts, which cores share out; in one, `whole`, where they influence each other.
    """
    spec, augment = training.spec, training.learner.augmentation()
    seed = seed_from(spec.seed, "train", step)
    if images:
        parts = 1 if whole else max(n for n in range(1, spec.tasks_per_step + 1) if images % n == 0)
        x, y = source.examples(seed, images)
        batch = Batch(x.view(parts, -1, *x.shape[1:]), y.view(parts, -1))
        tasks = TaskBatch(Batch(batch.x[:, :0], batch.y[:, :0]), batch)
    else:
        tasks = source.sample([seed], *training.learner.train_tasks(setting), spec.tasks_per_step)
    if augment == "none":
        return tasks
    support, query = (
        Batch(augmented(x, augment, seed_from(seed, what)), y)
        for what, (x, y) in zip(("support", "query"), tasks, strict=True)
    )
    return TaskBatch(support, query)


def _step(optimizer: torch.optim.Optimizer, weights: Weights, gradients: Weights, rates: list[float]) -> None:
    for name, weight in weights.items():
        weight.grad = gradients[name]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step()


def _validate(engine: Engine, weights: Weights, source: TaskSource, training: Training) -> dict[str, float]:
    """Loss and accuracy of adapted states on the queries of the validation tasks, always the same ones.

    `validation_accuracy`, the criterion, is that on clean queries, or where the learner has a training attack the mean
    of those on clean and on attacked queries.
    """
    spec = training.spec
    engine.set_mode(training=False)
    verdict = engine.judge(
        weights,
        lambda places: source.sample(
            [seed_from("episodes", "validation", place) for place in places], spec.way, spec.shot, spec.query
        ),
        [seed_from(spec.seed, "validation attack", place) for place in range(spec.validation_tasks)],
    )
    engine.set_mode(training=True)
    clean, attacked = verdict.clean.means(), verdict.attacked.means()
    found = {f"validation_clean_{name}": value for name, value in clean.items()}
    found |= {f"validation_attacked_{name}": value for name, value in attacked.items()}
    both = {name: (value + attacked.get(name, value)) / 2 for name, value in clean.items()}
    return {f"validation_{name}": value for name, value in both.items()} | (found if attacked else {})
