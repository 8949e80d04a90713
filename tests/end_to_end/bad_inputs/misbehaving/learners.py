"""Learners that load, and break their contract when they run; and a plugin that fails in an event."""

from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Update
from robustbench_meta.plugins.learners.maml import MAML


class Forgetful(MAML):
    """Its objective returns nothing."""

    name = "forgetful"

    def objective(self, ops, theta, tasks):
        Update(ops.loss(ops.adapt(theta, tasks.support), tasks.query))


class Bare(MAML):
    """Its objective returns a loss instead of a list of updates."""

    name = "bare"

    def objective(self, ops, theta, tasks):
        return ops.loss(ops.adapt(theta, tasks.support), tasks.query)


class Averaging(MAML):
    """Its objective averages over tasks."""

    name = "averaging"

    def objective(self, ops, theta, tasks):
        return [Update(ops.loss(ops.adapt(theta, tasks.support), tasks.query).mean())]


class Detached(MAML):
    """Its loss does not depend on θ."""

    name = "detached"

    def objective(self, ops, theta, tasks):
        return [Update(ops.loss(ops.adapt(theta, tasks.support), tasks.query).detach())]


class Diverging(MAML):
    """Its loss is infinite after a step or two."""

    name = "diverging"

    def objective(self, ops, theta, tasks):
        return [Update(ops.loss(ops.adapt(theta, tasks.support), tasks.query) * float("inf"))]


class Mute(MAML):
    """Its adaptation returns nothing."""

    name = "mute"

    def adapt(self, model, state, support, **settings):
        return None


class Talkative(MAML):
    """Its logits are of one class too many."""

    name = "talkative"

    def logits(self, model, state, x):
        logits = model(state, x)
        return logits[:, [0, *range(logits.shape[1])]]


class Peeking(MAML):
    """Compares queries with one another, and does not say so."""

    name = "peeking"

    def logits(self, model, state, x):
        logits = model(state, x)
        return logits - 3 * logits.mean(0, keepdim=True)


class Raising(MAML):
    """Raises."""

    name = "raising"

    def adapt(self, model, state, support, **settings):
        raise ValueError("the support set is not sorted")


class Unarmed(MAML):
    """Attacks, and names no attack."""

    name = "unarmed"

    def objective(self, ops, theta, tasks):
        return [Update(ops.loss(ops.adapt(theta, tasks.support), ops.perturb(theta, tasks.query)))]


class Bounded(MAML):
    """Has an option within bounds."""

    name = "bounded"
    depth: int = Field(3, ge=1, le=8, description="of nothing")


class Scaling(MAML):
    """Scales its support in place."""

    name = "scaling"

    def adapt(self, model, state, support, **settings):
        support.x.mul_(0.5)
        return super().adapt(model, state, support)


class Backward(MAML):
    """Asks for gradients as in training a classifier."""

    name = "backward"

    def adapt(self, model, state, support, **settings):
        model.loss(model(state, support.x), support.y).backward()
        return {name: weight - self.alpha * weight.grad for name, weight in state.items()}


class Worded(MAML):
    """Names an optimiser that there is not."""

    name = "worded"
    optimizer: str = "adamw"


@hookimpl
def register_learners(register):
    for learner in (
        Forgetful, Bare, Averaging, Detached, Diverging, Mute, Talkative, Peeking, Raising, Unarmed, Bounded, Scaling,
        Backward, Worded,
    ):  # fmt: skip
        register(learner)
