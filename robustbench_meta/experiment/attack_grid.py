"""Attacks with the ε that they are given: typed, or by default; each at every ε once, and what cannot be is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustbench_meta.contracts import AnyLearner, Attack, Dataset, Plugin
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.errors import BenchError, about
from robustbench_meta.experiment.profiles import get_profile
from robustbench_meta.experiment.spec import AttackSpec, PluginSpec, RunSpec
from robustbench_meta.options import Choice, Epsilon, exact, parse_choice, parse_eps, parse_eps_range, plain
from robustbench_meta.registry.registry import Registry


@dataclass(frozen=True)
class Threat:
    """An attack with the ε that it is given."""

    attack: Attack
    eps: Epsilon
    spec: AttackSpec
    label: str
    sweep: tuple[Epsilon, ...] = ()
    """The smaller ε at which the same attack runs, above 0, in ascending order; empty if it gains nothing by them."""

    @property
    def model(self) -> ThreatModel:
        """What its images must stay within."""
        return ThreatModel(self.attack.norm, self.eps.value)


def resolve_plugin(
    registry: Registry, kind: str, choice: Choice, profile: str | None = None, data_root: Path | None = None
) -> tuple[Any, PluginSpec, str]:
    """The plugin with its options, what identifies it, and its label; a profile fills in what was not typed."""
    cls: type[Plugin] = registry.get(kind, choice.name)
    options: dict[str, str] = {}
    if profile is not None:
        defaults = getattr(get_profile(profile), kind)
        known = registry.option_names(kind, choice)
        options = {key: value for key, value in defaults.items() if key in known}
    plugin = registry.make(kind, choice.name, {**options, **choice.options})
    dumped = (plugin.placed(data_root) if isinstance(plugin, Dataset) else plugin).model_dump(mode="json")
    spec = PluginSpec(name=choice.name, options=dumped, code=registry.code(kind, plugin))
    defaults = {key: info.get_default(call_default_factory=True) for key, info in cls.model_fields.items()}
    standard = {key: str(value) if isinstance(value, Path) else value for key, value in defaults.items()}
    return plugin, spec, spec.label(standard)


def split_eps(choice: Choice) -> tuple[Choice, str | None]:
    """The choice without the option `eps`, which every attack has and which is not the plugin's own; and that."""
    options = {key: value for key, value in choice.options.items() if key != "eps"}
    return Choice(choice.name, options), choice.options.get("eps")


def all_threats(run: RunSpec, dataset: Dataset, attacks: list[tuple[Attack, PluginSpec, str]]) -> list[Threat]:
    """Every attack at every ε that was typed for it (its own option, else --eps) or at a default, each once.

    --eps is the size of a perturbation: an attack whose ε is a severity does not take it.
    """
    own = [split_eps(choice)[1] for choice in run.choices("attack")]
    takes = [text is None and takes_eps(attack) for (attack, _, _), text in zip(attacks, own, strict=True)]
    _refuse_many_norms(run, dataset, [attack for attack, general in zip(attacks, takes, strict=True) if general])
    found: dict[str, Threat] = {}
    for (attack, spec, label), text, general, (typed, _) in zip(attacks, own, takes, run.typed("attack"), strict=True):
        with about("attacks", typed):
            mine = [] if text is None else parse_eps_range(text)
        given: Sequence[str | None] = (run.eps if general else mine) or [None]
        for eps in given:
            with about("eps", eps) if general and eps is not None else about("attacks", typed):
                for threat in _threats(dataset, attack, spec, label, [] if eps is None else [parse_eps(eps)]):
                    found.setdefault(threat.spec.model_dump_json(), threat)
    return [replace(threat, sweep=_sweep(threat, found.values())) for threat in found.values()]


def _sweep(threat: Threat, others: Collection[Threat]) -> tuple[Epsilon, ...]:
    """The smaller ε of the same attack, where it searches step by step."""
    if threat.attack.how() not in {"iterative", "black-box"} or threat.attack.clean:
        return ()
    same = [other.eps for other in others if other.spec.plugin == threat.spec.plugin]
    smaller = {eps.value: eps for eps in same if 0 < eps.value < threat.eps.value}
    return tuple(smaller[value] for value in sorted(smaller))


def _refuse_many_norms(run: RunSpec, dataset: Dataset, attacks: list[tuple[Attack, PluginSpec, str]]) -> None:
    """Raise when one --eps would be given to attacks of several norms, in which it means different things."""
    norms = {label: attack for attack, _, label in attacks if not attack.clean}
    if not run.eps or len({attack.norm for attack in norms.values()}) < 2:
        return
    first = next(iter(norms.values())).norm
    other = next(label for label, attack in norms.items() if attack.norm != first)
    try:
        usual = default_eps(dataset, norms[other], other).text
    except BenchError:
        usual = "1.0"
    error = BenchError(
        f"--eps {', '.join(run.eps)} would go to attacks of several norms, in which it means different things: "
        f"{', '.join(f'{label} ({attack.norm})' for label, attack in norms.items())}; give eps by attack, as "
        f"--attack {other}{',' if ':' in other else ':'}eps={usual}"
    )
    error.about = "eps", None
    raise error


def takes_eps(attack: Attack) -> bool:
    """Whether --eps is for it."""
    return not attack.clean and attack.norm != "severity"


def _threats(dataset: Dataset, attack: Attack, spec: PluginSpec, label: str, given: list[Epsilon]) -> Iterator[Threat]:
    if attack.clean:
        yield Threat(attack, Epsilon(0.0, "0"), AttackSpec(plugin=spec, norm="none", eps=0.0), label)
        return
    for eps in {eps.value: eps for eps in given}.values() or [default_eps(dataset, attack, label)]:
        _check_eps("attack", label, attack, eps)
        yield Threat(attack, eps, AttackSpec(plugin=spec, norm=attack.norm, eps=eps.value), label)


def _check_eps(kind: str, label: str, attack: Attack, eps: Epsilon) -> None:
    """Raise when the attack cannot work with this ε."""
    reason = attack.eps_obstacle(eps.value)
    if reason is not None:
        meant = attack.norm == "linf" and 1 < eps.value <= 255
        hint = f"; did you mean {plain(eps.value)}/255?" if meant else ""
        raise BenchError(f"invalid eps {eps.text} for {kind} '{label}': {reason}{hint}")


def default_eps(dataset: Dataset, attack: Attack, label: str) -> Epsilon:
    """ε when nobody typed one: the data set's for the attack's norm, else the attack's own.

    Raises:
        BenchError: neither has one.
    """
    found = dataset.eps.get(attack.norm, attack.default_eps())
    if found is None:
        raise BenchError(
            f"attack '{label}' works in the {attack.norm} norm, for which neither the data set '{dataset.name}' nor "
            f"the attack has a default eps: give one, as --attack {attack.name}:eps=1.0"
        )
    return parse_eps(found)


def training_threat(registry: Registry, dataset: Dataset, learner: AnyLearner, text: str, eps: float | None) -> Threat:
    """A learner's training attack, from how it names it and its ε (None: the one in the text, or by default)."""
    choice, own = split_eps(parse_choice(text, ";"))
    attack, spec, label = resolve_plugin(registry, "attack", choice)
    if attack.certifies:
        raise BenchError(f"learner '{learner.name}' cannot be trained against '{label}', which attacks nothing")
    if own is not None and eps is not None:
        raise BenchError(
            f"learner '{learner.name}' was given two eps for its training attack: {own} in '{text}', and {exact(eps)}; "
            "give one"
        )
    if own is not None:
        chosen = parse_eps(own)
    else:
        chosen = default_eps(dataset, attack, label) if eps is None else Epsilon(parse_eps(eps).value, exact(eps))
    _check_eps("training attack", label, attack, chosen)
    return Threat(attack, chosen, AttackSpec(plugin=spec, norm=attack.norm, eps=chosen.value), label)


def eps_values(texts: Collection[str]) -> list[float]:
    """ε as numbers."""
    return [parse_eps(text).value for text in texts]
