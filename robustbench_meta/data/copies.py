"""Equal images: one rule for all readers, over digests of the bytes, so that nothing need be decoded for it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from robustbench_meta.errors import DataError

logger = logging.getLogger(__name__)

Copies = Literal["drop", "keep", "refuse"]
ABOUT = "equal images: drop all but the one nearest to the test, keep them, or refuse the data"
"""What the option `copies` means."""
PARTS = ("train", "validation", "test")
_MOST_NAMED = 200


def image_digest(content: bytes | memoryview) -> np.ndarray:
    """The digest of an image's bytes: uint8 [16]."""
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)


def resolve_copies(
    digests: UInt8[np.ndarray, "images 16"], parts: Sequence[str], labels: Sequence[str], names: Sequence[str],
    rule: Copies, where: str,
) -> tuple[Bool[np.ndarray, " images"], dict[str, str]]:  # fmt: skip
    """Decide about equal images: of those, the one nearest to the test stays (test, validation, train; then the first).

    Args:
        digests: of the images.
        parts: the split of each image.
        labels: the class of each image.
        names: what messages call each image.
        rule: whether the others are dropped, kept, or a reason to refuse the data.
        where: the data set, for messages.

    Returns:
        Which images stay, and for each split what a row says of the others: '3 dropped', '3 kept', or ''.

    Raises:
        DataError: there are some and the rule is to refuse, with all of them; or a class has nothing else.
    """
    _, group = np.unique(np.ascontiguousarray(digests).view("V16").ravel(), return_inverse=True)
    # From the test backwards, in order within a split: the first of a group is the one that stays.
    order = np.argsort([-PARTS.index(part) for part in parts], kind="stable")
    original = order[np.unique(group[order], return_index=True)[1]][group]
    stays = original == np.arange(len(group))
    extra: list[int] = np.flatnonzero(~stays).tolist()
    if not extra:
        return stays, dict.fromkeys(PARTS, "")
    listed = _listed([(int(original[place]), place) for place in extra], parts, labels, names)
    if rule == "refuse":
        raise DataError(f"{where}: {listed}; remove one of each, or drop those on the training side: copies=drop")
    gone = sorted({labels[place] for place in extra} - {labels[place] for place in np.flatnonzero(stays).tolist()})
    if gone and rule == "drop":
        mine = [place for place, label in enumerate(labels) if label == gone[0]]
        others = ", ".join(repr(label) for label in sorted({labels[original[place]] for place in mine}))
        raise DataError(
            f"{where}: class '{gone[0]}' of {parts[mine[0]]} has nothing but copies of images of {others}: remove the "
            "class, or keep the copies with the option copies=keep"
        )
    done = {"drop": "dropped", "keep": "kept"}[rule]
    logger.warning("%s: %d image%s %s: %s", where, len(extra), "s" * (len(extra) > 1), done, listed)
    counts = {part: sum(parts[place] == part for place in extra) for part in PARTS}
    notes = {part: f"{count} {done}" if count else "" for part, count in counts.items()}
    return stays if rule == "drop" else np.ones_like(stays), notes


def _listed(pairs: Sequence[tuple[int, int]], parts: Sequence[str], labels: Sequence[str], names: Sequence[str]) -> str:
    """All pairs across splits or classes by name; of those inside a class, how many."""
    text = []
    across = [pair for pair in pairs if labels[pair[0]] != labels[pair[1]]]
    inside = [pair for pair in pairs if labels[pair[0]] == labels[pair[1]]]
    if across:
        splits = sum(parts[one] != parts[other] for one, other in across)
        shown = ", ".join(f"{names[one]} = {names[other]}" for one, other in across[:_MOST_NAMED])
        more = f", and {len(across) - _MOST_NAMED} more" if len(across) > _MOST_NAMED else ""
        text.append(f"equal images under two classes: {len(across)} ({splits} in two splits): {shown}{more}")
    if inside:
        shown = ", ".join(f"{names[one]} = {names[other]}" for one, other in inside[:3])
        text.append(f"equal images in one class: {len(inside)}: {shown}{' …' * (len(inside) > 3)}")
    return "; ".join(text)
