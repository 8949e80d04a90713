"""Runs attacks and distrusts them: what they return is checked, what they may not touch is guarded."""

from __future__ import annotations

import random as python_random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from robustbench_meta.contracts import Attack, Random
from robustbench_meta.engine import AttackedModel, Perturbation
from robustbench_meta.errors import BenchError, ViolationError
from robustbench_meta.threat import Doubts, ThreatModel


def arm(attack: Attack, threat: ThreatModel, doubts: Doubts | None = None) -> Perturbation:
    """Bind an attack to its threat model: each call runs it, then verifies what it returned and left behind.

    With `doubts`, whether its images are within ε and the pixel range is noted there, to be judged later.

    Raises (when called):
        ViolationError: outside the threat model, or labels or weights were changed.
        BenchError: the attack itself raised.
    """

    def perturb(model: AttackedModel, x: Tensor, y: Tensor, random: Random) -> Tensor:
        if attack.clean:
            return x
        guarded = [("its images", x), ("the labels", y), *(("the model's weights", leaf) for leaf in model.tensors())]
        versions = [tensor._version for _, tensor in guarded]
        with _fenced(x.device), torch.enable_grad():
            x_adv = _run(attack, model, x, y, threat, random)
        for (what, tensor), version in zip(guarded, versions, strict=True):
            if tensor._version != version:
                raise ViolationError(f"attack '{attack.name}' changed {what} in place; it must work on copies")
        threat.verify(attack.name, x_adv, x, model.event, doubts)
        return x_adv

    return perturb


def _run(attack: Attack, model: AttackedModel, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
    try:
        if not attack.per_task:
            _seed_all(random)
            return _tensor(attack, attack.perturb(model, x.detach(), y, threat, random))
        rows = []
        for index, own in enumerate(random.split()):
            _seed_all(own)
            rows.append(_tensor(attack, attack.perturb(model.task(index), x[index].detach(), y[index], threat, own)))
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


def _tensor(attack: Attack, returned: object) -> Tensor:
    if isinstance(returned, Tensor):
        return returned.detach()
    raise ViolationError(
        f"attack '{attack.name}' returned {type(returned).__name__}; expected a tensor of adversarial images"
        + (": is a `return` missing?" if returned is None else "")
    )


def _seed_all(random: Random) -> None:
    """Make even an attack that draws from the global generators reproducible."""
    seed = random.seed()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    python_random.seed(seed)


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
