"""Transfer: ordinary training on the base classes, then a new head for each task; no meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import BaseTraining, Learner, Model, Operations, Setting, Toward, Update, Weights
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch

from .protonet import Prototypes, class_means
from .reptile import minibatch


class Fitted(NamedTuple):
    """The adapted state: θ and the new head [way, features], its bias [way]."""

    theta: Weights
    weight: Tensor
    bias: Tensor


class Transfer(Learner):
    """A network with a head for the base classes, trained on batches of their images."""

    theta_predicts: ClassVar[bool] = False

    base_batch: int = Field(64, ge=1, description="images of a step of training on the base classes")

    def outputs(self, setting: Setting) -> int | None:
        """One a base class."""
        return setting.base_classes

    def base_training(self, meta_steps: int) -> BaseTraining | None:
        """All of it."""
        return BaseTraining(meta_steps, self.base_batch)

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """There are no episodes in training; this is the loss of the base classes' head."""
        return self.base_objective(ops, theta, tasks.query)

    def obstacle(self, setting: Setting) -> str | None:
        """It needs base classes to train on, and a softmax over them."""
        if setting.loss != "cross_entropy":
            return f"it trains a classifier of the base classes by cross-entropy, not by the {setting.loss} loss"
        if setting.base_classes < setting.way:
            return f"it trains on base classes, and there are {setting.base_classes}"
        return None


class Baseline(Transfer):
    """Train on all base classes; fit a linear head on the support set."""

    name: ClassVar[str] = "baseline"
    source: ClassVar[str] = "Chen, Liu, Kira, Wang, Huang 2019, arXiv 1904.04232, section 3.2"

    epochs: int = Field(100, ge=1, description="passes over the support set")
    batch: int = Field(4, ge=1, description="support images of a step")
    alpha: float = Field(0.01, gt=0, description="rate of a step; momentum and dampening 0.9, weight decay 0.001")

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Fitted:
        """A head fitted by SGD on the frozen features (momentum and dampening as torch.optim.SGD has them)."""
        features = model.features(state, support.x)
        head = self.begin(features, support.y, model.way)
        velocity = head
        gradient = torch.func.grad(lambda head, x, y: model.loss(self.scores(x, *head), y))
        for step in range(self.epochs * -(-len(support.y) // self.batch)):
            chosen = minibatch(support.y, model.way, step, self.batch)
            slopes = gradient(head, features[chosen], support.y[chosen])
            slopes = tuple(slope + 0.001 * part for slope, part in zip(slopes, head, strict=True))
            velocity = slopes if step == 0 else tuple(0.9 * v + 0.1 * s for v, s in zip(velocity, slopes, strict=True))
            head = tuple(part - self.alpha * speed for part, speed in zip(head, velocity, strict=True))
        return Fitted(state, *head)

    def begin(self, features: Tensor, y: Tensor, way: int) -> tuple[Tensor, ...]:
        """Weights and bias of the new head before its first step: 0, where theirs are drawn."""
        return features.new_zeros(way, features.shape[1]), features.new_zeros(way)

    def scores(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Wf + b."""
        return F.linear(features, weight, bias)

    def logits(self, model: Model, state: Fitted, x: Tensor) -> Tensor:
        """By the new head."""
        return self.scores(model.features(state.theta, x), state.weight, state.bias)


class BaselinePlusPlus(Baseline):
    """Train on all base classes; fit a cosine head on the support set."""

    name: ClassVar[str] = "baseline++"
    source: ClassVar[str] = "Chen, Liu, Kira, Wang, Huang 2019, arXiv 1904.04232, section 3.3"

    scale: float = Field(10.0, gt=0, description="factor on the cosines")

    def begin(self, features: Tensor, y: Tensor, way: int) -> tuple[Tensor, ...]:
        """The classes' mean features, where theirs are drawn; a cosine has no slope at 0."""
        return class_means(features, y, way), features.new_zeros(way)

    def scores(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """scale·cos(f, w)."""
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(weight, dim=-1).T

    def base_logits(self, model: Model, weights: Weights, x: Tensor) -> Tensor:
        """scale·cos(f, w) over the base classes."""
        return self.scores(model.features(weights, x), weights["head.weight"], weights["head.weight"][:, 0])


class MetaBaseline(Transfer):
    """Train on all base classes; then tune cosines to class means."""

    name: ClassVar[str] = "meta-baseline"
    source: ClassVar[str] = "Chen, Liu, Xu, Darrell, Wang 2021, arXiv 2003.04390, section 3"

    base_share: float = Field(0.5, ge=0, le=1, description="share of meta-training, the first, on the base classes")
    scale: float = Field(10.0, gt=0, description="τ, factor on the cosines, before it is learned")

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ and τ."""
        return weights | {"learner.scale": torch.tensor(self.scale)}

    def base_training(self, meta_steps: int) -> BaseTraining | None:
        """The first share."""
        return BaseTraining(round(self.base_share * meta_steps), self.base_batch)

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Prototypes:
        """The mean feature of each class."""
        return Prototypes(state, class_means(model.features(state, support.x), support.y, model.way))

    def logits(self, model: Model, state: Prototypes, x: Tensor) -> Tensor:
        """τ·cos(f(x), c_k)."""
        features = F.normalize(model.features(state.weights, x), dim=-1)
        return state.weights["learner.scale"] * features @ F.normalize(state.prototypes, dim=-1).T

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """Cross-entropy on the queries."""
        return Learner.objective(self, ops, theta, tasks)


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring baseline, baseline++ and meta-baseline."""
    for learner in (Baseline, BaselinePlusPlus, MetaBaseline):
        register(learner)
