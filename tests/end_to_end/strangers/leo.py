"""LEO: inner steps on a latent code of each class, from which a decoder makes the head's weights."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Operations, Setting, Weights
from robustbench_meta.contracts.inner_loop import gradient_step
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.errors import PluginError

OWN = "learner."


class Latent(NamedTuple):
    """The adapted state: θ, the codes as encoded and as adapted [way, code], and the head [way, features]."""

    theta: Weights
    encoded: Tensor
    codes: Tensor
    head: Tensor


class LEO(Learner):
    """Inner steps on latent codes, one a class, that a decoder turns into a linear head over the features."""

    name: ClassVar[str] = "leo"
    source: ClassVar[str] = (
        "Rusu et al. 2019, arXiv 1807.05960, algorithm 1 (its means alone: no sampling, no KL, features not pretrained)"
    )
    theta_predicts: ClassVar[bool] = False

    code: int = Field(64, ge=1, description="numbers in the code of a class")
    alpha: float = Field(1.0, gt=0, description="α, rate of a latent step, before it is learned")
    steps: int = Field(5, ge=1, description="latent inner steps")
    tune_alpha: float = Field(1e-3, gt=0, description="rate of a step on the head itself, before it is learned")
    tune: int = Field(5, ge=0, description="inner steps on the head itself, after the latent ones")
    encoder_penalty: float = Field(1e-3, ge=0, description="γ, of how far the codes move: (adapted − encoded)²")
    first_order: bool = Field(False, description="do not differentiate through the inner gradients")

    def outputs(self, setting: Setting) -> int | None:
        """It makes its own head over the features."""
        return None

    def obstacle(self, setting: Setting) -> str | None:
        """Its head gives one logit a class."""
        return None if setting.loss == "cross_entropy" else f"its logits do not fit the loss '{setting.loss}'"

    def inner_steps(self, training: bool) -> int:
        """Latent steps, then steps on the head."""
        return self.steps + self.tune

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ, encoder, relation network, decoder, and both rates."""
        if not feature_shape:
            raise PluginError(f"learner '{self.name}' needs a backbone that says its feature_shape, such as conv4")
        features, like = prod(feature_shape), next(iter(weights.values()))
        networks = nn.ModuleDict({
            "encoder": nn.Linear(features, self.code, bias=False),
            "relation1": nn.Linear(2 * self.code, 2 * self.code, bias=False),
            "relation2": nn.Linear(2 * self.code, self.code, bias=False),
            "decoder": nn.Linear(self.code, features, bias=False),
        })  # fmt: skip
        own = {f"{OWN}{name}": weight.detach().to(like) for name, weight in networks.named_parameters()}
        rates = {f"{OWN}alpha": like.new_tensor(self.alpha), f"{OWN}tune_alpha": like.new_tensor(self.tune_alpha)}
        return weights | own | rates

    def adapt(self, model: Model, state: Any, support: Batch, *, step: int = 0, **_: Any) -> Latent:
        """z' = z − α∇_z L(support), head = decoder(z'); later steps move the head itself."""
        if isinstance(state, dict):  # θ; not `step == 0`, since one check of the suite leaves `step` out
            codes = encode(state, model(state, support.x), support.y, model.way)
            state = Latent(state, codes, codes, decode(state, codes))
        theta = state.theta
        features = model(theta, support.x)
        if step < self.steps:
            moved = gradient_step(
                lambda w: model.loss(features @ decode(theta, w["codes"]).T, support.y),
                {"codes": state.codes},
                theta[f"{OWN}alpha"],
                first_order=self.first_order,
            )
            return state._replace(codes=moved["codes"], head=decode(theta, moved["codes"]))
        moved = gradient_step(
            lambda w: model.loss(features @ w["head"].T, support.y),
            {"head": state.head},
            theta[f"{OWN}tune_alpha"],
            first_order=self.first_order,
        )
        return state._replace(head=moved["head"])

    def logits(self, model: Model, state: Latent, x: Tensor) -> Tensor:
        """f(x)·W."""
        return model(state.theta, x) @ state.head.T

    def query_loss(self, ops: Operations, adapted: State, query: Batch) -> Tensor:
        """L(queries) + γ‖sg(z') − z‖² (equation 6, without KL and the decoder's orthogonality); defences inherit it."""
        codes: Latent = adapted.without_support().tree
        stray = (codes.codes.detach() - codes.encoded).square().mean((1, 2))
        return ops.loss(adapted, query) + self.encoder_penalty * stray


def encode(theta: Weights, features: Tensor, y: Tensor, way: int) -> Tensor:
    """The code of each class [way, code]: the mean of the relation network over its images paired with all images."""
    each = F.linear(features, theta[f"{OWN}encoder.weight"])
    count = len(each)
    pairs = torch.cat([each[:, None].expand(-1, count, -1), each[None].expand(count, -1, -1)], -1)
    related = F.linear(F.relu(F.linear(pairs, theta[f"{OWN}relation1.weight"])), theta[f"{OWN}relation2.weight"])
    member = (y == torch.arange(way, device=y.device)[:, None]).to(features.dtype)
    return member @ related.mean(1) / member.sum(1, keepdim=True)


def decode(theta: Weights, codes: Tensor) -> Tensor:
    """The head [way, features] of the codes."""
    return F.linear(codes, theta[f"{OWN}decoder.weight"])


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring `leo`."""
    register(LEO)
