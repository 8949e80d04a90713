"""Meta-trained weights, as bytes: safetensors with a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_meta.contracts import Weights
from robustbench_meta.errors import BenchError, StorageError, brief
from robustbench_meta.runtime import tensor_files
from robustbench_meta.runtime.digest import digest_of

_SCHEMA = "3"


def checkpoint_name(key: str) -> str:
    """What the checkpoint of a training is kept under."""
    return f"checkpoints/{key}.safetensors"


@dataclass
class Trained:
    """A meta-trained learner: θ, how it came about, and what it cost."""

    weights: Weights
    seconds: float = 0.0
    chosen_step: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    """How the engine mapped over tasks: it decides the rounding."""
    history: list[dict[str, float]] = field(default_factory=list)
    """At each validation: step, training loss and accuracy, validation loss and accuracy."""
    peak_memory: int | None = None
    """Bytes, as `devices.peak_memory` tells them."""

    @property
    def parameters(self) -> int:
        """How many numbers θ has."""
        return sum(weight.numel() for weight in self.weights.values())


def checkpoint_bytes(trained: Trained, about: Mapping[str, Any]) -> bytes:
    """θ with what it is (a `TrainingSpec` as plain data) and how it came about."""
    told = {name: value for name, value in vars(trained).items() if name != "weights"}
    text = {"schema": _SCHEMA, "about": json.dumps(about), "training": json.dumps(told, sort_keys=True)}
    return tensor_files.save_tensors(trained.weights, text)


def check_checkpoint(data: bytes, key: str | None = None) -> None:
    """Raise unless they are a whole checkpoint.

    Args:
        data: of its file.
        key: the training that it should be of; None: any.

    Raises:
        StorageError: it is damaged, or of another training.
    """
    _parsed(data, key)


def read_checkpoint(data: bytes, like: Weights | None, key: str | None = None) -> Trained:
    """θ of a checkpoint, on the device and in the dtype of `like`.

    Args:
        data: of its file.
        like: the weights that it should hold; None: any, on the CPU.
        key: the training that it should be of; None: any.

    Raises:
        StorageError: it is damaged, or of another training.
        BenchError: it holds weights of other names or shapes.
    """
    weights, _, told = _parsed(data, key)
    try:
        trained = Trained(weights, **told)
    except TypeError as error:
        raise StorageError(f"it is damaged ({brief(error)})") from error
    if like is None:
        return trained
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in like.items()}:
        raise BenchError("it holds weights of other names or shapes than this learner's")
    trained.weights = {name: weights[name].to(weight.device, weight.dtype) for name, weight in like.items()}
    return trained


def weights_of(data: bytes) -> tuple[Weights, dict[str, Any]]:
    """The weights of a checkpoint, on the CPU, and what it says that they are.

    Args:
        data: of its file.

    Raises:
        StorageError: it is damaged.
    """
    weights, about, _ = _parsed(data, None)
    return weights, about


def read_file(path: Path) -> bytes:
    """The bytes of a checkpoint's file.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchError(f"cannot read {path} ({error.strerror or error})") from error


def _parsed(data: bytes, key: str | None) -> tuple[Weights, dict[str, Any], dict[str, Any]]:
    weights, told = tensor_files.load_tensors(data)
    try:
        about, training = dict(json.loads(told["about"])), dict(json.loads(told["training"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"it is damaged ({brief(error)})") from error
    if key is not None and digest_of(about) != key:
        raise StorageError("it is of another training than its name says")
    return weights, about, training
