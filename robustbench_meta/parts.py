"""What an evaluation under way has found on some of its episodes, as bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from robustbench_meta import blobs
from robustbench_meta.effort import Effort
from robustbench_meta.errors import BenchError, StorageError, brief
from robustbench_meta.exhibits import Exhibit
from robustbench_meta.observation import Observation

_KIND = "part of an evaluation"


@dataclass
class Tally:
    """What one trial has gathered on one chunk of episodes, or why it failed."""

    correct: Tensor | None = None
    seconds: float = 0.0
    effect: Tensor | BenchError | None = None
    """Of the self-test, by episode, or why it failed; None where there was none."""
    failure: BenchError | None = None
    effort: Effort = field(default_factory=Effort)
    gallery: Exhibit | None = None
    """Of the chunk with the first episode."""


@dataclass
class Chunk:
    """What one chunk of episodes gave."""

    noted: bytes
    """What goes into the digest of the episodes."""
    clean: Tensor | None = None
    cells: dict[str, Tally] = field(default_factory=dict)
    probes: dict[str, Tally] = field(default_factory=dict)
    """By the key of their trial."""
    observation: Observation = field(default_factory=Observation)
    noisy: dict[str, Observation] = field(default_factory=dict)
    """The same on noisy queries, by the key of the trial that made them."""
    adapt_seconds: float = 0.0
    adapted_tasks: int = 0
    check_seconds: float = 0.0


Found = dict[tuple[int, int], list[Chunk]]
"""By the first episode of a portion and the one after its last: what that portion gave."""


def part_name(training: str, page: str = "") -> str:
    """What a part of the evaluations of a training is kept under; without a page, how all such names begin."""
    return f"progress/{training}.part-{page}"


def part_bytes(found: Found, training: str, how: str) -> bytes:
    """What some portions gave.

    Args:
        found: that.
        training: the key of the training whose cells are evaluated.
        how: it was computed, as far as that decides the rounding.
    """
    portions = [[start, stop, [_plain(chunk) for chunk in chunks]] for (start, stop), chunks in found.items()]
    return blobs.dump(_KIND, {"training": training, "how": how, "portions": portions})


def read_part(data: bytes, training: str, how: str | None = None) -> Found:
    """What some portions gave, as `part_bytes` was given it; nothing if it was computed in another way than `how`.

    Raises:
        StorageError: it is damaged, or of another training.
    """
    tree = blobs.restore(_KIND, data)
    try:
        if tree["training"] != training:
            raise StorageError("it is of another training than its name says")
        if how is not None and tree["how"] != how:
            return {}
        return {(int(start), int(stop)): [_chunk(each) for each in chunks] for start, stop, chunks in tree["portions"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"it is damaged ({brief(error)})") from error


def _plain(chunk: Chunk) -> dict[str, Any]:
    return {
        **vars(chunk),
        "noted": chunk.noted.hex(),
        "cells": {key: _plain_tally(tally) for key, tally in chunk.cells.items()},
        "probes": {key: _plain_tally(tally) for key, tally in chunk.probes.items()},
        "observation": asdict(chunk.observation),
        "noisy": {key: asdict(each) for key, each in chunk.noisy.items()},
    }


def _chunk(plain: dict[str, Any]) -> Chunk:
    return Chunk(**{
        **plain,
        "noted": bytes.fromhex(plain["noted"]),
        "cells": {key: _tally(each) for key, each in plain["cells"].items()},
        "probes": {key: _tally(each) for key, each in plain["probes"].items()},
        "observation": Observation(**plain["observation"]),
        "noisy": {key: Observation(**each) for key, each in plain["noisy"].items()},
    })  # fmt: skip


def _plain_tally(tally: Tally) -> dict[str, Any]:
    told = {
        name: {"error": str(value)} if isinstance(value, BenchError) else value for name, value in vars(tally).items()
    }
    return {**told, "effort": asdict(tally.effort)}


def _tally(plain: dict[str, Any]) -> Tally:
    values = {**plain, "effort": Effort(**plain.get("effort", {}))}
    for name in ("effect", "failure"):
        if isinstance(values[name], dict):
            values[name] = BenchError(values[name]["error"])
    return Tally(**values)
