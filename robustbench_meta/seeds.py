"""Seeds hashed from names: every random draw has its own, so adding a cell changes no other."""

from __future__ import annotations

import hashlib


def seed_from(*parts: object) -> int:
    """Hash (run seed, purpose, index, …) into a 63-bit seed, the same on every machine and Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
