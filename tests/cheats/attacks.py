"""Attacks that do nothing, or do what they may not."""

import torch

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack


class Idle(Attack):
    """Returns its input."""

    name = "idle"

    def perturb(self, model, x, y, threat, random):
        return x.clone()


class Generous(Attack):
    """Goes 1 % beyond ε."""

    name = "generous"

    def perturb(self, model, x, y, threat, random):
        return torch.where(x > 0.5, x - 1.01 * threat.eps, x + 1.01 * threat.eps)


class NotANumber(Attack):
    """Returns NaN."""

    name = "nan"

    def perturb(self, model, x, y, threat, random):
        return x * float("nan")


class Flipping(Attack):
    """Changes the labels instead of the images."""

    name = "flipping"

    def perturb(self, model, x, y, threat, random):
        y.copy_((y + 1) % model.way)
        return x.clone()


class Untidy(Attack):
    """Leaves the model in training mode, and the generator reseeded."""

    name = "untidy"

    def perturb(self, model, x, y, threat, random):
        for module in model.modules():
            module.train()
        torch.manual_seed(0)
        return x.clone()


class Moody(Attack):
    """Leaves the model in training mode."""

    name = "moody"

    def perturb(self, model, x, y, threat, random):
        for module in model.modules():
            module.train()
        return x.clone()


class Reseeding(Attack):
    """Reseeds the generator."""

    name = "reseeding"

    def perturb(self, model, x, y, threat, random):
        torch.manual_seed(0)
        return threat.clip(x + threat.eps * torch.rand_like(x).sub(0.5).sign())


@hookimpl
def register_attacks(register):
    for attack in (Idle, Generous, NotANumber, Flipping, Untidy, Moody, Reseeding):
        register(attack)
