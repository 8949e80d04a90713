"""Untrusted pickles, read by an unpickler whose `find_class` allows ten names and imports nothing."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from robustbench_meta.data.archives import looks_like_html
from robustbench_meta.errors import DataError, brief

MAX_BYTES = 4 * 2**30
_LONGEST = 10_000_000
"""Of a range, which is written as three numbers and read as a list."""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x89HDF": "HDF5"}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,3}")
_Unpickler: type[Any] = vars(pickle)["_Unpickler"]
"""Python's own in Python: the one in C allocates what a forged memo index or length asks for."""


def read_pickle(path: Path) -> Any:
    """The numbers, text, collections and numpy arrays in a pickle by Python 2 or 3; nothing in it is executed.

    Byte strings of Python 2 become text (Latin-1), numbers of numpy become Python's, and arrays are read-only.

    Raises:
        DataError: the file is no pickle, too large, or damaged, or it holds anything else.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path} has {size} bytes; pickles of at most {MAX_BYTES} are read")
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as packed:
                content = packed.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise DataError(f"{path} unpacks to more than {MAX_BYTES} bytes: not read")
            return load_pickle(io.BytesIO(content), str(path))
        with path.open("rb") as file:
            return load_pickle(file, str(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or truncated ({error}): get it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def load_pickle(file: BinaryIO, where: str) -> Any:
    """What `read_pickle` gives, from an open file; `where` names it in messages."""
    head = file.read(512)
    file.seek(0)
    if looks_like_html(head):
        raise DataError(f"{where} is a web page, not a pickle (a log-in or error page?): download it again")
    packed = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if packed:
        raise DataError(f"{where} is a {packed} file, not a pickle: unpack it first")
    try:
        return _DataUnpickler(file, encoding="latin-1").load()
    except _NotData as error:
        raise DataError(
            f"{where}: it holds {error}; what is read: numbers, text, lists, dicts and numpy arrays of numbers or "
            "text; a pickle can run programs, so nothing else is read: get the file from its official place, or "
            "convert it"
        ) from error
    except EOFError as error:
        raise DataError(f"{where}: truncated, or not a pickle: get it again") from error
    except Exception as error:  # the opcodes of a damaged file may fail in any way
        raise DataError(f"{where}: damaged, or not a pickle ({brief(error)}): get it again") from error


class _NotData(Exception):  # noqa: N818  # what a pickle holds that is not read
    pass


class _DataUnpickler(_Unpickler):  # type: ignore[misc]  # typeshed does not know it
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module.replace('numpy._core', 'numpy.core').replace('__builtin__', 'builtins')}.{name}"
        if full not in _ALLOWED:
            raise _NotData(repr(full[:120]))
        function = _ALLOWED[full]

        def called(*arguments: Any) -> Any:  # anew each time, and no class: BUILD sets attributes, NEWOBJ calls __new__
            return function(*arguments)

        return called

    def persistent_load(self, pid: Any) -> Any:
        raise _NotData("a reference to something outside of it")

    def get_extension(self, code: int) -> Any:
        raise _NotData("an extension code")


class _Dtype:
    """A dtype of numbers or text; a real one would let BUILD forge its size and fields."""

    def __init__(self, name: str, *_: Any) -> None:
        if not _DTYPE.fullmatch(name):
            raise _NotData(f"an array of the dtype {name[:20]!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise _NotData("an array with fields")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that BUILD fills; numpy's own believes any shape and dtype."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, content = state
        if isinstance(content, list):
            raise _NotData("an array of Python objects")
        content = _bytes(content)
        checked: Any = (version, shape, _flat(content, dtype, shape).dtype, bool(is_fortran), content)
        super().__setstate__(checked)
        self.flags.writeable = False


def _bytes(content: Any) -> bytes:
    return content.encode("latin-1") if isinstance(content, str) else bytes(content)


def _flat(content: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A view of the content, of exactly its size."""
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise ValueError("an array without content or dtype")
    size = math.prod(shape) * dtype.dtype.itemsize
    if any(type(side) is not int or side < 0 for side in shape) or size != len(content):
        raise ValueError(f"{len(content)} bytes for an array {dtype.dtype} {list(shape)[:8]}"[:120])
    flat = np.frombuffer(content, dtype.dtype) if content else np.empty(0, dtype.dtype)
    flat.flags.writeable = False
    if flat.dtype.kind == "U":
        flat.tolist()  # fails now where numbers are no characters, and not when somebody looks at them
    return flat


def _from_buffer(content: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    array = _flat(content, dtype, shape).reshape(shape, order="F" if order == "F" else "C").view(_Array)
    return array if axes is None else array.transpose(axes)


def _range(*arguments: int) -> list[int]:
    if len(range(*arguments)) > _LONGEST:
        raise _NotData(f"a range of {len(range(*arguments))} numbers")
    return list(range(*arguments))


_ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": lambda *_: _Array((0,), "b"),
    "numpy.core.multiarray.scalar": lambda dtype, content: _flat(_bytes(content), dtype, (1,)).item(),
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.ndarray": lambda: None,  # named, and never called
    "numpy.dtype": _Dtype,
    "collections.OrderedDict": dict,
    "_codecs.encode": lambda text, encoding: text.encode("latin-1"),
    "builtins.bytes": lambda: b"",
    "builtins.range": _range,
    "builtins.xrange": _range,
}
