"""Defences of any learner by attacks in meta-training: AQ, adversarial training, TRADES, R-MAML."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import AdversarialDefence, AnyLearner, Operations, Toward, Update
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch


class AdversarialQuerying(AdversarialDefence):
    """A defence: judge adapted models on attacked queries only."""

    name: ClassVar[str] = "aq"
    source: ClassVar[str] = "Goldblum, Fowl, Goldstein 2020, arXiv 1910.00982, algorithm 2 (theirs trains with PGD-7)"

    def query_loss(self, ops: Operations, adapted: State, query: Batch) -> Tensor:
        """L(f_θ', query_adv), the attack made on θ'."""
        loss: Tensor = self.base.query_loss(ops, adapted, ops.perturb(adapted, query))
        return loss


class AdversarialTraining(AdversarialDefence):
    """A defence: train on attacked images in place of clean ones."""

    name: ClassVar[str] = "at"
    source: ClassVar[str] = "Madry et al. 2018, arXiv 1706.06083, for episodes as in Goldblum, Fowl, Goldstein 2020"

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """The base's objective on attacked tasks: queries through the adapted model, support through θ."""
        start = theta.detach()
        support = ops.perturb(start if self.theta_predicts else ops.adapt(start, tasks.support), tasks.support)
        query = ops.perturb(ops.adapt(start, support), tasks.query)
        return self.base.objective(ops, theta, TaskBatch(support, query))


class Trades(AdversarialDefence):
    """A defence: hold predictions on attacked queries to clean ones."""

    name: ClassVar[str] = "trades"
    source: ClassVar[str] = "Zhang et al. 2019, arXiv 1901.08573, on the queries as in Goldblum, Fowl, Goldstein 2020"

    c: float = Field(6.0, ge=0, description="weight of the divergence between clean and attacked predictions")

    def query_loss(self, ops: Operations, adapted: State, query: Batch) -> Tensor:
        """L(f_θ', query) + c·KL(f_θ'(query) ‖ f_θ'(query_adv)); the attack raises the loss, not the divergence."""
        divergence = kl(ops.logits(adapted, query.x), ops.logits(adapted, ops.perturb(adapted, query).x))
        clean: Tensor = self.base.query_loss(ops, adapted, query)
        return clean + self.c * divergence

    def base_objective(self, ops: Operations, theta: State, images: Batch) -> list[Update | Toward]:
        """The same on images of the base classes."""
        classifier = ops.base_classifier(theta)
        attacked = ops.perturb(classifier, images)
        divergence = kl(ops.logits(classifier, images.x), ops.logits(classifier, attacked.x))
        return [Update(ops.loss(classifier, images) + self.c * divergence)]


class RMAML(AdversarialDefence):
    """A defence: a second, smaller meta-update on attacked queries."""

    name: ClassVar[str] = "r-maml"
    source: ClassVar[str] = "Wang et al. 2021, arXiv 2102.10454, and its code (one Adam for both updates, theirs two)"

    train_attack: str = Field("pgd:steps=1", description="attack in meta-training (FGSM from a random start)")
    rate: float = Field(0.2, gt=0, description="of the update on attacked queries, as a factor on meta_lr")

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """L(f_θ', query), then rate·L(f_θ', query_adv)."""
        adapted = ops.adapt(theta, tasks.support)
        clean: Tensor = self.base.query_loss(ops, adapted, tasks.query)
        attacked: Tensor = self.base.query_loss(ops, adapted, ops.perturb(adapted, tasks.query))
        return [Update(clean), Update(attacked, self.rate)]

    def base_objective(self, ops: Operations, theta: State, images: Batch) -> list[Update | Toward]:
        """The same on images of the base classes."""
        classifier = ops.base_classifier(theta)
        attacked = ops.loss(classifier, ops.perturb(classifier, images))
        return [*self.base.base_objective(ops, theta, images), Update(attacked, self.rate)]


def kl(clean: Tensor, attacked: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(attacked)), averaged over a task's queries [tasks], for logits [tasks, n, way]."""
    log_clean = clean.log_softmax(-1)
    return (log_clean.exp() * (log_clean - attacked.log_softmax(-1))).sum(-1).mean(-1)


@hookimpl
def register_learners(register: Callable[[type[AnyLearner]], None]) -> None:
    """Bring aq, at, trades and r-maml."""
    for learner in (AdversarialQuerying, AdversarialTraining, Trades, RMAML):
        register(learner)
