"""Gradients held against central differences in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustbench_meta.testing.contract import expect

STEP = 1e-7
DIRECTIONS = 2


def expect_slopes(
    function: Callable[[Tensor], Sequence[Tensor]], point: Tensor, gradients: Sequence[Tensor], rises: str, remedy: str
) -> None:
    """Raise Broken unless the gradients of the means of what a function gives are its slopes along random directions.

    Args:
        function: gives as many tensors as there are gradients.
        point: where, in float64.
        gradients: each in the shape of the point.
        rises: `… the loss rises`, for the message.
        remedy: what to do.
    """
    for seed in range(DIRECTIONS):
        draw = torch.Generator().manual_seed(seed)
        direction = torch.randn(point.shape, generator=draw, dtype=point.dtype)
        above, below = (function(point + side * STEP * direction) for side in (1, -1))
        for gradient, high, low in zip(gradients, above, below, strict=True):
            slope, found = float((high - low).mean()) / (2 * STEP), float((gradient * direction).sum())
            expect(
                abs(found - slope) <= 1e-4 * abs(slope) + 1e-6,
                f"along a random direction {rises} by {slope:.6g}, by its gradient {found:.6g}",
                remedy,
            )
