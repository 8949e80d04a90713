"""The floating-point work of a piece of meta-learning, counted in closed form.

Counted are the multiplications and additions of convolutions and linear layers (2 for each weight that
meets an input), places of padding included, as `torch.utils.flop_counter` does; norms, activations and losses are
not. With F the work of one forward pass on one example and F₁ that of its first layer:

- forward F; gradient in the weights 2F − F₁ more (the first layer's input needs none); gradient in the pixels F more;
- the second-order gradient through an inner step, on each support example, 6F − 4F₁: each layer's
  double backward has four products (the first: one), and its backward two (the first: one).

torch's own double backward of a convolution does a little more than that (the pixels' gradient, which nobody asked
for, and with strides places that are cut off afterwards): this is not work that the result needs, so it is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one network on one example."""

    forward: int
    first: int
    """Of its first layer."""

    @property
    def gradient(self) -> int:
        """Forward, and the gradient in the weights."""
        return 3 * self.forward - self.first

    @property
    def attack(self) -> int:
        """One step of FGSM or PGD: forward, and the gradient in the pixels."""
        return 2 * self.forward

    @property
    def through_step(self) -> int:
        """The gradient of an outer loss through one inner step, for each support example."""
        return 6 * self.forward - 4 * self.first

    def maml(self, support: int, query: int, steps: int = 1) -> int:
        """One task's second-order meta-gradient on so many support and query examples."""
        return steps * support * (self.gradient + self.through_step) + query * self.gradient

    def adml(self, support: int, query: int, steps: int = 1) -> int:
        """The same of ADML: two branches, and FGSM on the support and the query set."""
        return 2 * self.maml(support, query, steps) + (support + query) * self.attack

    def evaluation(self, support: int, query: int, attack_steps: list[int], steps: int = 1) -> int:
        """One test episode without attack, and with each attack (of so many gradients) in the three attacked scenarios.

        An attack hits the support set once and the query set through two adapted models; three accuracies are read.
        """
        adapt = steps * support * self.gradient
        one = sum(
            count * self.attack * (support + 2 * query) + adapt + 3 * query * self.forward for count in attack_steps
        )
        return adapt + query * self.forward + one


def work_of(module: nn.Module, shape: tuple[int, ...]) -> Work:
    """The work of a network whose layers follow each other, from the sizes of its layers and of their outputs."""
    found: list[int] = []

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        found.append(2 * weight[0].numel() * output[0].numel())

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        like = next(module.parameters())
        with torch.no_grad():
            module(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return Work(sum(found), found[0])


def counted(function: Callable[[], object]) -> int:
    """What torch counts while a function runs, to check the closed form with."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
