"""Can a number be believed? The flags of a row, and what they rest on.

`docs/flags.md` says of each flag what it means, how it is computed, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from robustbench_meta.contracts import LossName
from robustbench_meta.evaluation.model_checks import Observation
from robustbench_meta.evaluation.statistics import above, mean_and_ci95
from robustbench_meta.experiment.probes import checked_of
from robustbench_meta.experiment.scenario import Scenario

ENOUGH = 600
"""Episodes from which on a row rests on enough of them: as many as the papers take."""

FLAGS: dict[str, str] = {
    "probabilities": "the logits are probabilities: losses of them saturate, and attacks on them are weak",
    "random-outputs": "two identical calls give different logits: an attack must average over the randomness",
    "remembers": "answers depend on what the model was shown before, not on the images alone",
    "transductive": "a query's prediction depends on the other queries of its batch",
    "zero-gradients": "many queries have an input gradient that is zero or not finite: gradient attacks see nothing",
    "no-effect": "the attack does nothing to an undefended model (nearest class mean of the pixels)",
    "weaker-than-noise": "random noise of the same size does more harm than the attack",
    "weaker-than-fgsm": "one gradient step does more harm than this attack",
    "above-clean": "the model is more accurate under the attack than without it",
    "not-converged": "the same attack with more steps or restarts changes the accuracy by more than its interval",
    "masked-gradients": "an attack without gradients of this model does more harm than those with them",
    "flat-in-eps": "accuracy under PGD does not fall with eps",
    "robust-at-full-range": "accuracy stays above chance when every pixel may be changed at will",
    "at-chance": "clean accuracy is not above chance: there is nothing to attack",
    "one-class": "the model gives all queries of a task one class, in most tasks",
    "loss-flat": "the training loss did not fall, and is not below that of a blind guess",
    "fgsm-alone": "no attack of more than one step: the number is no claim of robustness",
    "few-episodes": f"fewer than {ENOUGH} episodes",
    "unchecked": "the reliability checks were skipped, or one of their probes failed (the record tells which)",
}
"""What each flag means, in a line. Comparing rows can add some: `results/cross_row_flags.py`."""


@dataclass
class ReliabilityReport:
    """What the checks of one row saw: what its flags are made of, kept in its record."""

    episodes: int
    """On how many episodes probes ran."""
    accuracies: dict[str, float] = field(default_factory=dict)
    """Of the row and of each probe on these episodes."""
    observed: dict[str, float] = field(default_factory=dict)
    effect: float | None = None
    """How far the attack lowers the margin of the undefended model; None: not tested."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a probe could not be run, by its name."""
    flags: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For the record."""
        told = {name: round(value, 6) for name, value in self.accuracies.items()}
        return {
            "episodes": self.episodes, "accuracies": told,
            "observed": {name: float(f"{value:.3g}") for name, value in self.observed.items()},
            "effect": None if self.effect is None else float(f"{self.effect:.4g}"), "failed": self.failed,
        }  # fmt: skip


def assess(
    scenario: Scenario, clean: np.ndarray, robust: np.ndarray, found: Mapping[str, np.ndarray],
    observation: Observation, *,
    effects: np.ndarray | None, failed: Mapping[str, str], way: int, precision: str,
) -> ReliabilityReport:  # fmt: skip
    """The flags of one row, and what they rest on.

    Args:
        scenario: the row's.
        clean: whether each query is right without attack [episodes, queries].
        robust: the same in the row's scenario.
        found: the same for each probe, by name, on the first episodes.
        observation: of the model.
        effects: of the self-test, by episode; None where there was none.
        failed: why probes could not be run, by name.
        way: classes in a task.
        precision: what layers were computed in.
    """
    checked = checked_of(len(robust))
    own = robust[:checked].mean(1)
    probed = {name: correct.mean(1) for name, correct in found.items()}
    flags = observation.flags(precision)
    attacked = scenario.query or scenario.support
    searched = attacked is not None and attacked.threat.norm != "severity" and not attacked.attack.certifies
    if not searched:  # no gradient is asked for
        flags = [flag for flag in flags if flag != "zero-gradients"]
    if effects is not None and not above(effects, 0.0):
        flags.append("no-effect")
    flags += _compared(scenario, clean[:checked].mean(1), robust, own, probed, found, way)
    if attacked is not None and attacked.threat.eps > 0 and searched and above(robust.mean(1) - clean.mean(1), 0.0):
        flags.append("above-clean")
    flags += [] if above(clean.mean(1), 1 / way) else ["at-chance"]
    flags += ["few-episodes"] if len(robust) < ENOUGH else []
    flags += ["unchecked"] if failed else []
    return ReliabilityReport(
        episodes=checked,
        accuracies={
            name: float(values.mean()) for name, values in {"clean": clean[:checked], "row": own, **probed}.items()
        },
        observed=observation.shares(),
        effect=None if effects is None else float(effects.mean()),
        failed=dict(failed),
        flags=[name for name in FLAGS if name in flags],
    )


def _compared(
    scenario: Scenario, clean: np.ndarray, robust: np.ndarray, own: np.ndarray, probed: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray], way: int,
) -> Iterator[str]:  # fmt: skip
    """The flags that come from the accuracies of the row and of its probes, by episode."""
    if "noise" in probed and above(own - probed["noise"], 0.0):
        yield "weaker-than-noise"
    if "single step" in probed and above(own - probed["single step"], 0.0):
        yield "weaker-than-fgsm"
    if "stronger" in probed:
        gained = own - probed["stronger"]
        if above(gained, 0.0) and float(gained.mean()) > mean_and_ci95(robust.mean(1))[1]:
            yield "not-converged"
    if {"black box", "pgd"} <= probed.keys() and scenario.query is not None:
        worst = found["pgd"].copy()
        if "single step" in found:
            worst &= found["single step"]
        if above(worst.mean(1) - probed["black box"], 0.0):
            yield "masked-gradients"
    if {"pgd", "pgd, 2 eps", "pgd, full range"} <= probed.keys():
        path = [clean, probed["pgd"], probed["pgd, 2 eps"], probed["pgd, full range"]]
        rises = any(above(larger - smaller, 0.0) for smaller, larger in pairwise(path))
        if rises or (above(clean, 1 / way) and not above(clean - path[-1], 0.0)):
            yield "flat-in-eps"
        if above(path[-1], 1 / way):
            yield "robust-at-full-range"


def of_training(history: Sequence[Mapping[str, float]], loss: LossName, way: int) -> list[str]:
    """The flag of a training that learned nothing, by its losses at validations.

    Args:
        history: of the training.
        loss: of the data set.
        way: classes in a task.
    """
    # an objective may judge by other means: then the losses are those of the validation
    losses = [entry.get("loss", entry.get("validation_loss", math.nan)) for entry in history]
    blind = math.log(way) if loss == "cross_entropy" else (way - 1) / way**2
    return ["loss-flat"] if len(losses) > 1 and losses[-1] > 0.99 * max(losses[0], blind) else []


def unchecked(episodes: int) -> list[str]:
    """The flags of a row whose checks were skipped."""
    return ["few-episodes", "unchecked"] if episodes < ENOUGH else ["unchecked"]
