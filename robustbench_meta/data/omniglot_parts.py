"""Where Omniglot's two parts lie, each a zip or an extracted folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from robustbench_meta.errors import DataError

CHARACTERS = {"images_background": 964, "images_evaluation": 659}
"""Characters by part."""


class OmniglotHalf(NamedTuple):
    """One half of Omniglot on disk."""

    name: str
    """images_background or images_evaluation."""
    path: Path
    """The zip or the folder."""


def find_parts(root: Path) -> list[OmniglotHalf]:
    """The parts that are there, in `root`, `root`/omniglot or `root`/omniglot-py (torchvision's), zips first."""
    found = []
    for name in CHARACTERS:
        places = [root / sub / file for sub in ("", "omniglot", "omniglot-py") for file in (f"{name}.zip", name)]
        there = [place for place in places if (place.is_file() if place.suffix == ".zip" else place.is_dir())]
        found += [OmniglotHalf(name, there[0])] if there else []
    return found


def need_parts(root: Path) -> list[OmniglotHalf]:
    """Both parts.

    Raises:
        DataError: one or both are missing; where they were looked for, and how to get them.
    """
    parts = find_parts(root)
    missing = [name for name in CHARACTERS if name not in {part.name for part in parts}]
    if missing:
        raise DataError(
            f"omniglot: {' and '.join(f'{name}.zip' for name in missing)} (or the extracted folder) not found in "
            f"{root}{'' if root.is_dir() else ' (no such folder)'}, nor in its sub-folders omniglot and omniglot-py: "
            "run `bench data download omniglot`, or `bench data add omniglot FOLDER`, or name it with --data-root"
        )
    return parts
