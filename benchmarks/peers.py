"""The others: inner loops of `higher`, TorchOpt and plain torch, each as its own documentation writes MAML.

Each adapts one task at a time, for that is how all of them are used; outer losses are differentiated task
by task, as in their examples, so that memory stays small. `vmap` is what plain torch can do without a loop.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems import Problem

Predict = Callable[[Tensor], Tensor]


class Library(ABC):
    """A way to adapt a module to one task such that an outer loss can be differentiated through it."""

    name: str

    def __init__(self, problem: Problem) -> None:
        self.problem, self.module = problem, problem.module()

    def new_step(self) -> None:  # noqa: B027  # most need nothing
        """Before the tasks of a meta-step."""

    @abstractmethod
    def adapted(self, x: Tensor, y: Tensor) -> AbstractContextManager[Predict]:
        """The module after the inner steps on one task's support set."""


class Higher(Library):
    """`higher.innerloop_ctx`, as in its examples/maml-omniglot.py."""

    name = "higher"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.higher: Any = importlib.import_module("higher")
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=problem.alpha)

    @contextmanager
    def adapted(self, x: Tensor, y: Tensor) -> Iterator[Predict]:
        """Leaves its inner loop when the block ends."""
        with self.higher.innerloop_ctx(self.module, self.optimizer, copy_initial_weights=False) as (model, optimizer):
            for _ in range(self.problem.steps):
                optimizer.step(self.problem.loss(model(x), y))
            yield model


class TorchOpt(Library):
    """`torchopt.MetaSGD`, as in its examples/few-shot/maml_omniglot.py."""

    name = "torchopt"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.torchopt: Any = importlib.import_module("torchopt")
        self.new_step()

    def new_step(self) -> None:
        """A fresh inner optimiser, and where to come back to."""
        self.optimizer = self.torchopt.MetaSGD(self.module, lr=self.problem.alpha)
        self.start = [
            (of, self.torchopt.extract_state_dict(of, by="reference")) for of in (self.module, self.optimizer)
        ]

    @contextmanager
    def adapted(self, x: Tensor, y: Tensor) -> Iterator[Predict]:
        """Puts θ back into the module when the block ends."""
        for _ in range(self.problem.steps):
            self.optimizer.step(self.problem.loss(self.module(x), y))
        yield self.module
        for of, state in self.start:
            self.torchopt.recover_state_dict(of, state)


class PlainLoop(Library):
    """`torch.func.functional_call` and `torch.autograd.grad`: MAML as one writes it without a library."""

    name = "plain loop"

    @contextmanager
    def adapted(self, x: Tensor, y: Tensor) -> Iterator[Predict]:
        """Fast weights in a dict."""
        weights: dict[str, Tensor] = dict(self.module.named_parameters())
        for _ in range(self.problem.steps):
            loss = self.problem.loss(_call(self.module, weights, x), y)
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {
                name: weight - self.problem.alpha * gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
        yield lambda images: _call(self.module, weights, images)


LIBRARIES: tuple[type[Library], ...] = (Higher, TorchOpt, PlainLoop)


def installed(problem: Problem) -> tuple[list[Library], list[str]]:
    """The libraries that are there, and a note on each that is not."""
    found, notes = list[Library](), list[str]()
    for make in LIBRARIES:
        try:
            found.append(make(problem))
        except ImportError:
            notes.append(f"{make.name} is not installed and was left out")
    return found, notes


def meta_gradient(library: Library) -> Tensor:
    """MAML's or ADML's meta-gradient, end to end; it is also left in the module's `grad`."""
    problem, module = library.problem, library.module
    module.zero_grad(set_to_none=True)
    library.new_step()
    (_adml if problem.training.attack is not None else _maml)(library)
    return torch.cat([_gradient(parameter).flatten() for parameter in module.parameters()])


def _maml(library: Library) -> None:
    problem, count = library.problem, library.problem.tasks.tasks
    support, query = problem.tasks
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        with library.adapted(xs, ys) as model:
            torch.autograd.backward(problem.loss(model(xq), yq) / count)


def _adml(library: Library) -> None:
    """Both branches, crossed, FGSM on θ for the support set and on the adapted weights for the queries."""
    problem, count = library.problem, library.problem.tasks.tasks
    support, query = problem.tasks
    if problem.grid.setting.transductive:
        attacked = [fgsm(problem, library.module, xs, ys) for xs, ys in zip(*support, strict=True)]
    else:  # θ is the same for all tasks: one call
        flat = fgsm(problem, library.module, support.x.flatten(0, 1), support.y.flatten())
        attacked = list(flat.view_as(support.x))
    for xs, ys, xq, yq, xa in zip(*support, *query, attacked, strict=True):
        with library.adapted(xs, ys) as model:
            torch.autograd.backward(problem.loss(model(fgsm(problem, model, xq, yq)), yq) / count)
        with library.adapted(xa, ys) as model:
            torch.autograd.backward(problem.loss(model(xq), yq) / count)


def fgsm(problem: Problem, model: Predict, x: Tensor, y: Tensor) -> Tensor:
    """One step of ε along the sign of the gradient; data, not differentiated."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.loss(model(x), y), x)
    return (x + problem.eps * gradient.sign()).clamp(0, 1).detach()


def vmapped(problem: Problem, chunk: int | None) -> Callable[[], Tensor]:
    """MAML's meta-gradient by `torch.func` alone: gradients inside `vmap` over all tasks, or `chunk` at a time."""
    module, steps, alpha, loss = problem.module(), problem.steps, problem.alpha, problem.loss
    theta: dict[str, Tensor] = dict(module.named_parameters())

    def inner(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(_call(module, weights, x), y)

    def outer(weights: dict[str, Tensor], xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        for _ in range(steps):
            gradients = torch.func.grad(inner)(weights, xs, ys)
            weights = {name: weight - alpha * gradients[name] for name, weight in weights.items()}
        return inner(weights, xq, yq)

    def gradient() -> Tensor:
        support, query = problem.tasks
        mapped = torch.func.vmap(outer, (None, 0, 0, 0, 0))
        sums: list[Tensor] | None = None
        size = chunk or problem.tasks.tasks
        for start in range(0, problem.tasks.tasks, size):
            part = slice(start, start + size)
            losses = mapped(theta, support.x[part], support.y[part], query.x[part], query.y[part])
            gradients = list(torch.autograd.grad(losses.sum() / problem.tasks.tasks, list(theta.values())))
            sums = gradients if sums is None else [a + b for a, b in zip(sums, gradients, strict=True)]
        return torch.cat([part.flatten() for part in sums or []])

    return gradient


def _call(module: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    outputs: Tensor = torch.func.functional_call(module, weights, (x,))
    return outputs


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
