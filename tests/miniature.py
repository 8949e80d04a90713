"""Small stand-ins for real data sets."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustbench_meta.plugins.datasets.omniglot import VALIDATION_ALPHABETS, Omniglot


def paint(path: Path, seed: Any, size: tuple[int, int] = (20, 14)) -> Path:
    """An image of noise that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def small_omniglot(root: Path, packed: bool) -> None:
    """An Omniglot of 7 + 2 characters: the five validation alphabets, two for training, two for test."""
    root.mkdir(parents=True, exist_ok=True)
    background = [*sorted(VALIDATION_ALPHABETS), "Greek", "Latin"]
    for name, alphabets in {"images_background": background, "images_evaluation": ["Keble", "ULOG"]}.items():
        for a, alphabet in enumerate(alphabets):
            for d in range(20):
                pixels = np.random.default_rng((a, d, len(alphabets))).random((105, 105)) > 0.1
                path = root / name / alphabet / "character01" / f"{a:04}_{d + 1:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        if packed:
            shutil.make_archive(str(root / name), "zip", root, name)
            shutil.rmtree(root / name)


def pass_for_whole(patch: pytest.MonkeyPatch) -> None:
    """Let the small Omniglot pass for a whole one."""
    for module in ("omniglot", "omniglot_parts"):
        patch.setattr(f"robustbench_meta.data.{module}.CHARACTERS", {"images_background": 7, "images_evaluation": 2})
    patch.setattr(Omniglot, "_check", lambda *_: None)
