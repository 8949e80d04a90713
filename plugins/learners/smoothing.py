"""Randomised smoothing of any learner."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import AnyLearner, Defence, Model, Setting, Weights


class Smoothing(Defence):
    """A defence: average predictions over Gaussian noise on the queries; the attack `certificate` proves a radius."""

    name: ClassVar[str] = "smoothing"
    source: ClassVar[str] = (
        "Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918; probabilities averaged as in Salman et al. 2019, 1906.04584"
    )
    randomised: ClassVar[bool] = True

    sigma: float = Field(0.25, gt=0, description="σ of the noise, in units of the pixel range")
    samples: int = Field(8, ge=1, description="noisy copies that a prediction averages over; one in meta-training")

    def smoothing_sigma(self) -> float:
        """The option `sigma`."""
        return self.sigma

    def logits(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """The logarithm of (1/m) Σᵢ softmax(f(x + ηᵢ)) with η ~ N(0, σ²I) and m samples."""
        samples = 1 if model.training else self.samples
        draws = [self.base.logits(model, state, self._noisy(x)).log_softmax(-1) for _ in range(samples)]
        return torch.stack(draws).logsumexp(0) - math.log(samples)

    def base_logits(self, model: Model, weights: Weights, x: Tensor) -> Tensor:
        """Under noise, too."""
        return self.base.base_logits(model, weights, self._noisy(x))

    def unsmoothed(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """The base's logits."""
        return self.base.logits(model, state, x)

    def obstacle(self, setting: Setting) -> str | None:
        """It averages probabilities."""
        if setting.loss != "cross_entropy":
            return "it averages class probabilities, which a squared loss has none of"
        return self.base.obstacle(setting)

    def _noisy(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x)


@hookimpl
def register_learners(register: Callable[[type[AnyLearner]], None]) -> None:
    """Bring smoothing."""
    register(Smoothing)  # type: ignore[type-abstract]  # what it lacks is its base's
