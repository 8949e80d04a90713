"""Part of a results folder, chosen by the names that its tables show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.options import parse_eps


@dataclass(frozen=True)
class Selection:
    """The values that rows must have; none given: any. Those of ε and scenario bind attacked rows alone."""

    learners: Sequence[str] = ()
    attacks: Sequence[str] = ()
    eps: Sequence[str] = ()
    scenarios: Sequence[str] = ()

    @property
    def everything(self) -> bool:
        """Whether nothing was chosen."""
        return not (self.learners or self.attacks or self.eps or self.scenarios)

    def keys(self, frame: pd.DataFrame) -> set[str]:
        """The records of the rows of a leaderboard that are chosen.

        Raises:
            BenchError: a value that no row has, or values that no row has together.
        """
        attacked = frame["threat_norm"] != "none"
        kept = pd.Series(True, index=frame.index)
        for kind, wanted in (("learner", self.learners), ("attack", self.attacks)):
            if wanted:
                kept &= frame[kind].isin([_known(kind, name, frame[kind]) for name in wanted])
        if self.eps:
            sizes = frame["eps"].map(lambda text: parse_eps(str(text)).value)
            values = {parse_eps(text).value: text for text in self.eps}
            for value, text in values.items():
                if not (attacked & (sizes == value)).any():
                    there = ", ".join(dict.fromkeys(frame.loc[attacked, "eps"])) or "none"
                    raise BenchError(f"nothing was attacked at eps {text}; there is: {there}")
            kept &= ~attacked | sizes.isin(list(values))
        if self.scenarios:
            scenes = frame["support"] + "/" + frame["query"]
            kept &= ~attacked | scenes.isin([_known("scenario", name, scenes) for name in self.scenarios])
        if not kept.any():
            raise BenchError("no finished cell has all that was chosen; leave one of the options out")
        return set(frame.loc[kept, "spec_hash"])


def _known(kind: str, name: str, column: pd.Series[str]) -> str:
    if name not in set(column):
        raise not_there(kind, name, set(column))
    return name


def not_there(kind: str, name: str, there: set[str]) -> BenchError:
    """The error that results have nothing of that name."""
    told = unknown(kind, name, there, " in these results")
    return BenchError(told if "did you mean" in told else f"{told}; `bench run --{kind} {name}` computes it")
