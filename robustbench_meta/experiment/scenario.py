"""An attack at an ε, and where in a task it attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from robustbench_meta.contracts import Attack
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.options import THROUGH_ADAPTATION, Part


@dataclass(frozen=True)
class AttackAtEps:
    """An attack in its threat model, and the smaller ε through which it is swept: it begins where it ended there."""

    attack: Attack
    threat: ThreatModel
    sweep: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """The same for what gives the same images."""
        return f"{self.attack.name}{self.attack.model_dump_json()} {self.threat} {self.sweep}"

    def before(self) -> AttackAtEps | None:
        """The one at the next smaller ε of the sweep."""
        if not self.sweep:
            return None
        return replace(self, threat=replace(self.threat, eps=self.sweep[-1]), sweep=self.sweep[:-1])


@dataclass(frozen=True)
class Scenario:
    """Who attacks what; None: nobody does."""

    support: AttackAtEps | None = None
    """On θ before adaptation (or, where θ alone predicts nothing, on the model adapted to the clean support set)."""
    query: AttackAtEps | None = None
    """On the adapted model."""
    support_attack: Part = "adv"
    """How the support set is attacked, as `options.SCENARIOS` says."""
    surrogate: str | None = None
    """The key of the model on which the attack on the queries is made instead."""

    @classmethod
    def of(cls, at_eps: AttackAtEps, support: Part, query: Part, surrogate: str | None = None) -> Scenario:
        """What the words of `options.SCENARIOS` mean for support and query."""
        if at_eps.attack.clean:
            return cls()
        return cls(
            at_eps if support != "clean" else None, at_eps if query != "clean" else None,
            "adv" if support == "clean" else support, surrogate if query == "transfer" else None,
        )  # fmt: skip

    @property
    def poisons(self) -> bool:
        """Whether the attack on the support set goes through adaptation."""
        return self.support_attack in THROUGH_ADAPTATION

    @property
    def key(self) -> str:
        """The same for scenarios that give the same numbers."""
        sides = (side.key if side is not None else "" for side in (self.support, self.query))
        return "|".join([*sides, self.support_attack, str(self.surrogate)])
