"""Randomised smoothing of any learner."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
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
    sigma: float = Field(0.25, gt=0, description="σ of the noise, in units of the pixel range")
    samples: int = Field(8, ge=1, description="draws of noise that a prediction averages over; one in meta-training")

    def smoothing_sigma(self) -> float:
        """The option `sigma`."""
        return self.sigma

    def logits(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """The logarithm of (1/m) Σᵢ softmax(f(x + ηᵢ)) with m samples ηᵢ ~ N(0, σ²I).

        The ηᵢ are the same for all images and calls, and attacks differentiate through them; in meta-training each
        image has one of its own.
        """
        if model.training:
            return self.base.logits(model, state, x + self.sigma * torch.randn_like(x))
        noise = self.sigma * standard_noise(self.samples, tuple(x.shape[1:])).to(x)
        each = [self.base.logits(model, state, x + one).log_softmax(-1) for one in noise]
        return torch.stack(each).logsumexp(0) - math.log(self.samples)

    def base_logits(self, model: Model, weights: Weights, x: Tensor) -> Tensor:
        """Under noise, too."""
        return self.base.base_logits(model, weights, x + self.sigma * torch.randn_like(x))

    def unsmoothed(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """The base's logits."""
        return self.base.logits(model, state, x)

    def obstacle(self, setting: Setting) -> str | None:
        """It averages probabilities."""
        if setting.loss != "cross_entropy":
            return "it averages class probabilities, which a squared loss has none of"
        return self.base.obstacle(setting)


@cache
def standard_noise(samples: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal draws [samples, *shape], always the same."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((samples, *shape)))


@hookimpl
def register_learners(register: Callable[[type[AnyLearner]], None]) -> None:
    """Bring smoothing."""
    register(Smoothing)  # type: ignore[type-abstract]  # what it lacks is its base's
