"""Runs attacks and distrusts them: what they return is checked, what they may not touch is guarded."""

from __future__ import annotations

import random as python_random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from robustbench_meta.contracts import Attack, Random, Victim
from robustbench_meta.errors import BenchError, ViolationError
from robustbench_meta.threat import Doubts, ThreatModel
from robustbench_meta.victims import Perturbation, Target


def arm(attack: Attack, threat: ThreatModel, doubts: Doubts | None = None) -> Perturbation:
    """Bind an attack to its threat model: each call runs it, then verifies what it returned and left behind.

    With `doubts`, whether its images are within ε and the pixel range is noted there, to be judged later.

    Raises (when called):
        ViolationError: outside the threat model, or labels, weights, buffers or modes were changed, or torch reseeded.
        BenchError: the attack itself raised.
    """

    def perturb(model: Target, x: Tensor, y: Tensor, random: Random, start: Tensor | None = None) -> Tensor:
        if attack.clean:
            return x
        y = y.clone()  # labels may be an expanded view, which nobody can write into
        guarded = [("its images", x), ("the labels", y), *(("the model's weights", each) for each in model.tensors())]
        versions = [tensor._version for _, tensor in guarded]
        modules = list(model.modules())
        modes = [module.training for module in modules]
        with _fenced(x.device), torch.enable_grad():
            try:
                x_adv = _run(attack, model, x, y, threat, random, start)
            finally:
                moved = [module for module, mode in zip(modules, modes, strict=True) if module.training != mode]
                for module in moved:
                    module.training = not module.training
        for (what, tensor), version in zip(guarded, versions, strict=True):
            if tensor._version != version:
                raise ViolationError(f"attack '{attack.name}' changed {what} in place; it must work on copies")
        if moved:
            raise ViolationError(
                f"attack '{attack.name}' left {len(moved)} of the model's {len(modules)} modules in another mode "
                "(training or evaluation); it must leave them as they were"
            )
        threat.verify(attack.name, x_adv, x, model.event, doubts)
        return x_adv

    return perturb


def _run(
    attack: Attack, model: Target, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
) -> Tensor:
    try:
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
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise BenchError(f"attack '{attack.name}' failed: {type(error).__name__}: {error}") from error


def _once(
    attack: Attack, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
) -> Tensor:
    """One call of the attack, with the global generators seeded; it may draw from them, and may not reseed them."""
    seed = _seed_all(random)
    x = x.detach()
    if start is None:
        found = _tensor(attack, attack.perturb(model, x, y, threat, random))
    else:
        found = _tensor(attack, attack.perturb_from(model, x, y, threat, random, start.detach()))
    if torch.initial_seed() != seed:
        raise ViolationError(
            f"attack '{attack.name}' reseeded torch's generator, so that its draws are not the run's: it must draw "
            "from `random`, or fork the generator around what seeds itself (torch.random.fork_rng)"
        )
    return found


def _tensor(attack: Attack, returned: object) -> Tensor:
    if isinstance(returned, Tensor):
        return returned.detach()
    raise ViolationError(
        f"attack '{attack.name}' returned {type(returned).__name__}; expected a tensor of adversarial images"
        + (": is a `return` missing?" if returned is None else "")
    )


def _seed_all(random: Random) -> int:
    """Make even an attack that draws from the global generators reproducible; torch's seed."""
    seed = random.seed()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    python_random.seed(seed)
    return torch.initial_seed()


@contextmanager
def _fenced(device: torch.device) -> Iterator[None]:
    """Give the random states of torch, numpy and Python back as they were."""
    python_state, numpy_state = python_random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            python_random.setstate(python_state)
            np.random.set_state(numpy_state)
