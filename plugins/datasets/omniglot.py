"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): handwritten characters of 50 alphabets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits
from robustbench_meta.data.copies import ABOUT, Copies
from robustbench_meta.data.omniglot import need_parts, read_half
from robustbench_meta.data.pictures import Pictures
from robustbench_meta.errors import DataError
from robustbench_meta.runtime.paths import data_root

_VINYALS = json.loads(resources.files(__package__).joinpath("omniglot_vinyals.json").read_text("utf-8"))
VALIDATION_ALPHABETS = frozenset(_VINYALS["validation"])
"""The five alphabets of the background set that both splits hold out for validation (172 characters)."""


class Omniglot(Dataset):
    """Handwritten characters of 50 alphabets, 20 drawings each; download or add it first."""

    name = "omniglot"
    source = "Lake et al. 2015; splits: Lake et al. (background/evaluation), Vinyals et al. 2016"
    eps: ClassVar = {"linf": 0.1, "l2": 1.5}

    split: Literal["lake", "vinyals"] = Field(
        "lake", description="test on the evaluation set, or the 423 of Vinyals et al."
    )
    rotations: bool = Field(False, description="rotations by 90° are classes of their own, in all splits")

    copies: Copies = Field("keep", description=ABOUT)

    def load(self, root: Path | None) -> Splits:
        """Read both parts, and split: lake 792/172/659 characters, vinyals 1028/172/423."""
        background, evaluation = (read_half(part) for part in need_parts(data_root(root)))
        pictures = Pictures(*(np.concatenate(pair) for pair in zip(background, evaluation, strict=True)))
        evaluated = set(evaluation.classes.tolist())
        parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        for place, label in enumerate(pictures.classes.tolist()):
            parts[lake(label, evaluated) if self.split == "lake" else vinyals(label)].append(place)
        self._check(parts)
        if self.rotations:
            pictures, parts = rotated(pictures, parts)
        return pictures.split("omniglot", parts, self.copies)

    def _check(self, parts: dict[str, list[int]]) -> None:
        expected = {"train": 792, "validation": 172, "test": 659} if self.split == "lake" else _VINYALS["counts"]
        found = {part: len(places) for part, places in parts.items()}
        if found != expected:
            raise DataError(f"omniglot: the split '{self.split}' came out as {found} characters; expected {expected}")


def lake(label: str, evaluation: Iterable[str]) -> str:
    """The split of 'Alphabet/character01': the evaluation set is for test, five background alphabets for validation."""
    if label in evaluation:
        return "test"
    return "validation" if label.partition("/")[0] in VALIDATION_ALPHABETS else "train"


def vinyals(label: str) -> str:
    """The split of 'Alphabet/character01' in Vinyals et al. 2016."""
    alphabet, _, character = label.partition("/")
    number = int(character.removeprefix("character"))
    for part in ("validation", "test"):
        first, last = _VINYALS[part].get(alphabet, (1, 0))
        if first <= number <= last:
            return part
    return "train"


def rotated(pictures: Pictures, parts: dict[str, list[int]]) -> tuple[Pictures, dict[str, list[int]]]:
    """Four times the classes: each turned by 0°, 90°, 180° and 270° (Santoro et al. 2016), within its split."""
    turns = range(4)
    images = np.concatenate([np.rot90(pictures.images, turn, axes=(2, 3)) for turn in turns])
    names = np.concatenate([np.char.add(pictures.classes, f"/rotated{90 * turn}") for turn in turns])
    digests = np.concatenate([pictures.digests + np.uint8(turn) for turn in turns])  # of copies still equal
    offset = len(pictures.counts)
    places = {part: [i + turn * offset for turn in turns for i in chosen] for part, chosen in parts.items()}
    return Pictures(images, np.tile(pictures.counts, 4), names, digests, np.tile(pictures.names, 4)), places


@hookimpl
def register_datasets(register: Callable[[type[Any]], None]) -> None:
    """Bring Omniglot."""
    register(Omniglot)
