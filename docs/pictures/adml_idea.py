"""ADML's idea on a problem of two weights that can be drawn: `python docs/pictures/adml_idea.py` writes adml_idea.svg.

Two tasks, A and B: x = y·μ + σ·noise, y = ±1, a linear model w·x, logistic loss. Feature 1 is larger than ε and means
the same in both tasks; feature 2 is smaller than ε, and has another sign in each. FGSM on a linear model is exact:
it lowers the margin y·w·x by ε‖w‖₁, here with the corner rounded. MAML and ADML are gradient descent on θ by their
equations, with five inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import softplus

MEANS = {"A": (1.0, 0.4), "B": (1.0, -0.4)}
SIGMA, EPS, INNER, ALPHA, BETA, STEPS = 0.8, 0.5, 5, 1.0, 0.5, 300
ROUNDED = 0.3
"""The attack takes ε·√(w² + ROUNDED²) where FGSM takes ε·|w|: its corner at 0 would stop gradient descent."""
CLEAN, ATTACKED, THETA = "#1f5fae", "#c2410c", "#111111"
PICTURE = Path(__file__).with_suffix(".svg")


class Task(NamedTuple):
    """The images' signed features y·x [n, 2]: all that a linear model's loss depends on."""

    signed: Tensor

    def loss(self, w: Tensor, eps: float) -> Tensor:
        """Of the weights [..., 2], with every image attacked within ε (0: with none)."""
        margin = w @ self.signed.T - eps * (w.square() + ROUNDED**2).sqrt().sum(-1, keepdim=True)
        return softplus(-margin).mean(-1)

    def adapted(self, w: Tensor, eps: float) -> Tensor:
        """The inner steps, differentiable in w."""
        w = w if w.requires_grad else w.clone().requires_grad_()
        for _ in range(INNER):
            w = w - ALPHA * torch.autograd.grad(self.loss(w, eps), w, create_graph=True)[0]
        return w

    def optimum(self, eps: float) -> Tensor:
        """The weights of the lowest loss."""
        return descend(lambda w: self.loss(w, eps))[-1]


def tasks() -> dict[str, Task]:
    """Both, each of 500 images; B is A with feature 2 turned round, so that the picture is symmetric."""
    noise = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = {"A": noise, "B": noise * torch.tensor([1.0, -1.0])}
    return {name: Task(torch.tensor(mean, dtype=torch.float64) + SIGMA * turned[name]) for name, mean in MEANS.items()}


def maml(found: dict[str, Task], theta: Tensor) -> Tensor:
    """Adapted on clean support, judged on clean queries."""
    return torch.stack([task.loss(task.adapted(theta, 0.0), 0.0) for task in found.values()]).mean()


def adml(found: dict[str, Task], theta: Tensor) -> Tensor:
    """Adapted on clean, judged on attacked; adapted on attacked, judged on clean."""
    crossed = [
        task.loss(task.adapted(theta, 0.0), EPS) + task.loss(task.adapted(theta, EPS), 0.0) for task in found.values()
    ]
    return torch.stack(crossed).mean()


def descend(objective: Callable[[Tensor], Tensor], start: tuple[float, float] = (0.6, 0.9)) -> Tensor:
    """The path of plain gradient descent [steps + 1, 2]."""
    path = [torch.tensor(start, dtype=torch.float64)]
    for _ in range(STEPS):
        w = path[-1].clone().requires_grad_()
        path.append(path[-1] - BETA * torch.autograd.grad(objective(w), w)[0])
    return torch.stack(path).detach()


def draw() -> Figure:
    """Both panels: where the tasks' optima are, where θ comes to rest, and what adaptation makes of it."""
    found = tasks()
    optima = {eps: {name: task.optimum(eps) for name, task in found.items()} for eps in (0.0, EPS)}
    figure = Figure(figsize=(9.2, 4.3), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (name, objective) in zip(panels, {"MAML": maml, "ADML": adml}.items(), strict=True):
        _landscape(axes, found, optima)
        path = descend(lambda w, objective=objective: objective(found, w))  # type: ignore[misc]  # bound now
        axes.plot(*path.T, color=THETA, lw=1.1, ls=(0, (4, 2)))
        for task in found.values():
            for eps, colour in ((0.0, CLEAN), (EPS, ATTACKED)) if name == "ADML" else ((0.0, CLEAN),):
                _arrow(axes, path[-1], task.adapted(path[-1], eps).detach(), colour)
        axes.plot(*path[-1], "o", color=THETA, ms=8, zorder=5)
        axes.annotate("θ", path[-1], (9, -5), textcoords="offset points", fontsize=14, color=THETA)
        axes.set_title(name, loc="left", fontweight="bold")
        axes.set_xlabel("weight of the feature that ε cannot turn")
    panels[0].set_ylabel("weight of the feature that ε can turn")
    return figure


def _landscape(axes: Axes, found: dict[str, Task], optima: dict[float, dict[str, Tensor]]) -> None:
    """Where each task's loss is within 0.003 and 0.012 of its lowest, and the optima."""
    x, y = torch.meshgrid(torch.linspace(0.4, 4.4, 120), torch.linspace(-2.2, 2.2, 120), indexing="xy")
    grid = torch.stack([x, y], -1).double()
    for (eps, best), colour, mark in zip(optima.items(), (CLEAN, ATTACKED), ("o", "s"), strict=True):
        for name, task in found.items():
            above = task.loss(grid, eps) - task.loss(best[name], eps)
            axes.contour(x, y, above, levels=[0.003, 0.012], colors=colour, linewidths=(0.9, 0.6), alpha=0.6)
            axes.plot(*best[name], mark, color=colour, mfc="white", mew=1.6, ms=7, zorder=4)
    for name, best in optima[0.0].items():
        axes.annotate(f"{name}, clean", best, (9, 4 if name == "A" else -12), textcoords="offset points", color=CLEAN)
    axes.annotate("A and B,\nattacked", optima[EPS]["B"], (-26, -38), textcoords="offset points", color=ATTACKED)
    axes.spines[["top", "right"]].set_visible(False)


def _arrow(axes: Axes, begin: Tensor, end: Tensor, colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 3, "shrinkB": 0}
    axes.annotate("", tuple(end.tolist()), tuple(begin.tolist()), arrowprops=style, zorder=6)


def main() -> None:
    """Write the picture, the same bytes each time."""
    with mpl.rc_context({"svg.hashsalt": "adml", "svg.fonttype": "path", "font.size": 10}):
        draw().savefig(PICTURE, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
