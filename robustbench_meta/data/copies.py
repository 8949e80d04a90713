"""Equal images: one rule for all readers, over digests of the bytes, so that nothing need be decoded for it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from robustbench_meta.errors import DataError

logger = logging.getLogger(__name__)

Copies = Literal["drop", "keep", "refuse"]
ABOUT = "equal images: drop all but the one nearest to the test, keep them, or refuse the data"
"""What the option `copies` means."""
PARTS = ("train", "validation", "test")
_MOST_NAMED = 200


class Resolved(NamedTuple):
    """Which images stay, and what a row says of the others."""

    stays: Bool[np.ndarray, " images"]
    told: dict[str, str]
    """By split: '3 dropped', '3 kept', or ''."""


def image_digest(content: bytes | memoryview) -> np.ndarray:
    """The digest of an image's bytes: uint8 [16]."""
    return np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)


def resolve_copies(
    digests: UInt8[np.ndarray, "images 16"], parts: Sequence[str], labels: Sequence[str], names: Sequence[str],
    rule: Copies, where: str,
) -> Resolved:  # fmt: skip
    """Decide about equal images: of those, the one nearest to the test stays (test, validation, train; then the first).

    Args:
        digests: of the images.
        parts: the split of each image.
        labels: the class of each image.
        names: what messages call each image.
        rule: whether the others are dropped, kept, or a reason to refuse the data.
        where: the data set, for messages.

    Raises:
        DataError: there are some and the rule is to refuse, with all of them; or a class has nothing else.
    """
    nothing = dict.fromkeys(PARTS, "")
    _, group = np.unique(np.ascontiguousarray(digests).view("V16").ravel(), return_inverse=True)
    # From the test backwards, in order within a split: the first of a group is the one that stays.
    order = np.argsort([-PARTS.index(part) for part in parts], kind="stable")
    chosen = order[np.unique(group[order], return_index=True)[1]]
    stays = np.zeros(len(group), dtype=bool)
    stays[chosen] = True
    extra: list[int] = np.flatnonzero(~stays).tolist()
    if not extra:
        return Resolved(stays, nothing)
    pairs = [(int(chosen[group[place]]), place) for place in extra]
    counted = _told(pairs, parts, labels, names)
    if rule == "refuse":
        raise DataError(f"{where}: {counted}; remove one of each, or drop those on the training side: copies=drop")
    done = {"drop": "dropped", "keep": "kept"}[rule]
    if rule == "drop":
        _check_classes(stays, chosen[group], np.asarray(labels), parts, where)
    logger.warning("%s: %d image%s %s: %s", where, len(extra), "s" * (len(extra) > 1), done, counted)
    told = {part: sum(parts[place] == part for place in extra) for part in PARTS}
    return Resolved(
        stays if rule == "drop" else np.ones_like(stays),
        {part: f"{count} {done}" if count else "" for part, count in told.items()},
    )


def _check_classes(
    stays: np.ndarray, original: np.ndarray, labels: np.ndarray, parts: Sequence[str], where: str
) -> None:
    """Raise unless something stays of each class."""
    gone = sorted(set(labels[~stays].tolist()) - set(labels[stays].tolist()))
    if gone:
        mine = np.flatnonzero(labels == gone[0])
        others = ", ".join(repr(label) for label in np.unique(labels[original[mine]]).tolist())
        raise DataError(
            f"{where}: class '{gone[0]}' of {parts[mine[0]]} has nothing but copies of images of {others}: remove the "
            "class, or keep the copies with the option copies=keep"
        )


def _told(pairs: Sequence[tuple[int, int]], parts: Sequence[str], labels: Sequence[str], names: Sequence[str]) -> str:
    """All pairs across splits or classes by name; of those inside a class, how many."""
    across = [pair for pair in pairs if labels[pair[0]] != labels[pair[1]]]
    inside = [pair for pair in pairs if labels[pair[0]] == labels[pair[1]]]
    text = []
    if across:
        splits = sum(parts[one] != parts[other] for one, other in across)
        text.append(f"equal images under two classes: {len(across)} ({splits} in two splits): {_listed(across, names)}")
    if inside:
        more = " …" * (len(inside) > 3)
        text.append(f"equal images in one class: {len(inside)}: {_listed(inside[:3], names)}{more}")
    return "; ".join(text)


def _listed(pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> str:
    shown = [f"{names[one]} = {names[other]}" for one, other in pairs[:_MOST_NAMED]]
    return ", ".join(shown) + (f", and {len(pairs) - _MOST_NAMED} more" if len(pairs) > _MOST_NAMED else "")
