"""Seeds hashed from names: every random draw has its own, so adding a cell changes no other."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*parts: object) -> int:
    """Hash (run seed, purpose, index, …) into a 63-bit seed, the same on every machine and Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def restored(device: torch.device | None = None) -> Iterator[None]:
    """Inside, code may draw from the global generators and seed them; afterwards they are as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a plugin's code with every global generator seeded; afterwards the generators are as they were before."""
    with restored(device):
        seed_all(seed)
        yield
