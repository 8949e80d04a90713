"""Run records as files: JSON with a schema version and a checksum."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from robustbench_meta.errors import StorageError, brief
from robustbench_meta.evaluation.gallery import ExampleEpisode
from robustbench_meta.runtime.digest import checksum

SCHEMA = 3
"""Version of a record's layout."""
_LARGEST = 2**28
"""Bytes; a record of 10,000 episodes takes less than a hundredth of it."""


class DamagedError(StorageError):
    """A record's file does not hold what was once written there."""


def record_text(record: Mapping[str, Any]) -> str:
    """A record as its file holds it."""
    body = {**finite(record), "schema": SCHEMA}
    return json.dumps({**body, "checksum": _checksum(body)}, indent=1, sort_keys=True)


def finite(value: Any) -> Any:
    """Plain data with None in the place of every NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: Path) -> dict[str, Any]:
    """One record.

    Raises:
        DamagedError: it is damaged, or not the cell that its name says.
        StorageError: it cannot be read, or another version wrote it.
    """
    record = _parsed(path)
    schema = record.get("schema")
    if type(schema) is not int or schema < 1:
        raise DamagedError(f"record {path} is damaged (schema {schema!r}; this version knows {SCHEMA})")
    if schema != SCHEMA:
        raise StorageError(
            f"record {path} has schema {schema}, of another version; this one knows {SCHEMA}: use that version, or "
            "another --results"
        )
    if record.pop("checksum", None) != _checksum(record):
        raise DamagedError(f"record {path} is damaged (its checksum does not fit its content)")
    if record.get("key") != path.stem:
        raise DamagedError(f"record {path} is of another cell than its name says ({record.get('key')!r})")
    try:
        _check(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"record {path} is damaged ({brief(error)})") from error
    return record


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise DamagedError(f"record {path} is damaged (it has {path.stat().st_size:,} bytes)")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError) as error:
        raise DamagedError(f"record {path} is damaged ({error})") from error
    except OSError as error:
        raise StorageError(f"record {path} cannot be read: {error.strerror or error}") from error
    if not isinstance(record, dict):
        raise DamagedError(f"record {path} is damaged (it is no record)")
    return record


def pack(correct: np.ndarray) -> dict[str, Any]:
    """Booleans [episodes, queries] as text: base64 of their bits, row after row."""
    return {"shape": list(correct.shape), "bits": base64.b64encode(np.packbits(correct).tobytes()).decode()}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """The booleans [episodes, queries] that `pack` was given."""
    rows, columns = packed["shape"]
    bits = np.frombuffer(base64.b64decode(packed["bits"], validate=True), dtype=np.uint8)
    if not (rows > 0 and columns > 0 and 0 <= 8 * len(bits) - rows * columns < 8):
        raise ValueError(f"{len(bits)} bytes cannot hold {rows} × {columns} answers")
    return np.unpackbits(bits, count=rows * columns).astype(bool).reshape(rows, columns)


def _checksum(record: Mapping[str, Any]) -> str:
    return f"sha256:{checksum(record)}"


def _check(record: Mapping[str, Any]) -> None:
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    clean, robust = unpack(record["clean"]), unpack(record["robust"])
    if clean.shape != robust.shape or len(clean) != record["spec"]["episodes"]:
        raise ValueError("its answers are of other episodes than its spec says")


def _printable(text: str) -> str:
    """What is shown must not steer the terminal that it is shown on."""
    if not text.isprintable():
        raise ValueError(f"{text!r} cannot be printed")
    return text


_Text = Annotated[str, AfterValidator(_printable)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Plugin(_Part):
    name: _Text
    options: dict[str, Any]


class _Attack(_Part):
    plugin: _Plugin
    norm: _Text
    eps: float
    sweep: list[float]


class _Training(_Part):
    way: int
    shot: int
    query: int
    meta_steps: int
    tasks_per_step: int
    seed: int


class _Surrogate(_Part):
    trained: _Text


class _Spec(_Part):
    training: _Training
    attack: _Attack
    code: _Text
    support: _Text
    query: _Text
    surrogate: _Surrogate | None
    episodes: int


class _Labels(_Part):
    dataset: _Text
    backbone: _Text
    learner: _Text
    attack: _Text
    eps: _Text
    training_attack: _Text
    training_eps: _Text
    surrogate: _Text
    warm_start: _Text
    copies: _Text = ""


class _Versions(_Part):
    robustbench_meta: _Text


class _Checks(_Part):
    accuracies: dict[_Text, float] = {}


class _Cost(_Part):
    attacked_images: int = Field(ge=0)
    forward_per_image: float = Field(ge=0, allow_inf_nan=False)
    gradients_per_image: float = Field(ge=0, allow_inf_nan=False)


class _Record(_Part):
    """What leaderboards are made of."""

    training: _Text
    episodes_digest: _Text
    norm_layer: _Text
    inference: _Text
    precision: _Text
    method: _Text
    device: _Text
    written: _Text
    parameters: int
    spec: _Spec
    labels: _Labels
    timings: dict[_Text, float]
    cost: _Cost | None = None
    memory: dict[str, int | None] | None = None
    gallery: ExampleEpisode | None = None
    flags: list[_Text]
    checks: _Checks | None
    versions: _Versions
