"""What is seen of the model itself on clean and on noisy queries, and the flags that say so."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.engine.attacked_model import AttackedModel
from robustbench_meta.engine.batch_dependence import MATES, VARIES, influence_of_mates, largest_change
from robustbench_meta.engine.network import Network
from robustbench_meta.evaluation.episode_evaluator import AdaptableModel, EpisodeEvaluator
from robustbench_meta.experiment.scenario import Scenario

_MOST_ZEROS = 0.01
"""The share of the queries whose input gradient may be zero or not finite."""


@dataclass
class Observation:
    """What was seen of the model itself on clean queries, or on noisy ones."""

    queries: int = 0
    probabilities: int = 0
    """Rows of logits that are probabilities."""
    zero_gradients: int = 0
    """Queries whose input gradient is zero everywhere, or not finite."""
    varies: float = 0.0
    """The largest difference between two identical calls, as a share of the largest logit."""
    mates: float = 0.0
    """The largest change of a query's logits with the other queries (alone, permuted, one of them changed)."""
    remembers: float = 0.0
    """The largest change of logits with what the model was shown before."""
    one_class: int = 0
    """Queries of tasks whose queries are all given one class."""

    def merge(self, other: Observation) -> None:
        """Add what was seen on other episodes."""
        self.queries += other.queries
        self.probabilities += other.probabilities
        self.zero_gradients += other.zero_gradients
        self.one_class += other.one_class
        self.varies, self.mates = max(self.varies, other.varies), max(self.mates, other.mates)
        self.remembers = max(self.remembers, other.remembers)

    def shares(self) -> dict[str, float]:
        """For the record: shares of the queries, and differences as shares of the largest logit."""
        queries = max(self.queries, 1)
        return {
            "probabilities": self.probabilities / queries, "zero_gradients": self.zero_gradients / queries,
            "varies": self.varies, "mates": self.mates, "remembers": self.remembers,
            "one_class": self.one_class / queries,
        }  # fmt: skip

    def flags(self, precision: str) -> list[str]:
        """The flags of the model itself."""
        found = {
            "probabilities": 2 * self.probabilities > self.queries,
            "random-outputs": self.varies > VARIES[precision],
            "remembers": self.varies <= VARIES[precision] and self.remembers > VARIES[precision],
            "one-class": 2 * self.one_class > self.queries,
            "transductive": self.varies <= VARIES[precision] and self.mates > MATES[precision],
            "zero-gradients": self.zero_gradients > _MOST_ZEROS * self.queries,
        }
        return [name for name, seen in found.items() if seen]


def observe(episode_evaluator: EpisodeEvaluator) -> Observation:
    """Look at the model on the evaluator's clean queries."""
    x, y, logits = episode_evaluator.tasks.query.x, episode_evaluator.tasks.query.y, episode_evaluator.logits
    seen, again = _seen(episode_evaluator.victim(), x, y)

    def answers(images: Tensor) -> Tensor:
        return episode_evaluator.engine.logits(episode_evaluator.adapted, images.clone())

    seen.varies = largest_change(again, logits, logits)
    seen.mates = max(influence_of_mates(answers, x, logits).values())
    return seen


class UnexposedCopy:
    """The model as it was before these episodes were shown to it: what a later answer is held against.

    Args:
        trained_model: the trained learner; it is copied. What cannot be copied is held against itself alone.
    """

    def __init__(self, trained_model: AdaptableModel) -> None:
        engine, theta = trained_model
        network = engine.network
        try:
            module, learner = copy.deepcopy((network.module, engine.learner))
        except Exception:  # a module may hold what has no copy: a lock, a weight computed from others (weight_norm)
            module, learner = network.module, engine.learner
        alike = Network(module, network.loss_name, network.way, network.precision)
        plan = replace(engine.plan, compiled=False)
        self._engine = replace(engine, learner=learner, network=alike, plan=plan, compiled={})
        self._theta = self._engine.theta(theta.tree)
        self._adapted: State | None = None

    def observe(self, episode_evaluator: EpisodeEvaluator, noise: Scenario) -> Observation:
        """Look at the evaluator's model on the queries of a scenario that was held before clean ones were shown.

        The copy is shown the clean ones first. A model whose answers depend on the images alone gives the same ones.
        """
        held, (x, y) = episode_evaluator.evaluate(noise), episode_evaluator.tasks.query
        assert held.query is not None
        changes = []
        if self._adapted is None:
            support = episode_evaluator.tasks.support
            with self._engine.seeded_for("adapt clean", episode_evaluator.device):  # as the evaluator's own
                self._adapted = self._engine.adapt(self._theta, Batch(support.x.clone(), support.y.clone()))
            changes.append(
                largest_change(
                    self._engine.logits(self._adapted, x.clone()), episode_evaluator.logits, episode_evaluator.logits
                )
            )
        seen, after = _seen(episode_evaluator.victim(), held.query, y)
        changes += [largest_change(logits, held.logits, held.logits)
                    for logits in (after, self._engine.logits(self._adapted, held.query.clone()))]  # fmt: skip
        return replace(seen, remembers=max(changes))


def _probabilities(logits: Tensor) -> Tensor:
    """Whether each row is a distribution: nothing below 0, and a sum of 1."""
    return (logits >= 0).all(-1) & ((logits.sum(-1) - 1).abs() < 1e-3)


def _seen(victim: AttackedModel, x: Tensor, y: Tensor) -> tuple[Observation, Tensor]:
    """What one look at these images tells, their gradients among it, and their logits."""
    with torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        logits = victim(images)
        loss = victim.losses(logits, y).sum()
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    logits = logits.detach()
    chosen = logits.argmax(-1)
    none = y.numel()
    if gradient is not None:
        flat = gradient.flatten(2)
        none = int(((flat == 0).all(-1) | ~flat.isfinite().all(-1)).sum())
    alike = (chosen == chosen[:, :1]).all(1) & (y != y[:, :1]).any(1)
    seen = Observation(y.numel(), int(_probabilities(logits).sum()), none)
    return replace(seen, one_class=int(alike.sum()) * y.shape[1]), logits
