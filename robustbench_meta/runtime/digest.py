"""What identifies plain data: hashes of its canonical JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def checksum(plain: Any) -> str:
    """The SHA-256 of plain data, however its keys are ordered."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of(plain: Any) -> str:
    """The first 16 hexadecimal digits of the checksum."""
    return checksum(plain)[:16]
