"""Several attacks in turn, the cheapest first, each on what withstands those before it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register

from .apgd import APGD, APGDL2
from .fab import FAB, FABL2
from .fgsm import FGSM
from .pgd import PGD, PGDL2
from .search_attack import SearchAttack, WorstCase
from .square import Square, SquareL2, Squares


class Auto(SearchAttack):
    """The worst of FGSM, PGD, Auto-PGD with two losses, FAB and Square Attack, each on what withstood those before."""

    name: ClassVar[str] = "auto"
    source: ClassVar[str] = "after Croce & Hein 2020, https://arxiv.org/abs/2003.01690"

    steps: int = Field(100, ge=1, description="number of steps of Auto-PGD and FAB")
    queries: int = Field(5000, ge=1, description="queries of Square Attack, for each image")
    restarts: int = Field(1, ge=1, description="starts of Auto-PGD and FAB")

    _apgd: ClassVar[type[APGD]] = APGD
    _fab: ClassVar[type[FAB]] = FAB
    _square: ClassVar[type[Squares]] = Square

    def stronger(self) -> Attack | None:
        """Twice the steps and queries, and a start more."""
        more = {"steps": 2 * self.steps, "queries": 2 * self.queries, "restarts": self.restarts + 1}
        return self.model_copy(update=more)

    def search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """For each image of x [tasks, n, *shape] the first that fools; each attack has the draws of a row of its own.

        What the model gets wrong as it is, or at `start`, stays so. FGSM and PGD see all examples, so that this is
        never weaker than a row of them, to the last bit; the others begin at `start` if it is given.

        Raises:
            BenchError: the model's loss does not depend differentiably on x.
        """
        worst = WorstCase(model, x, y, x if start is None else start)
        for attack in self._cheap():
            worst.offer(attack.perturb(model, x, y, threat, Random(random.seeds)))
        for attack in self._strong(model.way, model.event_ndim):

            def go_on(x: Tensor, y: Tensor, random: Random, found: Tensor) -> Tensor:
                begin = None if start is None else found
                return attack.search(model, x, y, threat, random, begin)  # noqa: B023  # called at once

            worst.go_on(go_on, Random(random.seeds))
        return worst.found

    def _cheap(self) -> list[Attack]:
        """For all examples."""
        return [FGSM(), PGD()]

    def _strong(self, way: int, event_ndim: int) -> list[SearchAttack]:
        """For what withstands, as far as the number of classes and the shape of an example allow them."""
        effort = {"steps": self.steps, "restarts": self.restarts}
        attacks: list[SearchAttack] = [self._apgd(**effort, until_fooled=True)]
        if way >= 3:
            loss = "dlr-targeted" if way >= 4 else "dlr"
            attacks.append(self._apgd(**effort, until_fooled=True, loss=loss))
        attacks.append(self._fab(**effort))
        if event_ndim == 3:
            attacks.append(self._square(queries=self.queries))
        return attacks


class AutoL2(Auto):
    """The worst of PGD, Auto-PGD with two losses, FAB and Square Attack in the L2 norm, one after the other."""

    name: ClassVar[str] = "autol2"

    _apgd: ClassVar[type[APGD]] = APGDL2
    _fab: ClassVar[type[FAB]] = FABL2
    _square: ClassVar[type[Squares]] = SquareL2

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"

    def _cheap(self) -> list[Attack]:
        return [PGDL2()]


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `auto` and `autol2`."""
    register(Auto)
    register(AutoL2)
