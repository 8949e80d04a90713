"""What is measured on the queries that a learner's objective judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass
class QueryMetrics:
    """Running sums of what `loss` saw, on the device: loss and accuracy of the judged queries."""

    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    batches: int = 0

    def add(self, losses: Tensor, accuracies: Tensor) -> None:
        """Add the losses and accuracies [tasks] of one call."""
        self.loss = self.loss + losses.detach().sum()
        self.correct = self.correct + accuracies.detach().sum()
        self.batches += losses.shape[0]

    def merge(self, other: QueryMetrics) -> None:
        """Add what another one saw."""
        self.loss, self.correct = self.loss + other.loss, self.correct + other.correct
        self.batches += other.batches

    def means(self) -> dict[str, float]:
        """Mean loss and accuracy since the start, empty if nothing was judged; waits for the device."""
        if not self.batches:
            return {}
        return {"loss": float(self.loss) / self.batches, "accuracy": float(self.correct) / self.batches}


class ValidationMetrics(NamedTuple):
    """What adapted states make of their queries."""

    clean: QueryMetrics
    attacked: QueryMetrics
    """By the learner's training attack; nothing where it has none."""
