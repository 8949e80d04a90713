"""What stands between torchattacks and the model: a module that it may switch, and arithmetic that survives zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_meta.contracts import Victim
from robustbench_meta.errors import BenchError

PIXEL_RANGE = 0.8
"""By how much CW's images are drawn towards grey: the pixel range is this part of the box that tanh spans."""


class ZeroOverZero(TorchFunctionMode):
    """Inside it, 0/0 between tensors is 0: a gradient that vanishes, once normalised, is still no step.

    Several attacks divide a gradient by its own mean or norm; one NaN in their momentum and the
    example never moves again. Nothing but a 0/0 is changed, and the model's own arithmetic is left
    alone: see `suspended`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Divide by 1 where both sides are 0; run everything else as it is."""
        if func in _DIVISIONS and len(args) == 2 and all(isinstance(arg, Tensor) for arg in args):
            above, below = args
            undefined = (above == 0) & (below == 0)
            if undefined.any():  # otherwise not a bit changes, not even the order in which gradients are summed
                args = above, torch.where(undefined, torch.ones_like(below), below)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Step out of the innermost mode, which must be this one, for the model's own arithmetic."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]  # torch's


_DIVISIONS = {torch.div, torch.true_divide, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__}


class VictimModule(nn.Module):
    """A victim as the module that torchattacks expects: [n, c, h, w] → logits [n, way].

    It has a parameter, which tells torchattacks the device, and no sub-module: torchattacks switches
    modes of what it is given, to evaluation before and all to training after, and forgets to when an
    attack raises; this module is all that it reaches, and is thrown away.

    Args:
        shape: of one of the victim's examples; features and grey images come as [n, 1, …, *shape].
        positive: shift each example's logits above zero, which changes neither the prediction nor a
            difference of logits, for attacks that mask with zeros the class they do not mean.
        wider: images come drawn towards grey by PIXEL_RANGE, and are brought back and clipped.
    """

    def __init__(
        self, victim: Victim, attack: str, shape: torch.Size, device: torch.device, *, positive: bool, wider: bool
    ) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.arithmetic = ZeroOverZero()
        self._call: Callable[[Tensor], Tensor] = (
            victim.__call__
        )  # bound, so that a victim that is a module is no sub-module
        self._attack, self._shape = attack, shape
        self._positive, self._wider = positive, wider

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, way].

        Raises:
            BenchError: the attack wants a gradient, and the victim's output has none.
        """
        if self._wider:
            images = widened(images)
        with self.arithmetic.suspended():
            logits = self._call(images.reshape(len(images), *self._shape))
        if torch.is_grad_enabled() and images.requires_grad and not logits.requires_grad:
            raise BenchError(
                f"attack '{self._attack}' needs gradients with respect to the images, and this model gives none (its "
                "output does not depend differentiably on them); use an attack that needs none, such as square"
            )
        return logits - logits.detach().amin(1, keepdim=True) + 1 if self._positive else logits


def drawn_to_grey(images: Tensor) -> Tensor:
    """Images whose black and white lie inside the open interval (0, 1)."""
    return 0.5 + (images - 0.5) * PIXEL_RANGE


def widened(images: Tensor) -> Tensor:
    """The way back from `drawn_to_grey`, clipped to [0, 1]."""
    return (0.5 + (images - 0.5) / PIXEL_RANGE).clamp(0, 1)
