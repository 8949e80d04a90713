"""All cases by name, and by the groups that they are chosen with."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import endtoend, evaluation, gradients, scaling
from robustbench_meta.errors import BenchError

Case = gradients.Gradient | evaluation.Evaluation | endtoend.FromDisk | endtoend.DefaultGrid | scaling.Scaling
CASES: tuple[Case, ...] = (*gradients.CASES, *evaluation.CASES, *endtoend.CASES, *scaling.CASES)
GROUPS = tuple(dict.fromkeys(case.group for case in CASES))


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names or groups, in their own order; all of them if none is named.

    Raises:
        BenchError: a name that is neither.
    """
    known = {case.name for case in CASES} | set(GROUPS)
    wrong = [name for name in names if name not in known]
    if wrong:
        raise BenchError(f"no case or group '{wrong[0]}'; there are: {', '.join(sorted(known))}")
    return [case for case in CASES if not names or case.name in names or case.group in names]
