"""Seeds hashed from names: every random draw has its own, so adding a cell changes no other."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


def seed_from(*parts: object) -> int:
    """Hash (run seed, purpose, index, …) into a 63-bit seed, the same on every machine and Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def random_states() -> tuple[object, ...]:
    """What changes when a global generator of the CPU (torch's, numpy's, Python's) is drawn from."""
    numpy_state: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), numpy_state[1].tobytes(), numpy_state[2:], random.getstate()
