"""What numpy writes into pickles of arrays, by name: stand-ins that hold what they are given, checked, and no more."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

READ = "numbers, text, lists, dicts and numpy arrays of numbers or text"
_ADVICE = "a pickle can run programs, so nothing else is read: get the file from its official place, or convert it"
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,3}")
_SPELLINGS = {"numpy._core": "numpy.core", "__builtin__": "builtins"}
"""Of numpy from 2 on, and of Python 2."""


class Refused(Exception):  # noqa: N818  # the reader catches it
    """What is wrong with a pickle, to be told with the file's name."""


def refuse(what: str) -> NoReturn:
    """Say what a pickle holds that is not read."""
    raise Refused(f"it holds {what}; what is read: {READ}; {_ADVICE}")


class Purse:
    """What a pickle may still ask for before it is taken for a bomb.

    Args:
        size: bytes of the pickle.
        steps: opcodes, and entries that are copied more than once.
    """

    def __init__(self, size: int, steps: int) -> None:
        self.size, self._most, self._steps, self._copied = size, steps, 0, 0

    def spend(self, steps: int) -> None:
        """Take some steps."""
        self._steps += steps
        if self._steps > self._most:
            raise Refused(f"it takes more than {self._most} steps to read: no data set does; not read")

    def copy(self, count: int) -> None:
        """Copy so many bytes."""
        self._copied += count
        if self._copied > 2 * self.size + 2**16:
            raise Refused("it copies its own values until they become far more than the file: not read")


class Dtype:
    """A dtype to be: its name first, its byte order by the opcode BUILD."""

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "="

    def numpy(self) -> np.dtype[Any]:
        """The dtype, of numbers or text."""
        return np.dtype(self.name if self.order == "|" else self.order + self.name)

    def build(self, state: tuple[Any, ...]) -> None:
        """(3, '<', None, None, None, -1, -1, 0): no fields, no sub-arrays; a version 4 has no metadata at the end."""
        order = state[1] if len(state) in (8, 9) else None
        order = str(order, "latin-1") if isinstance(order, bytes) else order
        plain = isinstance(order, str) and order in ("<", ">", "|", "=") and all(part is None for part in state[2:5])
        if not plain:
            refuse("an array with fields or in another form than of numbers or text")
        self.order = str(order)


class Array:
    """An array to be: named first, filled by the opcode BUILD."""

    def __init__(self, purse: Purse) -> None:
        self._purse = purse
        self.array: np.ndarray | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        """(1, shape, dtype, whether in Fortran's order, content)."""
        if len(state) != 5 or state[0] != 1 or not isinstance(state[2], Dtype) or self.array is not None:
            refuse("an array in a form that numpy does not write")
        _, shape, dtype, fortran, content = state
        if isinstance(content, list):
            refuse("an array of Python objects")
        self.array = _array(self._purse, shape, dtype, "F" if fortran in (True, 1) else "C", content)


class Named:
    """What pickles may name. Each stands for nothing but itself; to call it makes a stand-in or a plain value."""

    def __init__(self, purse: Purse) -> None:
        self._purse = purse
        self._known: dict[str, Callable[..., Any]] = {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.ndarray": self._ndarray,
            "numpy.dtype": self._dtype,
            "collections.OrderedDict": self._ordered_dict,
            "_codecs.encode": self._encode,
            "builtins.bytes": self._no_bytes,
            "builtins.range": self._range,
            "builtins.xrange": self._range,
        }

    def find(self, module: str, name: str) -> Callable[..., Any]:
        """What stands for that name."""
        whole = f"{module}.{name}"
        for spelling, usual in _SPELLINGS.items():
            if module == spelling or module.startswith(f"{spelling}."):
                module = usual + module.removeprefix(spelling)
        known = self._known.get(f"{module}.{name}")
        return known if known is not None else refuse(repr(whole[:120]))

    def call(self, named: Any, arguments: Any) -> Any:
        """What the opcode REDUCE makes of one of them."""
        name = next((name for name, known in self._known.items() if known == named), None)
        if name is None or not isinstance(arguments, tuple):
            raise Refused("damaged (what it calls is missing): get it again")
        self._purse.spend(4)
        made = named(*arguments) if len(arguments) <= 6 else NotImplemented
        if made is NotImplemented:
            refuse(f"{name} with arguments that numpy does not write")
        return made

    def _ndarray(self, *_: Any) -> Any:
        return NotImplemented

    def _reconstruct(self, *arguments: Any) -> Any:
        """An array that BUILD fills, of ndarray, (0,) and b'b'."""
        plain = len(arguments) == 3 and arguments[0] == self._ndarray and isinstance(arguments[1], tuple)
        return Array(self._purse) if plain else NotImplemented

    def _from_buffer(self, *arguments: Any) -> Any:
        """An array of protocol 5: content, dtype, shape, order 'C' or 'F', or 'K' and the order of its axes."""
        if len(arguments) not in (4, 5) or not isinstance(arguments[1], Dtype):
            return NotImplemented
        content, dtype, shape, order = arguments[:4]
        axes: Any = arguments[4] if len(arguments) == 5 else None
        if order not in ("C", "F", "K") or (order == "K") != isinstance(axes, tuple):
            return NotImplemented
        made = Array(self._purse)
        made.array = _array(self._purse, shape, dtype, order, content)
        if order == "K":
            if any(type(axis) is not int for axis in axes) or sorted(axes) != list(range(made.array.ndim)):
                return NotImplemented
            made.array = made.array.transpose(axes)
        return made

    def _scalar(self, *arguments: Any) -> Any:
        """A number of numpy's, as Python's: dtype and content."""
        if len(arguments) != 2 or not isinstance(arguments[0], Dtype):
            return NotImplemented
        value = _array(self._purse, (), arguments[0], "C", arguments[1])
        self._purse.copy(value.nbytes)
        return value.item()

    def _dtype(self, *arguments: Any) -> Any:
        """A dtype by its name: 'u1', False, True."""
        name = arguments[0] if len(arguments) in (1, 3) else None
        if not isinstance(name, str):
            return NotImplemented
        if name.startswith("O"):
            refuse("an array of Python objects")
        if not _DTYPE.fullmatch(name):
            refuse(f"an array of the dtype {name[:20]!r}")
        return Dtype(name)

    def _encode(self, *arguments: Any) -> Any:
        """Bytes, from text and the word 'latin1'."""
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
            return NotImplemented
        return _encoded(self._purse, arguments[0])

    def _ordered_dict(self, *arguments: Any) -> Any:
        """OrderedDict(), or of pairs in Python 2."""
        pairs: Any = arguments[0] if arguments else []
        if len(arguments) > 1 or not isinstance(pairs, list):
            return NotImplemented
        self._purse.spend(8 * len(pairs))
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return NotImplemented
        return {checked_key(key): value for key, value in pairs}

    def _range(self, *arguments: Any) -> Any:
        """A range of whole numbers, as the list of them."""
        if len(arguments) != 3 or any(type(each) is not int or abs(each) > 2**40 for each in arguments):
            return NotImplemented
        if not arguments[2]:
            return NotImplemented
        numbers = range(*arguments)
        self._purse.spend(len(numbers))
        return list(numbers)

    def _no_bytes(self, *arguments: Any) -> Any:
        """bytes(), as Python 3 writes b'' in protocols 0 to 2."""
        return NotImplemented if arguments else b""


def checked_key(key: Any) -> str | bytes | int:
    """A key of a dict: of a kind that is quickly looked up, whatever was thought out."""
    if type(key) in (str, bytes) or (type(key) is int and abs(key) < 2**60):
        return key  # type: ignore[no-any-return]
    raise Refused(f"it holds a dict with a key of the type {type(key).__name__}; expected texts or whole numbers")


def _array(purse: Purse, shape: Any, dtype: Dtype, order: str, content: Any) -> np.ndarray:
    """A view of the content, of exactly its size."""
    if isinstance(content, str):  # of Python 2
        content = _encoded(purse, content)
    if not isinstance(content, bytes | bytearray) or not isinstance(shape, tuple) or len(shape) > 32:
        raise Refused("damaged (an array without content or shape): get it again")
    kind = dtype.numpy()
    if any(type(side) is not int or not 0 <= side <= purse.size for side in shape):
        raise Refused(f"it claims an array of the shape {_brief(shape)}, which is more than the file holds")
    if math.prod(shape) * kind.itemsize != len(content):
        raise Refused(
            f"it claims an array of the shape {_brief(shape)} of {kind}, and holds {len(content)} bytes for it: "
            "damaged; get it again"
        )
    flat = np.frombuffer(content, kind) if len(content) else np.empty(0, kind)
    if kind.kind in "bU":
        purse.spend(len(content) // 1024)
        _check_content(flat)
    array = flat.reshape(shape, order="F" if order == "F" else "C")
    array.flags.writeable = False
    return array


def _encoded(purse: Purse, text: str) -> bytes:
    """Bytes that Python 3 wrote as text, in protocols 0 to 2."""
    purse.copy(len(text))
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise Refused("damaged (text where bytes should be): get it again") from error


def _check_content(flat: np.ndarray) -> None:
    """Bits that are no truth value or character would trip whoever looks at them."""
    if flat.dtype.kind == "b" and flat.size and flat.view("u1").max() > 1:
        raise Refused("damaged (an array of truth values holds others): get it again")
    if flat.dtype.kind == "U" and flat.size:
        points = flat.view(np.dtype("u4").newbyteorder(flat.dtype.byteorder))
        if points.max() > 0x10FFFF or ((points >= 0xD800) & (points < 0xE000)).any():
            raise Refused("damaged (an array of text holds what are no characters): get it again")


def _brief(shape: tuple[Any, ...]) -> str:
    sides = [str(side) if type(side) is int and abs(side) < 10**30 else "…" for side in shape[:6]]
    return f"({', '.join(sides)}{', …' if len(shape) > 6 else ''})"
