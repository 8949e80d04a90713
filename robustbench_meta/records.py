"""Run records as files: JSON with a schema version and a checksum; older versions are brought up to date when read."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from robustbench_meta.checks import unchecked
from robustbench_meta.errors import StorageError, brief
from robustbench_meta.gallery import Gallery

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
    """One record, as the present schema has it.

    Raises:
        DamagedError: it is damaged, or not the cell that its name says.
        StorageError: it cannot be read, or a newer version wrote it.
    """
    record = _parsed(path)
    schema = record.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise DamagedError(f"record {path} is damaged (schema {schema!r}; this version knows {_listed(_KNOWN)})")
    if schema not in _KNOWN:
        raise StorageError(
            f"record {path} has schema {schema}, of a newer version; this one knows {_listed(_KNOWN)}: use the newer "
            "one, or another --results"
        )
    if (schema >= 3 or "checksum" in record) and record.pop("checksum", None) != _checksum(record):
        raise DamagedError(f"record {path} is damaged (its checksum does not fit its content)")
    if record.get("key") != path.stem:
        raise DamagedError(f"record {path} is of another cell than its name says ({record.get('key')!r})")
    try:
        for step in _KNOWN[_KNOWN.index(schema) : -1]:
            record = _MIGRATIONS[step](record)
        _check(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"record {path} is damaged ({brief(error)})") from error
    return {**record, "schema": SCHEMA}


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
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _check(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless it holds what leaderboards are made of."""
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
    gallery: Gallery | None = None
    flags: list[_Text]
    checks: _Checks | None
    versions: _Versions


def _from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 knew no checks, no surrogates and no sweeps; nor how an attack works, but by its name."""
    spec, labels = record["spec"], record["labels"]
    plugin = spec["attack"]["plugin"]
    once = [plugin["options"].get(name, 1) for name in ("restarts", "n_restarts")] == [1, 1]
    single = once and plugin["options"].get("steps") == 1
    method = _METHODS_1.get(plugin["name"], "single-step" if single else "iterative")
    return {
        **record,
        "spec": {
            **spec, "code": "", "checks": "", "surrogate": None, "attack": {**spec["attack"], "sweep": []},
        },
        "labels": {**labels, "surrogate": "none", "warm_start": ""},
        "timings": {**record["timings"], "check_ms_per_task": 0.0},
        "method": method,
        "flags": unchecked(spec["episodes"]),
        "checks": None,
    }  # fmt: skip


_METHODS_1 = {
    **dict.fromkeys(("none", "gn"), "random"),
    **dict.fromkeys(("fgsm", "ffgsm", "torchattacks-fgsm"), "single-step"),
    **dict.fromkeys(("onepixel", "pixle", "spsa", "square"), "black-box"),
}
"""How the attacks worked that there were under schema 1; all others took steps along gradients."""


def _from_2(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 had no checksum."""
    return record


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
_KNOWN = [*_MIGRATIONS, SCHEMA]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
