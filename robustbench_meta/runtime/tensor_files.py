"""Plain data with tensors among them as bytes, and back: safetensors, a checksum, and nothing that is ever executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustbench_meta.errors import StorageError, brief

_TENSOR = "tensor"
_LARGEST_HEADER = 100_000_000
"""Bytes, as safetensors has it."""


def save_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Tensors with text about them, as a safetensors file with a checksum of both."""
    kept = {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}
    return save(kept, {**about, "checksum": _checksum(about, kept)})


def load_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_tensors` was given; tensors are on the CPU.

    Raises:
        StorageError: the bytes are damaged.
    """
    try:
        about, tensors = metadata_of(data), load(data)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StorageError(f"it is damaged ({brief(error)})") from error
    if about.pop("checksum", None) != _checksum(about, tensors):
        raise StorageError("it is damaged (its checksum does not fit its content)")
    return tensors, about


def dump(kind: str, tree: Any) -> bytes:
    """Dicts with text as keys, lists, tuples (which become lists), tensors, text, numbers and None as bytes.

    `kind` says what it is, and is checked by `restore`.
    """
    tensors: dict[str, Tensor] = {}
    body = json.dumps(_without_tensors(tree, tensors))  # in their order, which optimisers go by
    return save_tensors(tensors, {"kind": kind, "body": body})


def restore(kind: str, data: bytes) -> Any:
    """What `dump` was given; tensors are on the CPU.

    Raises:
        StorageError: the bytes are damaged, or of another kind.
    """
    tensors, about = load_tensors(data)
    try:
        if about["kind"] != kind:
            raise StorageError(f"it is a {about['kind']}, not a {kind}")
        return _with_tensors(json.loads(about["body"]), tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"it is damaged ({brief(error)})") from error


def metadata_of(data: bytes) -> dict[str, str]:
    """What the bytes of a safetensors file say of it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: they say nothing, or are damaged.
    """
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())["__metadata__"]
    return {str(name): str(value) for name, value in header.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The same of a file, of which no more is read.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError, AttributeError: as of `metadata_of`.
    """
    with path.open("rb") as file:
        size = file.read(8)
        return metadata_of(size + file.read(min(int.from_bytes(size, "little"), _LARGEST_HEADER)))


def _without_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Tensors are moved to `tensors`; a list of their name stands for each."""
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree
        return {_TENSOR: name}
    if isinstance(tree, Mapping):
        return {"dict": {key: _without_tensors(value, tensors) for key, value in tree.items()}}
    if isinstance(tree, (list, tuple)):
        return [_without_tensors(value, tensors) for value in tree]
    return tree


def _with_tensors(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        return {key: _with_tensors(value, tensors) for key, value in tree["dict"].items()}
    if isinstance(tree, list):
        return [_with_tensors(value, tensors) for value in tree]
    return tree


def _checksum(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of the text, and of the names, kinds and bytes of tensors on the CPU."""
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        whole = tensor.contiguous()
        row = whole.as_strided((whole.numel(),), (1,))  # flatten leaves odd strides to rows of at most one number
        digest.update(row.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
