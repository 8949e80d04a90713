"""What learners and backbones are both asked: do they answer alike when asked again, and each example by itself?"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robustbench_meta.engine.batch_dependence import MATES, Answers, influence_of_mates
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.testing.contract import expect
from robustbench_meta.testing.fixtures import apart


def expect_quiet(answers: Callable[[], Tensor], what: str, remedy: str) -> None:
    """Raise Broken unless identical calls give the same, whatever the seed of the global generators."""
    found = []
    for seed in (0, 1):
        seed_all(seed)
        found.append(answers())
    share = apart(*found)
    expect(share <= 1e-6, f"{what} of identical calls vary by {share:.2g} of their size", remedy)


def expect_no_mates(answers: Answers, x: Tensor, what: str, remedy: str) -> None:
    """Raise Broken if what is said of an example depends on the others of its task.

    Args:
        answers: of examples [tasks, n, *shape].
        x: examples.
        what: the answers, for the message.
        remedy: what to do.
    """
    for how, share in influence_of_mates(answers, x, answers(x)).items():
        expect(share <= MATES["float32"], f"{what} change by {share:.2g} of their size {how}", remedy)
