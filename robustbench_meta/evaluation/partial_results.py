"""What a chunk of an evaluation's episodes gave, as data and as the bytes of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from robustbench_meta.engine.query_counter import QueryCount
from robustbench_meta.errors import StorageError, brief
from robustbench_meta.evaluation.example_images import Example
from robustbench_meta.evaluation.model_checks import Observation
from robustbench_meta.runtime import tensor_files

_KIND = "part of an evaluation"


@dataclass
class ScenarioResult:
    """What one scenario gave on one chunk of episodes, or why it failed."""

    correct: Tensor | None = None
    seconds: float = 0.0
    effect: Tensor | str | None = None
    """Of the self-test, by episode, or why it failed; None where there was none."""
    failure: str | None = None
    traceback: str = ""
    """Of the failure."""
    effort: QueryCount = field(default_factory=QueryCount)
    gallery: Example | None = None
    """Of the chunk with the first episode."""


@dataclass
class ChunkResult:
    """What one chunk of episodes gave."""

    episodes: str
    """What goes into their digest, in hexadecimal digits."""
    clean: Tensor | None = None
    cells: dict[str, ScenarioResult] = field(default_factory=dict)
    probes: dict[str, ScenarioResult] = field(default_factory=dict)
    """By the key of their scenario."""
    observation: Observation = field(default_factory=Observation)
    noisy: dict[str, Observation] = field(default_factory=dict)
    """The same on noisy queries, by the key of the scenario that made them."""
    adapt_seconds: float = 0.0
    adapted_tasks: int = 0
    check_seconds: float = 0.0


@dataclass
class PartialResult:
    """The chunks of one job, how they were computed, and what it took."""

    chunks: list[ChunkResult]
    plan: dict[str, Any]
    device: str
    peak_memory: int | None = None


def part_bytes(part: PartialResult, training: str, cells: Sequence[str]) -> bytes:
    """A part as the content of a file.

    Args:
        part: that.
        training: the key of the training whose cells were evaluated.
        cells: the keys of those that did not fail.
    """
    return tensor_files.dump(_KIND, {"training": training, "cells": list(cells), **asdict(part)})


def read_part(data: bytes, training: str) -> PartialResult:
    """A part, as `part_bytes` was given it.

    Raises:
        StorageError: it is damaged, or of another training.
    """
    tree = tensor_files.restore(_KIND, data)
    try:
        if tree["training"] != training:
            raise StorageError("it is of another training than its name says")
        chunks = [_chunk(each) for each in tree["chunks"]]
        return PartialResult(chunks, tree["plan"], tree["device"], tree["peak_memory"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"it is damaged ({brief(error)})") from error


def _chunk(plain: dict[str, Any]) -> ChunkResult:
    results = {
        name: {
            key: ScenarioResult(**{**result, "effort": QueryCount(**result["effort"])})
            for key, result in plain[name].items()
        }
        for name in ("cells", "probes")
    }
    seen = Observation(**plain["observation"]), {key: Observation(**each) for key, each in plain["noisy"].items()}
    return ChunkResult(**{**plain, **results, "observation": seen[0], "noisy": seen[1]})
