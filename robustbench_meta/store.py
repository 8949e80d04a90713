"""Run records and checkpoints on disk: one atomic, versioned file each."""

from __future__ import annotations

import base64
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from robustbench_meta.contracts import Weights
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.files import write_atomically, write_text
from robustbench_meta.spec import digest_of
from robustbench_meta.training import Trained

_log = logging.getLogger(__name__)
SCHEMA = 2
"""Version of a record's layout."""


class Store:
    """A results folder: `records/`, `checkpoints/` and the leaderboards derived from them.

    Raises:
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._warned: set[Path] = set()
        try:
            for part in ("records", "checkpoints"):
                (root / part).mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=root / part):
                    pass
        except OSError as error:
            raise StorageError(
                f"--results {root}: cannot write there ({error.strerror or error}); choose a folder that you may write"
            ) from error

    def has(self, key: str) -> bool:
        """Whether that cell's record is there, and whole; a damaged one is as good as missing, and is warned of."""
        return self._record(key).is_file() and self._read(self._record(key)) is not None

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write one cell's record."""
        text = json.dumps(record, indent=1, sort_keys=True)
        write_atomically(self._record(record["key"]), lambda part: write_text(part, text))

    def records(self) -> list[dict[str, Any]]:
        """All records that are whole, in the order of their keys; the others are warned of."""
        read = (self._read(path) for path in sorted((self.root / "records").glob("*.json")))
        return [record for record in read if record is not None]

    def checkpoint(self, key: str) -> Path:
        """Where a training's checkpoint is or will be."""
        return _checkpoint(self.root, key)

    def save_checkpoint(self, key: str, trained: Trained, about: Mapping[str, Any]) -> None:
        """Write θ with what it is and how it came about."""
        told = {name: value for name, value in vars(trained).items() if name != "weights"}
        metadata = {"schema": str(SCHEMA), "about": json.dumps(about), "training": json.dumps(told, sort_keys=True)}
        weights = {name: weight.detach().cpu().contiguous() for name, weight in trained.weights.items()}
        write_atomically(self.checkpoint(key), lambda part: _write_bytes(part, save(weights, metadata)))

    def load_checkpoint(self, key: str, like: Weights) -> Trained | None:
        """θ of a training, on the device and in the dtype of `like`; None if there is no checkpoint that fits.

        A damaged one is warned of, and will be written anew.
        """
        path = self.checkpoint(key)
        if not path.is_file():
            return None
        try:
            return read_checkpoint(path, like, key)
        except BenchError as error:
            _log.warning("%s; its learner is trained again", error)
            return None

    def _record(self, key: str) -> Path:
        return self.root / "records" / f"{key}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return read_record(path)
        except BenchError as error:
            if path not in self._warned:
                self._warned.add(path)
                _log.warning("%s: it is left out; if its cell is asked for, it is computed again", error)
            return None


def read_record(path: Path) -> dict[str, Any]:
    """One record.

    Raises:
        BenchError: it is damaged, of another schema, or not the cell that its name says.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"record {path} is damaged ({error})") from error
    told = (record.get("schema"), record.get("key")) if isinstance(record, dict) else (None, None)
    if told != (SCHEMA, path.stem):
        raise BenchError(f"record {path} has schema {told[0]} and key {told[1]}; expected {SCHEMA} and {path.stem}")
    return dict(record)


def read_checkpoint(path: Path, like: Weights, key: str | None = None) -> Trained:
    """θ of a checkpoint's file, on the device and in the dtype of `like`.

    Args:
        path: the file.
        like: the weights that it should hold.
        key: the training that it should be of; None: any.

    Raises:
        BenchError: it is damaged, of another training, or holds weights of other names or shapes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told, about = (json.loads(file.metadata()[part]) for part in ("training", "about"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            trained = Trained(weights, **told)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"checkpoint {path} is damaged ({error})") from error
    if key is not None and digest_of(about) != key:
        raise BenchError(f"checkpoint {path} is of another training than its name says")
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in like.items()}:
        raise BenchError(f"checkpoint {path} holds weights of other names or shapes than this learner's")
    trained.weights = {name: weights[name].to(weight.device, weight.dtype) for name, weight in like.items()}
    return trained


def is_done(root: Path, key: str) -> bool:
    """Whether a results folder holds that cell, whole; touches nothing."""
    path = root / "records" / f"{key}.json"
    try:
        return path.is_file() and bool(read_record(path))
    except BenchError:
        return False


def is_trained(root: Path, key: str) -> bool:
    """Whether a results folder holds that training's checkpoint; touches nothing, and does not look inside."""
    return _checkpoint(root, key).is_file()


def _checkpoint(root: Path, key: str) -> Path:
    return root / "checkpoints" / f"{key}.safetensors"


def pack(correct: np.ndarray) -> dict[str, Any]:
    """Booleans [episodes, queries] as text: base64 of their bits, row after row."""
    return {"shape": list(correct.shape), "bits": base64.b64encode(np.packbits(correct).tobytes()).decode()}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """The booleans [episodes, queries] that `pack` was given."""
    rows, columns = packed["shape"]
    bits = np.frombuffer(base64.b64decode(packed["bits"]), dtype=np.uint8)
    return np.unpackbits(bits, count=rows * columns).astype(bool).reshape(rows, columns)


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
