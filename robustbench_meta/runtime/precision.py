"""The precision of a training and its cells: float32, tf32 or bf16. Set for the work, and given back after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from robustbench_meta.errors import BenchError
from robustbench_meta.options import Precision

_LOWERED = {
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    F.linear, F.scaled_dot_product_attention, torch.einsum,
    *(getattr(module, name) for module in (torch, torch.Tensor)
      for name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm")), torch.Tensor.__matmul__,
}  # fmt: skip
"""What torch's autocast lowers on a CPU."""
_NEWER = ("", ".cuda.matmul", ".cudnn.conv", ".cudnn.rnn", ".mkldnn.matmul", ".mkldnn.conv")
"""Where torch 2.9 and later keep `fp32_precision`, below `torch.backends`."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise BenchError for tf32 without CUDA, or a GPU of this machine that is too old for tf32 or bf16."""
    if precision == "tf32" and device.type != "cuda":
        raise BenchError(
            f"--precision tf32 was given, and the device is {device}; tf32 needs a CUDA device of compute capability "
            "8.0 or more: use --precision float32 (or bf16), or --device cuda"
        )
    if precision != "float32" and device.type == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise BenchError(
                f"--precision {precision} was given, and {torch.cuda.get_device_name(device)} has compute capability "
                f"{major}.{minor}; {precision} needs 8.0 or more: use --precision float32"
            )


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """All of torch's switches as the precision wants them, and as they were before on leaving.

    float32 is float32: no TF32, no bfloat16 inside matrix products. tf32 allows TF32 in matrix products and
    convolutions on CUDA. bf16 leaves the switches at float32: `lowered` does the rest. cuDNN is always told to give
    the same numbers again.

    Raises:
        BenchError: as `check_precision`.
    """
    check_precision(precision, device)
    restore = _remembered()
    try:
        _switch(tf32=precision == "tf32")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        restore()


@contextmanager
def lowered(device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions in bfloat16, in float32 what torch's autocast leaves there.

    On a CPU torch 2.13's autocast misses convolutions and linear layers under vmap: they are seen to here, so that
    the ways of mapping compute the same.
    """
    with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
        if device.type != "cpu":
            yield
            return
        with _Lowering():
            yield


class _Lowering(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOWERED:
            args, kwargs = pytree.tree_map_only(Tensor, _to_bfloat16, (args, kwargs))
        return func(*args, **kwargs)


def _to_bfloat16(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor


def _switch(*, tf32: bool) -> None:
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")  # the CPU's, too
    torch.backends.cudnn.allow_tf32 = False
    for backend in _newer():
        backend.fp32_precision = "ieee"
    if tf32:  # by the older names: they keep the newer ones in step, and not the other way round
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def _newer() -> list[Any]:
    backends = []
    for path in _NEWER:
        with suppress(AttributeError):  # torch 2.8 has none
            backend: Any = torch.backends
            for name in path.split(".")[1:]:
                backend = getattr(backend, name)
            backend.fp32_precision  # noqa: B018  # is it there?
            backends.append(backend)
    return backends


def _remembered() -> Callable[[], None]:
    """What gives torch's switches back as they are now."""
    switches: list[tuple[Any, str, Any]] = [
        (torch.backends.cudnn, name, getattr(torch.backends.cudnn, name)) for name in ("deterministic", "benchmark")
    ]
    with suppress(RuntimeError):  # torch refuses to tell where its older and newer names are at odds
        switches.append((torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32))
    products = None
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    switches += [(backend, "fp32_precision", backend.fp32_precision) for backend in _newer()]

    def restore() -> None:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for backend, name, value in switches:
            setattr(backend, name, value)

    return restore
