"""Relation networks."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from pydantic import Field
from torch import Tensor, nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Setting, Weights
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.errors import PluginError

from .protonet import OnFeatures, Prototypes, class_means


class RelationNet(OnFeatures):
    """A small network compares maps of features."""

    name: ClassVar[str] = "relationnet"
    source: ClassVar[str] = "Sung et al. 2018, arXiv 1711.06025, section 3 (class maps are means, theirs sums)"

    hidden: int = Field(8, ge=1, description="units of the comparison's last hidden layer")

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ and the comparison's: two 3×3 convolutions, two linear layers."""
        if len(feature_shape) != 3:
            raise PluginError(
                f"learner '{self.name}' compares maps of features (channels, height, width), and the backbone's are "
                f"{feature_shape or 'of a shape that it does not tell'}: use conv4"
            )
        channels = feature_shape[0]
        units = prod(feature_shape)
        comparison = nn.ModuleDict({
            "conv1": nn.Conv2d(2 * channels, channels, 3, padding=1),
            "conv2": nn.Conv2d(channels, channels, 3, padding=1),
            "fc1": nn.Linear(units, self.hidden), "fc2": nn.Linear(self.hidden, 1),
        })  # fmt: skip
        return weights | {f"learner.{name}": weight.detach() for name, weight in comparison.named_parameters()}

    def adapt(self, model: Model, state: Weights, support: Batch, **settings: Any) -> Prototypes:
        """The mean map of each class [way, features]."""
        return Prototypes(state, class_means(model(state, support.x), support.y, model.way))

    def logits(self, model: Model, state: Prototypes, x: Tensor) -> Tensor:
        """The comparison's score before its sigmoid [n, way]."""
        theta, way = state.weights, len(state.prototypes)
        queries = model(theta, x).view(len(x), 1, *model.feature_shape).expand(-1, way, -1, -1, -1)
        classes = state.prototypes.view(1, way, *model.feature_shape).expand(len(x), -1, -1, -1, -1)
        maps = torch.cat([queries, classes], 2).flatten(0, 1)
        for layer in ("learner.conv1", "learner.conv2"):
            maps = F.conv2d(maps, theta[f"{layer}.weight"], theta[f"{layer}.bias"], padding=1)
            maps = F.relu(F.group_norm(maps, 1))
        hidden = F.relu(F.linear(maps.flatten(1), theta["learner.fc1.weight"], theta["learner.fc1.bias"]))
        return F.linear(hidden, theta["learner.fc2.weight"], theta["learner.fc2.bias"]).view(len(x), way)

    def query_loss(self, ops: Operations, adapted: State, query: Batch) -> Tensor:
        """Squared distance of the scores in (0, 1) to 1 for the right class and 0 for the others (equation 2)."""
        scores = ops.logits(adapted, query.x).sigmoid()
        right = query.y[..., None] == torch.arange(scores.shape[-1], device=scores.device)
        return (scores - right.to(scores.dtype)).square().sum(-1).mean(-1)

    def obstacle(self, setting: Setting) -> str | None:
        """It needs images, whose features are maps."""
        if len(setting.shape) != 3:
            return f"it compares maps of features, and shape {setting.shape} has none: use images and conv4"
        return super().obstacle(setting)


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring relationnet."""
    register(RelationNet)
