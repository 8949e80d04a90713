"""A learner in one file: the nearest centroid in pixel space, the baseline that every learner has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Setting, Weights
from robustbench_meta.contracts.tasks import Batch


class PixelCentroid(Learner):
    """Nearest class mean of the support images' pixels; only how sure to be of it is meta-learned."""

    # What is typed; `bench list` shows it with the first line above.
    name: ClassVar[str] = "pixel-centroid"
    source: ClassVar[str] = "an example of robustbench_meta"
    theta_predicts: ClassVar[bool] = False

    # Options: typed as pixel-centroid:temperature=2, checked, and part of what identifies a result.
    temperature: float = Field(1.0, gt=0, description="factor on the distances, before it is learned")

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ: one number instead of the backbone's weights."""
        like = next(iter(weights.values()))
        return {"learner.log_temperature": like.new_tensor(self.temperature).log()}

    def obstacle(self, setting: Setting) -> str | None:
        """Its logits are distances."""
        return None if setting.loss == "cross_entropy" else f"its distances do not fit the loss '{setting.loss}'"

    def adapt(self, model: Model, state: Any, support: Batch, **settings: Any) -> Any:
        """c_k = mean of the images of class k, for ONE task: support.x [way·shot, *shape]."""
        member = (support.y == torch.arange(model.way, device=support.y.device)[:, None]).to(support.x.dtype)
        return {**state, "centroids": member @ support.x.flatten(1) / member.sum(1, keepdim=True)}

    def logits(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """−t·‖x − c_k‖², averaged over pixels [n, way]."""
        distance = (x.flatten(1)[:, None, :] - state["centroids"]).square().mean(-1)
        logits: Tensor = -state["learner.log_temperature"].exp() * distance
        return logits


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring `pixel-centroid`."""
    register(PixelCentroid)
