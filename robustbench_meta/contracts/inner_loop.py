"""The gradient step of inner loops, for learners to build on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from robustbench_meta.contracts.state import Weights

_THROUGHOUT: ContextVar[bool] = ContextVar("differentiable", default=False)


@contextmanager
def differentiable() -> Iterator[None]:
    """Inside, every inner step is differentiable, `first_order` or not: for those who attack adaptation itself."""
    token = _THROUGHOUT.set(True)
    try:
        yield
    finally:
        _THROUGHOUT.reset(token)


def gradient_step(
    loss: Callable[[Weights], torch.Tensor], weights: Weights, rate: float | torch.Tensor, *, first_order: bool = False
) -> Weights:
    """θ' = θ − rate·∇loss(θ) on ONE task; differentiable through the gradient unless `first_order`."""
    gradients = torch.func.grad(loss)(weights)
    if first_order and not _THROUGHOUT.get():
        gradients = {name: gradient.detach() for name, gradient in gradients.items()}
    if isinstance(rate, torch.Tensor):  # a learned one
        return {name: weight - rate * gradients[name] for name, weight in weights.items()}
    return {name: torch.sub(weight, gradients[name], alpha=rate) for name, weight in weights.items()}
