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


class Hooking(Attack):
    """FGSM with a hook on the features that it forgets to remove."""

    name = "hooking"

    def perturb(self, model, x, y, threat, random):
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        layer.register_forward_hook(lambda module, inputs, output: 0.5 * output)
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.loss(images, y).sum(), images)
        return threat.clip(x + threat.eps * gradient.sign())


class HookingAll(Attack):
    """Leaves a hook that torch calls for every module."""

    name = "hooking-all"

    def perturb(self, model, x, y, threat, random):
        torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 0 * output)
        return x.clone()


class PatchingTorch(Attack):
    """Leaves another function in torch.nn.functional, which all models call."""

    name = "patching-torch"

    def perturb(self, model, x, y, threat, random):
        relu = torch.nn.functional.relu
        torch.nn.functional.relu = lambda x, inplace=False: 0 * relu(x)
        return x.clone()


class Patching(Attack):
    """Leaves another `forward` on a layer."""

    name = "patching"

    def perturb(self, model, x, y, threat, random):
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        own = layer.forward
        layer.forward = lambda images: 0 * own(images)
        return x.clone()


class PatchingClass(Attack):
    """Leaves another `forward` on the class of a layer."""

    name = "patching-class"

    def perturb(self, model, x, y, threat, random):
        own = torch.nn.Conv2d.forward
        torch.nn.Conv2d.forward = lambda self, images: 0 * own(self, images)
        return x.clone()


class Buffering(Attack):
    """Leaves a buffer, and another constant, on a layer."""

    name = "buffering"

    def perturb(self, model, x, y, threat, random):
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        layer.register_buffer("seen", x)
        layer.note = "was here"
        return x.clone()


class Lazy(Attack):
    """Hardly moves, and says that it is noise."""

    name = "lazy"
    method = "random"

    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + 0.001 * threat.eps * random.uniform(x))


class Helping(Attack):
    """Moves down the loss: accuracy rises."""

    name = "helping"
    method = "random"

    def perturb(self, model, x, y, threat, random):
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.loss(images, y).sum(), images)
        return threat.clip(x - threat.eps * gradient.sign())


@hookimpl
def register_attacks(register):
    leaving = (Hooking, HookingAll, Patching, PatchingClass, PatchingTorch, Buffering)
    for attack in (Idle, Generous, NotANumber, Flipping, Untidy, Moody, Reseeding, *leaving, Lazy, Helping):
        register(attack)
