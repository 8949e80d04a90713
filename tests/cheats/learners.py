"""Learners that look robust and are not: each cheats in one way, on the weights of an honest MAML."""

import torch

from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML


class Saturated(MAML):
    """Logits so large that the loss is flat in float32."""

    name = "saturated"

    def logits(self, model, state, x):
        return 1e4 * model(state, x)


class Quantised(MAML):
    """Rounds its input, which has no gradient, and so none goes through."""

    name = "quantised"

    def logits(self, model, state, x):
        return model(state, (x * 10).round() / 10)


class Noisy(MAML):
    """Adds noise to its input."""

    name = "noisy"

    def logits(self, model, state, x):
        return model(state, x + 0.3 * torch.randn_like(x))


class Softmax(MAML):
    """Gives probabilities for logits."""

    name = "softmax"

    def logits(self, model, state, x):
        return model(state, x).softmax(-1)


class Peeking(MAML):
    """Compares a query with the other queries, and does not say so."""

    name = "peeking"

    def logits(self, model, state, x):
        logits = model(state, x)
        return logits - logits.mean(0, keepdim=True)


class Masked(MAML):
    """Gradients that point nowhere: through the flipped image, while answers are those of the image itself."""

    name = "masked"

    def logits(self, model, state, x):
        honest, other = model(state, x), model(state, x.flip(-1).flip(-2))
        return other + (honest - other).detach()


@hookimpl
def register_learners(register):
    for learner in (Saturated, Quantised, Noisy, Softmax, Peeking, Masked):
        register(learner)
