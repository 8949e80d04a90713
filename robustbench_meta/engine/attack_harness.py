"""Runs attacks and distrusts them: what they return is checked, what they may not touch is guarded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.contracts.threat_model import DeferredViolations, ThreatModel
from robustbench_meta.engine.attacked_model import Perturbation, Target
from robustbench_meta.engine.module_snapshot import Modules
from robustbench_meta.errors import BenchError, ViolationError, located
from robustbench_meta.runtime.seeds import restored, seed_all


def guarded(
    attack: Attack, threat: ThreatModel, deferred: DeferredViolations | None = None, *, for_success: bool = False
) -> Perturbation:
    """Bind an attack to its threat model: each call runs it, then verifies what it returned and left behind.

    `ThreatModel.verify` enforces ε and the pixel range. With `deferred` (meta-training on CUDA, which would have to
    wait for the device) it is enforced later, at the next validation or snapshot. With `for_success` nothing counts but
    which examples are fooled.

    Raises (when called):
        ViolationError: outside the threat model, or labels, weights or modules were changed, or torch reseeded.
        BenchError: the attack itself raised.
    """

    def perturb(model: Target, x: Tensor, y: Tensor, random: Random, start: Tensor | None = None) -> Tensor:
        if attack.clean:
            return x
        guard = _Guard(attack.name, model, deferred, lambda: model.loss(x.clone(), y))
        given = Batch(
            x.detach().clone(), y.clone()
        )  # what it is given is its own to spoil, and is looked at afterwards
        begin = None if start is None else start.detach().clone()
        with restored(x.device), guard, torch.enable_grad():
            x_adv = _run(attack, model, given, threat, random, begin, for_success=for_success)
            guard.compare([("its images", given.x, x), ("the labels", given.y, y)])
        threat.verify(attack.name, x_adv, x, model.event_ndim, deferred)
        return x_adv

    return perturb


def certified(attack: Attack, model: Target, sigma: float, batch: Batch, random: Random) -> Tensor:
    """The radius within which an attack that certifies proves each prediction right [tasks, n]; −1: it does not.

    Raises:
        ViolationError: it has another shape or is not a number, or weights or modules were changed.
        BenchError: the attack itself raised.
    """
    x, y = batch
    guard = _Guard(attack.name, model, None, lambda: model.loss(x.clone(), y))
    with restored(x.device), guard, _named(attack):
        seed_all(random.seed())
        radius: object = attack.certified_radius(model, sigma, x.clone(), y.clone(), random)
    if not isinstance(radius, Tensor) or radius.shape != y.shape or bool(radius.isnan().any()):
        what = f"{tuple(radius.shape)}" if isinstance(radius, Tensor) else type(radius).__name__
        raise ViolationError(
            f"attack '{attack.name}' returned {what} as certified_radius; expected {tuple(y.shape)} numbers"
        )
    return radius


class _Guard:
    """What an attack must leave as it is: compared when it is over, and given back as it was, however it ended.

    Args:
        attack: its name, for messages.
        model: its weights, buffers and modules, with their modes, attributes, methods and hooks.
        deferred: where given, changed values are noted there, to be judged later: on a GPU, to compare is to wait.
        ask: asks the model once, to see what modules write into themselves.
    """

    def __init__(
        self, attack: str, model: Target, deferred: DeferredViolations | None, ask: Callable[[], object]
    ) -> None:
        self._attack, self._deferred, self._ask = attack, deferred, ask
        self._modules = Modules(model.modules())
        self._live = list({id(tensor): tensor for tensor in model.tensors()}.values())
        self._kept = [tensor.detach().clone() for tensor in self._live]

    def __enter__(self) -> _Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self._modules.restore()
        pairs = list(zip(self._live, self._kept, strict=True))
        if self._deferred is None:
            changed = [(live, kept) for live, kept in pairs if bool(_differs(live, kept))]
            with torch.no_grad():
                for live, kept in changed:
                    live.copy_(kept)
            if changed and (error is None or isinstance(error, Exception)):  # else it was interrupted in the middle
                raise self._changed("the model's weights") from error
        if error is not None:
            return
        if self._deferred is not None:
            self.compare([("the model's weights", *pair) for pair in pairs])
        if left:
            with torch.no_grad():
                self._ask()
            left -= self._modules.restore()  # what the model writes into itself is no attack's doing
        modes = sum(name.endswith(".training") for name in left)
        if modes:
            raise ViolationError(
                f"attack '{self._attack}' left {modes} of the model's modules in another mode (training or "
                "evaluation); it must leave them as they were"
            )
        if left:
            raise ViolationError(
                f"attack '{self._attack}' left something on the model: {', '.join(sorted(left)[:3])}; it must remove "
                "its hooks, and give attributes and methods back (try … finally)"
            )

    def compare(self, pairs: Sequence[tuple[str, Tensor, Tensor]]) -> None:
        """Raise, or note for later, unless each tensor is what it was: (what it is, as it is, as it was)."""
        if self._deferred is not None:
            for what, live, kept in pairs:
                self._deferred.suspect(self._changed(what), _differs(live, kept))
            return
        for what, live, kept in pairs:
            if bool(_differs(live, kept)):
                raise self._changed(what)

    def _changed(self, what: str) -> ViolationError:
        return ViolationError(f"attack '{self._attack}' changed {what} in place; it must work on copies")


def _differs(live: Tensor, kept: Tensor) -> Tensor:
    """Whether any value is another one; NaN is NaN. Stays on the device."""
    now = live.detach()
    return ((now != kept) & ~(now.isnan() & kept.isnan())).any()


def _run(
    attack: Attack, model: Target, given: Batch, threat: ThreatModel, random: Random, start: Tensor | None, *,
    for_success: bool,
) -> Tensor:  # fmt: skip
    x, y = given
    with _named(attack):
        attack = attack.for_success() if for_success else attack
        if not attack.per_task:
            return _once(attack, model, x, y, threat, random, start)
        rows = [
            _once(attack, model.task(index), x[index], y[index], threat, own, None if start is None else start[index])
            for index, own in enumerate(random.split())
        ]
        for row in rows:
            if row.shape != x.shape[1:]:
                raise ViolationError(
                    f"attack '{attack.name}' returned {tuple(row.shape)} for one task; expected {tuple(x.shape[1:])}"
                )
        return torch.stack(rows)


@contextmanager
def _named(attack: Attack) -> Iterator[None]:
    """Say of errors of a plugin's own whose they are.

    Raises:
        BenchError: the attack itself raised.
    """
    try:
        yield
    except (BenchError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise BenchError(f"attack '{attack.name}' failed: {located(error)}") from error


def _once(
    attack: Attack, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
) -> Tensor:
    """One call of the attack, with the global generators seeded; it may draw from them, and may not reseed them."""
    seed_all(random.seed())
    seed = torch.initial_seed()
    if start is None:
        found = _tensor(attack, attack.perturb(model, x, y, threat, random))
    else:
        found = _tensor(attack, attack.perturb_from(model, x, y, threat, random, start))
    if torch.initial_seed() != seed:
        raise ViolationError(
            f"attack '{attack.name}' reseeded torch's generator, so that its draws are not the run's: it must draw "
            "from `random`, or fork the generator around what seeds itself (torch.random.fork_rng)"
        )
    return found


def _tensor(attack: Attack, returned: object) -> Tensor:
    if isinstance(returned, Tensor):
        return returned.detach().clone()  # the attack may still hold its own, and write into it
    raise ViolationError(
        f"attack '{attack.name}' returned {type(returned).__name__}; expected a tensor of adversarial images"
        + (": is a `return` missing?" if returned is None else "")
    )
