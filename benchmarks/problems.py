"""Pieces of work, the same for everybody: real tasks, the same θ, and our engine with its plan."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor, nn

from benchmarks.flops import Work, work_of
from robustbench_meta.contracts import Weights
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.engine.training import make_engine
from robustbench_meta.experiment.grid import Grid, Training, build_grid
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import context as product
from robustbench_meta.registry.registry import Registry, load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.paths import data_root


@cache
def registry() -> Registry:
    """The plugins that come with the suite."""
    return load_registry(local=False)


@cache
def grid_of(spec: RunSpec) -> Grid:
    """A run's grid with its data loaded, from $ROBUSTBENCH_META_DATA if it needs files."""
    return build_grid(spec, registry(), data_root(None))


@dataclass
class Problem:
    """One training's meta-gradient on the tasks of one meta-step."""

    grid: Grid
    training: Training
    device: torch.device
    engine: Engine
    weights: Weights
    """θ, leaves that require a gradient."""
    tasks: TaskBatch

    @classmethod
    def make(cls, device: torch.device, *, cores: Cores | None = None, double: bool = False, **given: Any) -> Problem:
        """From options as of `bench run`: θ as initialised from seed 0, and tasks of the training split."""
        grid = grid_of(RunSpec.read(**given))
        training = grid.trainings[0]
        engine, weights = make_engine(grid, training, device, Plan(), cores)
        spec = training.spec
        tasks = grid.splits.train.to(device).sample([0], spec.way, spec.shot, spec.query, spec.tasks_per_step)
        if double:
            engine.network.module.double()
            weights = {name: weight.detach().double().requires_grad_() for name, weight in weights.items()}
            tasks = TaskBatch(*(Batch(batch.x.double(), batch.y) for batch in tasks))
        return cls(grid, training, device, engine, weights, tasks)

    @property
    def alpha(self) -> float:
        """The rate of the inner step."""
        return float(getattr(self.training.learner, "alpha"))  # noqa: B009  # a Learner need not have one

    @property
    def steps(self) -> int:
        """Inner steps in meta-training."""
        return self.training.learner.inner_steps(training=True)

    @property
    def eps(self) -> float:
        """ε of the training attack."""
        assert self.training.attack is not None
        return self.training.attack.eps.value

    @property
    def meta_lr(self) -> float:
        """The rate of the meta-optimiser."""
        rate: float = self.training.learner.make_optimizer(self.weights).param_groups[0]["lr"]
        return rate

    def module(self) -> nn.Module:
        """The network with θ in it, made anew: what the other libraries are given."""
        setting = self.grid.setting
        module = self.grid.backbone.build(setting.shape, self.training.learner.outputs(setting))
        like = next(iter(self.weights.values()))
        module = module.to(self.device, like.dtype)
        module.load_state_dict({name: weight.detach() for name, weight in self.weights.items()}, strict=False)
        return module

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The data set's loss as its user would write it."""
        if self.grid.setting.loss == "cross_entropy":
            return F.cross_entropy(logits, y)
        one_hot = torch.eye(logits.shape[-1], device=y.device, dtype=logits.dtype)[y]
        return F.mse_loss(logits, one_hot)

    def work(self) -> Work:
        """Operations of the network on one example."""
        return work_of(self.module(), self.grid.setting.shape)

    def plan_training(self) -> Plan:
        """Use the suite's plan for a meta-training."""
        with self._workplace() as place:
            self.engine.plan = product.train_plan(place, self.grid, self.training, self._vmap(place))
        return self.engine.plan

    def plan_test(self, episodes: int) -> Plan:
        """Use the suite's plan for so many test episodes."""
        with self._workplace() as place:
            self.engine.plan = product.test_plan(place, self.grid, episodes, self._vmap(place))
        return self.engine.plan

    def _vmap(self, place: product.WorkerContext) -> bool:
        return product.self_check(place, self.grid, self.training)

    @contextmanager
    def _workplace(self) -> Iterator[product.WorkerContext]:
        with tempfile.TemporaryDirectory() as folder:
            yield product.WorkerContext(Store(Path(folder)), self.device, self.engine.cores)

    def gradient(self) -> Tensor:
        """Our meta-gradient, end to end."""
        seeds = range(self.tasks.tasks)
        ((gradients, _),) = self.engine.meta_gradients(self.weights, self.tasks, seeds)
        return torch.cat([gradient.flatten() for gradient in gradients.values()])


def with_few_validations(training: Training) -> Training:
    """The same training, judged on one validation task at its end only: its time is that of the meta-steps."""
    return replace(training, spec=training.spec.model_copy(update={"validations": 1, "validation_tasks": 1}))
