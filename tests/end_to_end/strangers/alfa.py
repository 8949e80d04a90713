"""ALFA: the rates and the decay of each inner step come from a small network that looks at gradients and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner, Model, Weights
from robustbench_meta.contracts.inner_loop import gradient_of
from robustbench_meta.contracts.tasks import Batch

OWN = "learner."
LAYERS = ("fc1", "fc2", "fc3")


class ALFA(Learner):
    """Inner steps β⊙θ − α⊙∇L, whose α and β a meta-trained network makes for each layer and step."""

    name: ClassVar[str] = "alfa"
    source: ClassVar[str] = "Baik, Choi, Choi, Kim, Lee 2020, arXiv 2011.00209, algorithm 1"

    alpha: float = Field(0.1, gt=0, description="where the factors of the generated rates begin")
    decay: float = Field(5e-4, ge=0, description="where the factors of the generated decay 1 − β begin, times alpha")
    steps: int = Field(5, ge=1, description="inner steps in meta-training")
    test_steps: int | None = Field(None, ge=1, description="inner steps at validation and test; none: as in training")

    def inner_steps(self, training: bool) -> int:
        """`steps` in meta-training, `test_steps` afterwards."""
        return self.steps if training or self.test_steps is None else self.test_steps

    def init(self, weights: Weights, feature_shape: tuple[int, ...]) -> Weights:
        """θ, the generator (3 layers, 2N wide), and the factors α⁰, β⁰ by step and layer [steps, N]."""
        like, size = next(iter(weights.values())), 2 * len(weights)
        own: Weights = {}
        for layer in LAYERS:
            for name, weight in nn.Linear(size, size).named_parameters():
                own[f"{OWN}{layer}.{name}"] = weight.detach().to(like)
        own[f"{OWN}fc3.bias"] = torch.ones_like(own[f"{OWN}fc3.bias"])  # so that the first steps are MAML's, about
        own[f"{OWN}alpha"] = like.new_full((self.steps, len(weights)), self.alpha)
        own[f"{OWN}decay"] = like.new_full((self.steps, len(weights)), self.alpha * self.decay)
        return weights | own

    def adapt(self, model: Model, state: Weights, support: Batch, *, step: int = 0, **_: Any) -> Weights:
        """θ_{i+1} = β_i ⊙ θ_i − α_i ⊙ ∇L(f_θi, support); further steps at test take the last factors."""
        names = [name for name in state if not name.startswith(OWN)]
        gradients = gradient_of(lambda w: model.loss(model(w, support.x), support.y), state, names)
        seen = torch.stack([gradients[name].mean() for name in names] + [state[name].mean() for name in names])
        rates, decays = self.generate(state, seen).chunk(2)
        which = min(step, self.steps - 1)
        rates = rates * state[f"{OWN}alpha"][which]
        decays = decays * state[f"{OWN}decay"][which]
        return state | {
            name: (1 - decays[i]) * state[name] - rates[i] * gradients[name] for i, name in enumerate(names)
        }

    def generate(self, state: Weights, seen: Tensor) -> Tensor:
        """The generator's 2N outputs for the 2N means of gradients and weights."""
        for layer in LAYERS:
            seen = F.linear(seen, state[f"{OWN}{layer}.weight"], state[f"{OWN}{layer}.bias"])
            seen = seen if layer == LAYERS[-1] else F.relu(seen)
        return seen

    def logits(self, model: Model, state: Weights, x: Tensor) -> Tensor:
        """f_θ'(x)."""
        return model(state, x)


@hookimpl
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Bring `alfa`."""
    register(ALFA)
