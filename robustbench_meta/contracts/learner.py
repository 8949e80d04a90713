"""What a meta-learner must offer, and what it is given."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta.contracts.plugin import Plugin, Setting
from robustbench_meta.contracts.state import State, Weights
from robustbench_meta.contracts.tasks import Batch, TaskBatch

Augmentation = Literal["none", "crop", "flip", "jitter", "crop+flip", "crop+jitter", "flip+jitter", "crop+flip+jitter"]


class Model(Protocol):
    """A backbone as a pure function, for ONE task.

    It reads the network's weights and leaves the learner's own (`learner.…`) aside.
    """

    way: int

    @property
    def training(self) -> bool:
        """Whether this is meta-training, as modules such as dropout have it."""
        ...

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of the features of one image, such as (channels, height, width); () where the backbone does not say."""
        ...

    @property
    def head(self) -> Sequence[str]:
        """Names of the weights of the last layer.

        Raises:
            PluginError: the backbone names none.
        """
        ...

    @property
    def body(self) -> Sequence[str]:
        """Names of all other weights of the network; raises as `head`."""
        ...

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Outputs [n, outputs] of the backbone with these weights on x [n, *shape]."""
        ...

    def features(self, weights: Weights, x: Tensor) -> Tensor:
        """What the head is given [n, features]."""
        ...

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The data set's loss, averaged over the examples: a scalar."""
        ...


class Update(NamedTuple):
    """One step of the meta-optimiser: a loss a task [tasks], and a factor on the meta learning rate."""

    loss: Tensor
    rate: float = 1.0


class Toward(NamedTuple):
    """One step of the meta-optimiser along θ − φ, averaged over tasks: with SGD, θ moves towards the adapted φ.

    φ's tree is a dict of weights with the names of θ; names that it has besides are ignored, those it lacks stay.
    """

    adapted: State
    rate: float = 1.0


class BaseTraining(NamedTuple):
    """Ordinary supervised training on all base classes (those of the training split)."""

    steps: int
    """So many of the meta-steps, the first ones."""
    images: int
    """In a batch."""


class Operations(Protocol):
    """What an objective is written in: operations on ALL tasks of a batch at once. The engine maps them."""

    progress: float
    """The share of meta-training that is done, from 0 to below 1."""

    def adapt(self, theta: State, support: Batch, **settings: Any) -> State:
        """One adapted state a task: the learner's `adapt`, `inner_steps` times, settings passed on."""
        ...

    def trajectory(self, theta: State, support: Batch, **settings: Any) -> list[State]:
        """The same, with the states after each inner step."""
        ...

    def logits(self, state: State, x: Tensor) -> Tensor:
        """Logits [tasks, n, way] of x [tasks, n, *shape]."""
        ...

    def loss(self, state: State, batch: Batch) -> Tensor:
        """The loss of each task [tasks]."""
        ...

    def perturb(self, state: State, batch: Batch) -> Batch:
        """The batch attacked, with the learner's training attack, through `state`; data, not differentiated."""
        ...

    def surrogate(self, batch: Batch) -> State:
        """A separate model for the training attack to differentiate (see `Learner.surrogate_backbone`)."""
        ...

    def base_classifier(self, theta: State) -> State:
        """θ as a classifier of the base classes, whose logits are the learner's `base_logits`."""
        ...


class AnyLearner(Plugin):
    """A meta-learning method: how it adapts to ONE task, and its objective over ALL tasks of a meta-step.

    `adapt` and `logits` are pure functions of explicit state, written without a task axis. The
    state is any pytree of tensors; before the first inner step it is θ.
    """

    transductive: ClassVar[bool] = False
    """True if predictions of one query depend on the other queries, whatever the backbone."""
    theta_predicts: ClassVar[bool] = True
    """False if θ alone gives no logits (a prototype head): then an attack on the support set is made
    on the state adapted to the clean support set, instead of on θ."""

    @property
    def takes_step(self) -> bool:
        """Whether `adapt` wants the number of the inner step."""
        return "step" in inspect.signature(self.adapt).parameters

    def outputs(self, setting: Setting) -> int | None:
        """How many outputs the backbone shall have; None for its features."""
        return setting.way

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ at the start of meta-training, from freshly initialised backbone weights and the shape of its features.

        Meta-parameters of the learner's own are added under names that begin with `learner.`.
        """
        return weights

    def inner_steps(self, training: bool) -> int:
        """How many times `adapt` is applied to a task."""
        return 1

    @abstractmethod
    def adapt(self, model: Model, state: Any, support: Batch, **settings: Any) -> Any:
        """One inner step on ONE task: support.x [way·shot, *shape], support.y [way·shot].

        An `adapt` with a parameter `step` is given the number of the inner step, from 0.
        """

    @abstractmethod
    def logits(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """Logits [n, way] of ONE task's x [n, *shape]."""

    def smoothing_sigma(self) -> float:
        """σ of the Gaussian noise on images that `logits` averages over (randomised smoothing); 0: none."""
        return 0.0

    def unsmoothed(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """Logits [n, way] of the classifier that is smoothed, without noise: what a certificate is computed from."""
        return self.logits(model, state, x)

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """The meta-updates of a meta-step, in order: losses that are differentiated, or states to move towards."""
        return [Update(self.query_loss(ops, ops.adapt(theta, tasks.support), tasks.query))]

    def query_loss(self, ops: Operations, adapted: State, query: Batch) -> Tensor:
        """The loss of adapted states on queries, a task each [tasks], regularisers and all: what defences call."""
        return ops.loss(adapted, query)

    def base_training(self, meta_steps: int) -> BaseTraining | None:
        """Supervised training on the base classes, before episodes or, if it takes all meta-steps, instead of them."""
        return None

    def base_logits(self, model: Model, weights: Weights, x: Tensor) -> Tensor:
        """Logits [n, base classes] of x [n, *shape] in supervised training."""
        return model(weights, x)

    def base_objective(self, ops: Operations, theta: State, images: Batch) -> list[Update | Toward]:
        """The meta-updates of a step of supervised training.

        The batch comes in parts: x [parts, n, *shape], y [parts, n] of 0 … base classes−1.
        """
        return [Update(ops.loss(ops.base_classifier(theta), images))]

    def training_attack(self) -> tuple[str, float | None] | None:
        """The attack (as typed: 'pgd:steps=7') and ε that `ops.perturb` uses; ε None: the data set's default."""
        return None

    def surrogate_backbone(self) -> str | None:
        """The backbone of `ops.surrogate`, as typed; None if there is no need of one."""
        return None

    @abstractmethod
    def make_optimizer(self, theta: Weights) -> torch.optim.Optimizer:
        """The meta-optimiser of θ."""

    def rate_factor(self, progress: float) -> float:
        """A factor on the meta-optimiser's rates when this share of meta-training is done."""
        return 1.0

    def train_tasks(self, setting: Setting) -> tuple[int, int, int]:
        """Way, shot and query of the tasks of meta-training."""
        return setting.way, setting.shot, setting.query

    def augmentation(self) -> Augmentation:
        """How images are varied in meta-training."""
        return "none"

    def obstacle(self, setting: Setting) -> str | None:
        """Why the learner cannot work in this setting; None if it can."""
        return None


class Learner(AnyLearner):
    """A meta-learning method with the options of meta-training: subclass this one."""

    meta_lr: float = Field(1e-3, gt=0, description="learning rate of the meta-update")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="meta-optimiser")
    momentum: float = Field(0.0, ge=0, lt=1, description="Nesterov momentum of optimizer=sgd")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the meta-optimiser")
    schedule: Literal["constant", "linear", "cosine", "step"] = Field(
        "constant", description="of meta_lr: constant, falling to 0, or step: times 0.1 after each third"
    )
    train_way: int | None = Field(None, ge=2, description="way of the tasks of meta-training; none: as in the test")
    train_shot: int | None = Field(None, ge=1, description="their support images a class; none: as in the test")
    train_query: int | None = Field(None, ge=1, description="their query images a class; none: as in the test")
    augment: Augmentation = Field("none", description="how images are varied in meta-training")

    def make_optimizer(self, theta: Weights) -> torch.optim.Optimizer:
        """By the options `optimizer`, `meta_lr`, `momentum` and `weight_decay`."""
        weights = list(theta.values())
        if self.optimizer == "adam":
            return torch.optim.Adam(weights, lr=self.meta_lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            weights, lr=self.meta_lr, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay
        )

    def rate_factor(self, progress: float) -> float:
        """By the option `schedule`."""
        if self.schedule == "linear":
            return 1 - progress
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 0.1 ** int(3 * progress) if self.schedule == "step" else 1.0

    def train_tasks(self, setting: Setting) -> tuple[int, int, int]:
        """By the options `train_way`, `train_shot` and `train_query`."""
        return self.train_way or setting.way, self.train_shot or setting.shot, self.train_query or setting.query

    def augmentation(self) -> Augmentation:
        """The option `augment`."""
        return self.augment
