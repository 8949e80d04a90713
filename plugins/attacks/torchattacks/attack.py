"""What all attacks of torchattacks share: how one of them is run on one task, and when it is refused."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_meta.contracts import Attack, Method, Random, Setting, Victim
from robustbench_meta.contracts.threat_model import TOLERANCE, Norm, ThreatModel
from robustbench_meta.errors import BenchError
from robustbench_meta.runtime.seeds import seeded

from .options import Traits, defaults, step_factor
from .victim_module import VictimModule

DEFAULT_EPS: dict[Norm, float | str] = {"linf": "8/255", "l2": 1.0, "l1": 5.0, "l0": 50}
"""linf, l2: torchattacks' own; l1: its FAB's; l0: 6 % of the pixels of a 28×28 image."""


class TorchAttack(Attack):
    """One of torchattacks' attacks; subclasses are made by `bridge`.

    It sees one task at a time: random starts, early stops and step sizes never depend on another task.
    """

    per_task: ClassVar[bool] = True
    wraps: ClassVar[type[Any]]
    traits: ClassVar[Traits]
    _wider: ClassVar[bool] = False

    @property
    def norm(self) -> Norm:
        """As torchattacks documents it."""
        return self.traits.norm

    @property
    def sub_batches(self) -> bool:
        """True if the model sees other batches than the task's."""
        return self.traits.sub_batches

    def how(self) -> Method:
        """A single step, if it would take many and is told to take one, once."""
        steps = getattr(self, "steps", getattr(self, "num_iter_set", None))
        once = steps == getattr(self, "n_restarts", 1) == 1
        return "single-step" if once and self.method == "iterative" else self.method

    def stronger(self) -> Attack | None:
        """Three times the steps, of their usual size; None where it has no option `steps`, or pixels are counted."""
        steps = getattr(self, "steps", None)
        if steps is None or self.method != "iterative" or self.norm not in {"linf", "l2"}:
            return None
        usual = {"alpha": None} if hasattr(self, "alpha") else {}
        return self.model_copy(update={"steps": 3 * steps, **usual})

    def default_eps(self) -> float | str | None:
        """A usual ε for its norm."""
        return DEFAULT_EPS[self.norm]

    @property
    def _positive(self) -> bool:
        return self.traits.positive and getattr(self, "loss", "margin") == "margin"

    def least_way(self) -> int:
        """The fewest classes that its loss can do: 3 for DLR, 4 for targeted DLR."""
        if self.wraps.__name__ == "APGDT":
            return 4
        return 3 if getattr(self, "loss", "") == "dlr" else 2

    def obstacle(self, setting: Setting) -> str | None:
        """Why the attack cannot work in this setting; None if it can."""
        shape = setting.shape
        if setting.transductive and self.sub_batches:
            return (
                f"{self.name} shows the model other batches than the task's, and the predictions of a transductive "
                "model depend on the batch; use an inductive norm, or an attack that keeps the batch whole, such as pgd"
            )
        if len(shape) > 3:
            return f"{self.name} takes images (channels, height, width) or features, not examples of shape {shape}"
        if self.traits.square and (len(shape) != 3 or shape[1] != shape[2]):
            return f"{self.name} takes images as high as wide, not examples of shape {shape}"
        if self.traits.channels is not None and (len(shape) != 3 or shape[0] != self.traits.channels):
            return f"{self.name} takes images with {self.traits.channels} channels, not examples of shape {shape}"
        if setting.way < self.least_way():
            return f"{self.name} needs at least {self.least_way()} classes for its loss; this task is {setting.way}-way"
        return None

    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Run torchattacks on one task: x [n, *shape] in [0, 1], y [n].

        What exceeds ε is put back inside: to the clean image where the attack looks for the smallest
        perturbation (it has not found one within ε), else to the nearest point of the ball.

        Raises:
            BenchError: a pixel range other than [0, 1], or a model without gradients where they are needed.
        """
        if (threat.low, threat.high) != (0.0, 1.0):
            raise BenchError(f"{self.name} works on the pixel range [0, 1] only, not [{threat.low:g}, {threat.high:g}]")
        if threat.eps <= TOLERANCE or (threat.norm == "l0" and threat.eps < 1):
            return x.clone()
        shape = x.shape[1:]
        module = VictimModule(model, self.name, shape, x.device, positive=self._positive, wider=self._wider)
        images = x.detach().reshape(len(x), *(1,) * (3 - len(shape)), *shape)
        with seeded(random.seed(), x.device), torch.enable_grad(), module.arithmetic:
            x_adv = self._run(module, images, y, threat.eps, model.way, random.seed())
        return _within(threat, x_adv.detach().reshape(x.shape).to(x.dtype), x, model.event_ndim, self.traits.minimal)

    def _run(self, module: VictimModule, images: Tensor, y: Tensor, eps: float, way: int, seed: int) -> Tensor:
        adversarial: Tensor = self.build(module, images, eps, way, seed)(images, y)
        return adversarial

    def build(self, module: VictimModule, images: Tensor, eps: float, way: int, seed: int) -> Any:
        """The object of torchattacks, with the options given and what the run decides filled in."""
        return self.wraps(module, **self.arguments(images, eps, way, seed))

    def arguments(self, images: Tensor, eps: float, way: int, seed: int) -> dict[str, Any]:
        """The arguments of the constructor, without the model."""
        filled = {"eps": eps, "max_epsilon": eps, "n_classes": way, "seed": seed, "verbose": False}
        taken = {name: filled.get(name, default) for name, default in defaults(self.wraps).items() if name != "model"}
        taken |= {name: value for name, value in self if name in taken}
        step = "lr" if self.name == "spsa" else "alpha"
        if step in taken and taken[step] is None:
            factor, steps = step_factor(self.wraps), taken.get("steps", taken.get("nb_iter", 1))
            assert factor is not None
            taken[step] = factor * eps / max(steps, 1)
        return taken


def _within(threat: ThreatModel, x_adv: Tensor, x: Tensor, event_ndim: int, minimal: bool) -> Tensor:
    """x_adv, where farther than ε replaced; NaN is left for the harness to find."""
    distance = threat.distance(x_adv, x, event_ndim)
    far = (distance > threat.eps + TOLERANCE / 2).view(-1, *(1,) * event_ndim)
    if minimal or threat.norm == "l0":
        nearest = x
    elif threat.norm == "linf":
        nearest = x + (x_adv - x).clamp(-threat.eps, threat.eps)
    else:
        shrink = (threat.eps / distance.clamp(min=threat.eps)).view(far.shape)
        nearest = x + ((x_adv - x).double() * shrink).to(x.dtype)
    return threat.clip(torch.where(far, nearest, x_adv))
