"""One call of an attack, as the harness makes it, with nothing refused and all noted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attacked_model import Target
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.runtime.tensor_snapshot import Snapshot

SEEDS = (11, 12, 13)
"""Of the tasks."""


@dataclass
class Attempt:
    """One call of an attack, or of one a task, and all that it left behind."""

    where: str
    x: Tensor
    threat: ThreatModel
    event: int
    found: object = None
    error: Exception | None = None
    touched: tuple[str, ...] = ()
    reseeded: bool = False

    @property
    def images(self) -> Tensor | None:
        """What it returned, if these are images such as it was given."""
        found = self.found
        fits = isinstance(found, Tensor) and found.shape == self.x.shape and found.dtype == self.x.dtype
        return found if fits else None  # type: ignore[return-value]  # `fits` says what mypy cannot see


class RecordingModel:
    """A victim that notes what it is shown, and can be told to call itself transductive, or to have no gradient."""

    def __init__(self, victim: Target, *, transductive: bool | None = None, gradient: bool = True) -> None:
        self._victim, self._gradient = victim, gradient
        self.way, self.event = victim.way, victim.event
        self.transductive = victim.transductive if transductive is None else transductive
        self.shown: list[torch.Size] = []

    def _note(self, x: Tensor) -> Tensor:
        self.shown.append(x.shape)
        return x if self._gradient else x.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x."""
        return self._victim(self._note(x))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example."""
        return self._victim.loss(self._note(x), y)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each example is answered wrongly."""
        return self._victim.fooled(self._note(x), y)

    def task(self, index: int) -> Victim:
        """One task's victim, which notes in the same list."""
        one = RecordingModel(self._victim.task(index), transductive=self.transductive, gradient=self._gradient)  # type: ignore[arg-type]  # a task's victim is not asked for tasks
        one.shown = self.shown
        return one

    def tensors(self) -> list[Tensor]:
        """The victim's."""
        return self._victim.tensors()

    def modules(self) -> Iterator[nn.Module]:
        """The victim's."""
        return self._victim.modules()


def attempt(
    attack: Attack, victim: Target, batch: Batch, threat: ThreatModel, where: str = "", seeds: Sequence[int] = SEEDS,
    start: Tensor | None = None,
) -> Attempt:  # fmt: skip
    """Call the attack as the harness does, on copies; nothing that it does is refused, all is noted."""
    x, y = batch.x.clone(), batch.y.clone()
    begin = None if start is None else start.clone()
    trial = Attempt(where, batch.x, threat, victim.event)
    guarded = {"the images that it was given": x, "the labels": y} | ({} if begin is None else {"the start": begin})
    guarded |= {f"the model's tensor {place}": tensor for place, tensor in enumerate(victim.tensors())}
    before = Snapshot(guarded)
    modules = list(victim.modules())
    modes = [module.training for module in modules]
    try:
        with torch.enable_grad():
            trial.found = _called(attack, victim, x, y, threat, Random(seeds[: len(x)]), begin, trial)
    except Exception as error:  # a plugin may raise anything
        trial.error = error
    moved = [module for module, mode in zip(modules, modes, strict=True) if module.training != mode]
    for module in moved:
        module.training = not module.training
    modes_changed = ["the mode of the model's modules (training or evaluation)"] if moved else []
    trial.touched = (*before.written(), *modes_changed)
    return trial


def _called(
    attack: Attack, victim: Target, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None,
    trial: Attempt,
) -> object:  # fmt: skip
    def once(model: Victim, x: Tensor, y: Tensor, random: Random, start: Tensor | None) -> object:
        seed_all(random.seed())
        seed = torch.initial_seed()
        if start is None:
            found: object = attack.perturb(model, x, y, threat, random)
        else:
            found = attack.perturb_from(model, x, y, threat, random, start)
        trial.reseeded |= torch.initial_seed() != seed
        return found.detach() if isinstance(found, Tensor) else found

    if not attack.per_task:
        return once(victim, x, y, random, start)
    rows = [
        once(victim.task(index), x[index], y[index], own, None if start is None else start[index])
        for index, own in enumerate(random.split())
    ]
    odd = next((row for row in rows if not isinstance(row, Tensor) or row.shape != x.shape[1:]), None)
    return torch.stack(rows) if odd is None else odd  # type: ignore[arg-type]  # all are tensors then
