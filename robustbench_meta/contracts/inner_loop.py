"""The gradient step of inner loops, for learners to build on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from robustbench_meta.contracts.state import OWN, Weights

Rate = float | torch.Tensor | Mapping[str, float | torch.Tensor]
"""Of an inner step: one for all weights, or one by name."""

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
    loss: Callable[[Weights], torch.Tensor], weights: Weights, rate: Rate, *, first_order: bool = False
) -> Weights:
    """θ' = θ − rate·∇loss(θ) on ONE task; differentiable through the gradient unless `first_order`.

    One rate moves all weights of the network; rates by name move those that they name. All others stay, among them the
    learner's own.
    """
    moved = {name: weight for name, weight in weights.items() if _moves(name, rate)}
    gradients = gradient_of(loss, weights, moved, first_order=first_order)
    return weights | {
        name: _less(weight, gradients[name], rate[name] if isinstance(rate, Mapping) else rate)
        for name, weight in moved.items()
    }


def gradient_of(
    loss: Callable[[Weights], torch.Tensor], weights: Weights, names: Iterable[str], *, first_order: bool = False
) -> Weights:
    """∇loss with respect to the weights of these names, on ONE task; itself differentiable unless `first_order`."""
    gradients: Weights = torch.func.grad(lambda chosen: loss(weights | chosen))({name: weights[name] for name in names})
    if first_order and not _THROUGHOUT.get():
        return {name: gradient.detach() for name, gradient in gradients.items()}
    return gradients


def _moves(name: str, rate: Rate) -> bool:
    return name in rate if isinstance(rate, Mapping) else not name.startswith(OWN)


def _less(weight: torch.Tensor, gradient: torch.Tensor, rate: float | torch.Tensor) -> torch.Tensor:
    if isinstance(rate, torch.Tensor):  # a learned one
        return weight - rate * gradient
    return torch.sub(weight, gradient, alpha=rate)
