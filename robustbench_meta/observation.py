"""What is seen of the model itself on clean and on noisy queries, and the flags that say so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_meta.models import Network, State
from robustbench_meta.tasks import Batch
from robustbench_meta.trials import Arena, Contestant, Trial
from robustbench_meta.victims import AttackedModel

VARIES = {"float32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}
"""By precision: how far apart two identical calls may be, as a share of the largest logit."""
MATES = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""The same for a query's logits among other queries, whose batch is computed in another order."""
_MOST_ZEROS = 0.01
"""The share of the queries whose input gradient may be zero or not finite."""
_ALONE = 8
"""How many of a task's queries are also asked alone."""
Answers = Callable[[Tensor], Tensor]
"""x [tasks, n, *shape] → logits [tasks, n, way], or other outputs."""


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


def observe(arena: Arena) -> Observation:
    """Look at the model on the arena's clean queries."""
    x, y, logits = arena.tasks.query.x, arena.tasks.query.y, arena.logits
    seen, again = _seen(arena.victim(), x, y)

    def answers(images: Tensor) -> Tensor:
        return arena.engine.logits(arena.adapted, images.clone())

    seen.varies = _largest_change(again, logits, logits)
    seen.mates = max(influence_of_mates(answers, x, logits).values())
    return seen


class Fresh:
    """The model as it was before these episodes were shown to it: what a later answer is held against.

    Args:
        contestant: the trained learner; it is copied. What cannot be copied is held against itself alone.
    """

    def __init__(self, contestant: Contestant) -> None:
        engine, theta = contestant
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

    def observe(self, arena: Arena, noise: Trial) -> Observation:
        """Look at the arena's model on the queries of a trial that was held before clean ones were shown.

        The copy is shown the clean ones first. A model whose answers depend on the images alone gives the same ones.
        """
        held, (x, y) = arena.hold(noise), arena.tasks.query
        assert held.query is not None
        changes = []
        if self._adapted is None:
            support = arena.tasks.support
            with self._engine.drawing("adapt clean", arena.device):  # as the arena's own
                self._adapted = self._engine.adapt(self._theta, Batch(support.x.clone(), support.y.clone()))
            changes.append(_largest_change(self._engine.logits(self._adapted, x.clone()), arena.logits, arena.logits))
        seen, after = _seen(arena.victim(), held.query, y)
        changes += [_largest_change(logits, held.logits, held.logits)
                    for logits in (after, self._engine.logits(self._adapted, held.query.clone()))]  # fmt: skip
        return replace(seen, remembers=max(changes))


def influence_of_mates(answers: Answers, x: Tensor, whole: Tensor) -> dict[str, float]:
    """The largest change of an example's logits when it is alone, in another order, or a mate is another image.

    Args:
        answers: gives the logits.
        x: examples [tasks, n, *shape].
        whole: their logits [tasks, n, way] in one batch.

    Returns:
        In words when, and the change as a share of the largest logit of its task; infinite for logits of another shape.
    """
    order = torch.arange(x.shape[1], device=x.device).flip(0)
    changed = torch.cat([1 - x[:, :1], x[:, 1:]], 1)
    found = {
        "when it is asked alone": _largest_change(
            torch.cat([answers(one) for one in torch.split(x[:, :_ALONE], 1, dim=1)], dim=1), whole[:, :_ALONE], whole
        ),
        "in another order": _largest_change(answers(x[:, order])[:, order], whole, whole),
    }
    if x.shape[1] > 1:
        found["when a neighbour changes"] = _largest_change(answers(changed)[:, 1:], whole[:, 1:], whole)
    return found


def variation(answers: Answers, x: Tensor, logits: Tensor) -> float:
    """The largest change of the logits when the same call is made again, as a share of the largest of its task."""
    return _largest_change(answers(x), logits, logits)


def _largest_change(found: Tensor, expected: Tensor, logits: Tensor) -> float:
    """Over tasks, the largest difference as a share of the task's largest logit; infinite between different shapes."""
    if found.shape != expected.shape:
        return float("inf")
    shares = (found - expected).abs().flatten(1).amax(1) / logits.abs().flatten(1).amax(1).clamp_min(1e-6)
    return float(shares.max())


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
