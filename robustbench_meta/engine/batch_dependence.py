"""Does a query's answer depend on the other queries, or on chance?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

VARIES = {"float32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}
"""By precision: how far apart two identical calls may be, as a share of the largest logit."""


MATES = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""The same for a query's logits among other queries, whose batch is computed in another order."""


_ALONE = 8
"""How many of a task's queries are also asked alone."""


Answers = Callable[[Tensor], Tensor]
"""x [tasks, n, *shape] → logits [tasks, n, way], or other outputs."""


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
        "when it is asked alone": largest_change(
            torch.cat([answers(one) for one in torch.split(x[:, :_ALONE], 1, dim=1)], dim=1), whole[:, :_ALONE], whole
        ),
        "in another order": largest_change(answers(x[:, order])[:, order], whole, whole),
    }
    if x.shape[1] > 1:
        found["when a neighbour changes"] = largest_change(answers(changed)[:, 1:], whole[:, 1:], whole)
    return found


def variation(answers: Answers, x: Tensor, logits: Tensor) -> float:
    """The largest change of the logits when the same call is made again, as a share of the largest of its task."""
    return largest_change(answers(x), logits, logits)


def largest_change(found: Tensor, expected: Tensor, logits: Tensor) -> float:
    """Over tasks, the largest difference as a share of the task's largest logit; infinite between different shapes."""
    if found.shape != expected.shape:
        return float("inf")
    shares = (found - expected).abs().flatten(1).amax(1) / logits.abs().flatten(1).amax(1).clamp_min(1e-6)
    return float(shares.max())
