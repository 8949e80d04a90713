"""Attacks that load, and break their contract when they run."""

import torch

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack


class Bright(Attack):
    """Leaves the pixel range."""

    name = "bright"

    def perturb(self, model, x, y, threat, random):
        return x + threat.eps


class Poisoner(Attack):
    """Changes the weights."""

    name = "poisoner"

    def perturb(self, model, x, y, threat, random):
        with torch.no_grad():
            for tensor in model.tensors():
                tensor.zero_()
        return x.clone()


class Forgetful(Attack):
    """Returns nothing."""

    name = "forgetful"

    def perturb(self, model, x, y, threat, random):
        threat.clip(x)


class Cropping(Attack):
    """Returns images of another shape."""

    name = "cropping"

    def perturb(self, model, x, y, threat, random):
        return x[..., 1:]


class Raising(Attack):
    """Raises."""

    name = "raising"

    def perturb(self, model, x, y, threat, random):
        return x + self.momentum


class Normless(Attack):
    """Has a norm that there is not."""

    name = "normless"

    @property
    def norm(self):
        return "l7"

    def perturb(self, model, x, y, threat, random):
        return x.clone()


@hookimpl
def register_attacks(register):
    for attack in (Bright, Poisoner, Forgetful, Cropping, Raising, Normless):
        register(attack)
