"""What a row is held against: the same episodes under noise, one step, more steps, more ε, and no gradients."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from robustbench_meta.contracts import Attack
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario

BLACK_BOX_QUERIES = 200
"""Of the square attack that no white-box attack may be weaker than."""


@dataclass(frozen=True)
class Probes:
    """The attacks that probes are made of, by norm, and what identifies their code."""

    noise: Mapping[Norm, Attack]
    one_step: Mapping[Norm, Attack]
    many_steps: Mapping[Norm, Attack]
    black_box: Mapping[Norm, Attack]
    code: str

    @property
    def digest(self) -> str:
        """Changes with the code of the probes."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]


def assemble(make: Callable[[str, dict[str, str]], Attack], code: Callable[[str], str]) -> Probes:
    """The probes, from what makes an attack of a name and options, and tells its code."""

    def chosen(linf: tuple[str, dict[str, str]], l2: tuple[str, dict[str, str]]) -> dict[Norm, Attack]:
        names.extend([linf[0], l2[0]])
        return {"linf": make(*linf), "l2": make(*l2)}

    names: list[str] = []
    queries = {"queries": str(BLACK_BOX_QUERIES)}
    noise = chosen(("noise", {}), ("noisel2", {}))
    one_step = chosen(("fgsm", {}), ("pgdl2", {"steps": "1", "random_start": "false"}))
    many_steps = chosen(("pgd", {}), ("pgdl2", {}))
    black_box = chosen(("square", queries), ("squarel2", queries))
    told = " ".join(f"{name} {code(name)}" for name in sorted(set(names)))
    return Probes(noise, one_step, many_steps, black_box, told)


def checked_of(episodes: int) -> int:
    """On how many of so many test episodes, the first ones, probes run: a twelfth of them, at least 16, at most 50.

    Differences in pairs need fewer episodes than accuracies.
    """
    return min(max(16, min(episodes // 12, 50)), episodes)


class Probe(NamedTuple):
    """A scenario that a row is held against."""

    name: str
    scenario: Scenario


def probes(probe_plan: Probes, scenario: Scenario, shape: Sequence[int]) -> list[Probe]:
    """What is run besides a row's own scenario, on the first `checked_of` episodes.

    Queries that are attacked on the model itself are probed most; other rows less, as docs/flags.md tells.
    """
    at_eps = scenario.query or scenario.support
    if at_eps is None or at_eps.threat.eps == 0 or at_eps.threat.norm not in probe_plan.noise:
        return []
    if at_eps.attack.clean or at_eps.attack.certifies:
        return []
    found = list(_baselines(probe_plan, scenario, at_eps))
    if scenario.surrogate is not None:
        return found
    stronger = at_eps.attack.stronger()
    if stronger is not None and (scenario.support is None or (scenario.query is None and scenario.poisons)):
        found.append(Probe("stronger", _instead(scenario, stronger)))
    if scenario.support is None:
        found += _white_box(probe_plan, at_eps, shape)
    return found


def _baselines(probe_plan: Probes, scenario: Scenario, at_eps: AttackAtEps) -> Iterator[Probe]:
    """Noise and a single step in the place of the row's last attack."""
    norm = at_eps.threat.norm
    yield Probe("noise", _instead(scenario, probe_plan.noise[norm]))
    misled = scenario.surrogate is not None or (scenario.query is None and not scenario.poisons)
    if not misled:
        yield Probe("single step", _instead(scenario, probe_plan.one_step[norm]))


def _instead(scenario: Scenario, attack: Attack) -> Scenario:
    """The same scenario with another attack on what is attacked last, without a sweep."""
    if scenario.query is not None:
        return replace(scenario, query=AttackAtEps(attack, scenario.query.threat))
    assert scenario.support is not None
    return replace(scenario, support=AttackAtEps(attack, scenario.support.threat))


def _white_box(probe_plan: Probes, at_eps: AttackAtEps, shape: Sequence[int]) -> Iterator[Probe]:
    norm, eps = at_eps.threat.norm, at_eps.threat.eps
    most = 1.0 if norm == "linf" else math.sqrt(math.prod(shape))
    attack = probe_plan.many_steps[norm]
    yield Probe("pgd", Scenario(query=AttackAtEps(attack, at_eps.threat)))
    yield Probe("pgd, 2 eps", Scenario(query=AttackAtEps(attack, ThreatModel(norm, min(2 * eps, most)))))
    yield Probe("pgd, full range", Scenario(query=AttackAtEps(attack, ThreatModel(norm, most))))
    yield Probe("black box", Scenario(query=AttackAtEps(probe_plan.black_box[norm], at_eps.threat)))
