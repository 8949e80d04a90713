"""Robust transfer: adversarial training on the base classes, then nearest centroids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F  # noqa: N812  # torch's own convention
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Toward, Update, Weights
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch

from .baseline import Transfer
from .protonet import Prototypes, class_means


class ATTransfer(Transfer):
    """Train on attacked base classes; classify by calibrated centroids."""

    name: ClassVar[str] = "at-transfer"
    source: ClassVar[str] = (
        "Subramanya, Pirsiavash 2022, arXiv 2204.05432, from its abstract; base classes' centroids are the weights of "
        "their classifier"
    )

    train_attack: str = Field("pgd:steps=7", description="attack in training, with options as 'pgd:steps=7;alpha=0.02'")
    train_eps: float | None = Field(None, ge=0, description="its ε; none: the data set's default")
    calibration: float = Field(0.2, ge=0, le=1, description="share of a centroid that comes from near base classes")
    near: int = Field(3, ge=1, description="how many base classes are near")
    scale: float = Field(10.0, gt=0, description="factor on the cosines")

    def training_attack(self) -> tuple[str, float | None]:
        """The options `train_attack` and `train_eps`."""
        return self.train_attack, self.train_eps

    def base_logits(self, model: Model, weights: Weights, x: Tensor) -> Tensor:
        """scale·cos(f, w) over the base classes."""
        return self._cosines(model.features(weights, x), weights["head.weight"])

    def base_objective(self, ops: Operations, theta: State, images: Batch) -> list[Update | Toward]:
        """Cross-entropy on attacked images."""
        classifier = ops.base_classifier(theta)
        return [Update(ops.loss(classifier, ops.perturb(classifier, images)))]

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Prototypes:
        """(1 − calibration)·mean direction of a class + calibration·mean of the nearest base classes' directions."""
        own = F.normalize(class_means(model.features(state, support.x), support.y, model.way), dim=-1)
        base = F.normalize(state["head.weight"], dim=-1)
        cosines = own @ base.T
        least = cosines.topk(min(self.near, len(base)), dim=-1).values[:, -1:]
        chosen = (cosines >= least).to(own.dtype)
        towards = chosen @ base / chosen.sum(1, keepdim=True)
        return Prototypes(state, (1 - self.calibration) * own + self.calibration * towards)

    def logits(self, model: Model, state: Prototypes, x: Tensor) -> Tensor:
        """scale·cos(f(x), c_k)."""
        return self._cosines(model.features(state.weights, x), state.prototypes)

    def _cosines(self, features: Tensor, directions: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(directions, dim=-1).T


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring at-transfer."""
    register(ATTransfer)
