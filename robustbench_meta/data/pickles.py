"""Pickles from strangers: their data are read by an interpreter of its own that calls nothing that they name.

A pickle is a program: opcodes for a stack machine, one of which calls any function with any arguments. The interpreter
here knows the opcodes of data (numbers, text, bytes, lists, tuples, dicts) and, by name, what numpy writes for its
arrays; these names stand for nothing but themselves. Neither Python's unpickler nor numpy's is used, no module is
imported, and every length is held against what the file has before anything is allocated.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from robustbench_meta.data.archives import looks_like_html
from robustbench_meta.errors import DataError

READ = "numbers, text, lists, dicts and numpy arrays of numbers or text"
_ADVICE = "a pickle can run programs, so nothing else is read: get the file from its official place, or convert it"
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9]\d{0,3}")
_NUMBER = re.compile(rb"[+-]?\d{1,20}")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x89HDF": "HDF5"}
_LONG = 2**16
"""Bytes from which a value is left where it is in the file."""
_END = object()


class Limits(NamedTuple):
    """What a pickle may ask for before it is taken for a bomb."""

    size: int = 4 * 2**30
    """Bytes of the file. Arrays are views of it: a pickle is not compressed, so they cannot be larger."""
    steps: int = 5_000_000
    """Opcodes, those that make something and the entries that they copy more than once: some seconds."""
    depth: int = 16
    """Containers inside one another."""
    values: int = 10_000_000
    """Values that a walk through the result meets; what is referred to twice counts twice."""


class _Refused(Exception):  # noqa: N818  # it never leaves this module
    """What is wrong, to be told with the file's name."""


class _Name(Enum):
    """What a pickle may name; none of it is ever called."""

    RECONSTRUCT = "numpy.core.multiarray._reconstruct"
    FROM_BUFFER = "numpy.core.numeric._frombuffer"
    SCALAR = "numpy.core.multiarray.scalar"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    ORDERED_DICT = "collections.OrderedDict"
    ENCODE = "_codecs.encode"
    BYTES = "builtins.bytes"


_SPELLINGS = {"numpy._core": "numpy.core", "__builtin__": "builtins"}
"""Of numpy from 2 on, and of Python 2."""


class _Array:
    """An array to be: named first, filled by BUILD."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None


class _Dtype:
    """A dtype to be: its name first, its byte order by BUILD."""

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "="

    def numpy(self) -> np.dtype[Any]:
        """The dtype, of numbers or text."""
        return np.dtype(self.name if self.order == "|" else self.order + self.name)


def read_pickle(path: Path, limits: Limits | None = None) -> Any:
    """The data in a pickle of protocol 0 to 5, written by Python 2 or 3 and any numpy; nothing in it is executed.

    Byte strings of Python 2 come as text (Latin-1), ordered dicts as dicts, numbers of numpy as Python's, and arrays
    as read-only views of the file's content.

    Raises:
        DataError: no pickle, truncated, or one that holds or asks for anything but data, with what that is.
    """
    limits = limits or Limits()
    try:
        size = path.stat().st_size
        if size > limits.size:
            raise DataError(f"{path} has {size} bytes; pickles of at most {limits.size} are read")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_pickle(data, str(path), limits)


def parse_pickle(data: bytes, where: str, limits: Limits | None = None) -> Any:
    """The data in the content of a pickle, as `read_pickle` gives them; `where` names it in messages."""
    if looks_like_html(data[:512]):
        raise DataError(f"{where} is a web page, not a pickle (a log-in or error page?): download it again")
    packed = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if packed:
        raise DataError(f"{where} is a {packed} file, not a pickle: unpack it first")
    limits = limits or Limits()
    try:
        return _Finish(limits, len(data)).plain(_Machine(data, limits).run())
    except _Refused as error:
        raise DataError(f"{where}: {error}") from error


class _Machine:
    """The stack machine that pickles are programs for, with the opcodes of data only."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data, self._view, self._limits = data, memoryview(data), limits
        self._at = self._steps = self._copied = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What is on top of the stack at the end."""
        if not self._data:
            raise _Refused("the file is empty, not a pickle")
        steps = {code: partial(step, self) for code, step in _STEPS.items()}
        while True:
            self._spend(1)
            if self._at >= len(self._data):
                raise _Refused("truncated (it has no end): get it again")
            code = self._data[self._at]
            self._at += 1
            step = steps.get(code)
            if step is None:
                self._unknown(code)
            if step() is _END:
                break
        if self._at < len(self._data):
            raise _Refused(f"{len(self._data) - self._at} bytes follow the end of the pickle: damaged; get it again")
        return self.pop()

    def _unknown(self, code: int) -> NoReturn:
        if code in _REFUSED:
            raise _Refused(f"it holds {_REFUSED[code]}; what is read: {READ}; {_ADVICE}")
        where = f" at byte {self._at - 1}" if self._at > 1 else ""
        raise _Refused(f"not a pickle, or damaged{where} (0x{code:02x} is no opcode)")

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > self._limits.steps:
            raise _Refused(f"it takes more than {self._limits.steps} steps to read: no data set does; not read")

    # -- bytes

    def _take(self, count: int) -> bytes:
        return bytes(self._slice(count))

    def _slice(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise _Refused("truncated, or damaged (it ends inside a value): get it again")
        self._at += count
        return self._view[self._at - count : self._at]

    def _counted(self, form: str) -> memoryview:
        (count,) = struct.unpack(form, self._take(struct.calcsize(form)))
        if count < 0:
            raise _Refused("damaged (a negative length): get it again")
        return self._slice(count)

    def _line(self, longest: int | None = None) -> bytes:
        end = self._data.find(b"\n", self._at, None if longest is None else self._at + longest + 1)
        if end < 0:
            raise _Refused("truncated, or damaged (a line has no end): get it again")
        line = self._data[self._at : end]
        self._at = end + 1
        return line

    def _integer(self) -> int:
        line = self._line(longest=24).rstrip(b"L\r")
        if not _NUMBER.fullmatch(line):
            raise _Refused(f"damaged, or no number of a data set ({line!r})")
        return int(line)

    # -- the stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack:
            raise _Refused("damaged (a value is missing): get it again")
        return self._stack.pop()

    def _top(self, kind: type[Any]) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise _Refused(f"damaged (a {kind.__name__} is missing): get it again")
        return self._stack[-1]

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        if not self._marked:
            raise _Refused("damaged (a mark is missing): get it again")
        values, self._stack = self._stack, self._marked.pop()
        return values

    def pop_mark(self) -> None:
        self._since_mark()

    def pop_one(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def duplicate(self) -> None:
        value = self.pop()
        self._stack += [value, value]

    # -- values

    def protocol(self) -> None:
        version = self._take(1)[0]
        if version > 5:
            raise _Refused(f"it is of pickle protocol {version}; 0 to 5 are read")

    def frame(self) -> None:
        (count,) = struct.unpack("<Q", self._take(8))
        if count > len(self._data) - self._at:
            raise _Refused("truncated (a frame goes beyond its end): get it again")

    def number(self, form: str) -> None:
        self.push(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def long(self, form: str) -> None:
        digits = self._counted(form)
        value = int.from_bytes(digits[:10], "little", signed=True)
        if len(digits) > 9 or not -(2**63) <= value < 2**64:
            raise _Refused(f"it holds an integer of {len(digits)} bytes; data sets have none beyond 8")
        self.push(value)

    def integer_line(self) -> None:
        start = self._data[self._at : self._at + 3]
        if start in (b"00\n", b"01\n"):
            self._at += 3
            self.push(start == b"01\n")
        else:
            self.push(self._integer())

    def float_line(self) -> None:
        try:
            self.push(float(self._line(longest=64)))
        except ValueError as error:
            raise _Refused(f"damaged ({error})") from error

    def text(self, form: str) -> None:
        try:
            self.push(str(self._counted(form), "utf-8"))
        except UnicodeDecodeError as error:
            raise _Refused(f"it holds text that is not UTF-8 ({error.reason})") from error

    def text_line(self) -> None:
        try:
            self.push(self._line().decode("raw-unicode-escape"))
        except UnicodeDecodeError as error:
            raise _Refused(f"it holds text that is damaged ({error.reason})") from error

    def binary(self, form: str) -> None:
        content = self._counted(form)
        self.push(content if len(content) >= _LONG else bytes(content))

    def old_text(self, form: str) -> None:
        """A byte string of Python 2: text, or, where it is long, the content of an array."""
        content = self._counted(form)
        self.push(str(content, "latin-1") if len(content) < _LONG else content)

    def old_text_line(self) -> None:
        line = self._line().rstrip(b"\r")
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            raise _Refused("damaged (a text without quotes): get it again")
        try:
            content = codecs.escape_decode(line[1:-1])[0]
        except ValueError as error:
            raise _Refused(f"damaged ({error})") from error
        self.push(str(content, "latin-1"))

    def constant(self, value: Any) -> None:
        self.push(value)

    # -- containers

    def empty(self, make: Callable[[], Any]) -> None:
        self.push(make())

    def list_of_marked(self) -> None:
        self.push(self._since_mark())

    def dict_of_marked(self) -> None:
        values = self._since_mark()
        self.push({})
        self._fill(values)

    def append(self) -> None:
        value = self.pop()
        self._top(list).append(value)

    def appends(self) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._fill([key, value])

    def set_items(self) -> None:
        self._fill(self._since_mark())

    def _fill(self, values: list[Any]) -> None:
        filled = self._top(dict)
        if len(values) % 2:
            raise _Refused("damaged (a key without a value): get it again")
        for key, value in zip(values[::2], values[1::2], strict=True):
            filled[_key(key)] = value

    def tuple_of_marked(self) -> None:
        self.push(tuple(self._since_mark()))

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise _Refused("damaged (a value is missing): get it again")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    # -- the memo

    def put(self, form: str) -> None:
        (place,) = struct.unpack(form, self._take(struct.calcsize(form)))
        self._keep(place)

    def put_line(self) -> None:
        self._keep(self._integer())

    def memoize(self) -> None:
        self._keep(len(self._memo))

    def _keep(self, place: int) -> None:
        if not self._stack:
            raise _Refused("damaged (a value is missing): get it again")
        self._memo[place] = self._stack[-1]

    def get(self, form: str) -> None:
        (place,) = struct.unpack(form, self._take(struct.calcsize(form)))
        self._recall(place)

    def get_line(self) -> None:
        self._recall(self._integer())

    def _recall(self, place: int) -> None:
        if place not in self._memo:
            raise _Refused(f"damaged (it refers to value {place}, which is not there): get it again")
        self.push(self._memo[place])

    # -- what is named, called and built: by name only

    def name(self) -> None:
        module, name = self._line(longest=256), self._line(longest=256)
        self.push(_named(str(module, "latin-1"), str(name, "latin-1")))

    def name_of_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _Refused("damaged (a name is missing): get it again")
        self.push(_named(module, name))

    def instance(self) -> None:
        """What INST would make an object of."""
        module, name = self._line(longest=256), self._line(longest=256)
        whole = str(module + b"." + name, "latin-1")
        raise _Refused(_not_allowed(f"an object of the class {whole[:120]!r}"))

    def reduce(self) -> None:
        self._spend(4)
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise _Refused("damaged (what it calls is missing): get it again")
        make = _MAKERS.get(name)
        made = NotImplemented if make is None else make(self, *arguments[:6])
        if made is NotImplemented or len(arguments) > 6:
            raise _Refused(_not_allowed(f"{name.value} with arguments that numpy does not write"))
        self.push(made)

    def build(self) -> None:
        state = self.pop()
        if not self._stack:
            raise _Refused("damaged (what it builds is missing): get it again")
        target = self._stack[-1]
        if not isinstance(target, _Array | _Dtype) or not isinstance(state, tuple):
            raise _Refused(_not_allowed("the state of an object"))
        if isinstance(target, _Dtype):
            _build_dtype(target, state)
        else:
            self._build_array(target, state)

    def _build_array(self, target: _Array, state: tuple[Any, ...]) -> None:
        if len(state) != 5 or state[0] != 1 or not isinstance(state[2], _Dtype) or target.array is not None:
            raise _Refused(_not_allowed("an array in a form that numpy does not write"))
        _, shape, dtype, fortran, content = state
        if isinstance(content, list):
            raise _Refused(_not_allowed("an array of Python objects"))
        target.array = self._array(shape, dtype, "F" if fortran in (True, 1) else "C", content)

    def _array(self, shape: Any, dtype: _Dtype, order: str, content: Any) -> np.ndarray:
        """A view of the content, of exactly its size."""
        if isinstance(content, str):  # of Python 2
            content = self._encoded(content)
        if not isinstance(content, bytes | memoryview) or not isinstance(shape, tuple) or len(shape) > 32:
            raise _Refused("damaged (an array without content or shape): get it again")
        kind = dtype.numpy()
        if any(type(side) is not int or not 0 <= side <= len(self._data) for side in shape):
            raise _Refused(f"it claims an array of the shape {_brief(shape)}, which is more than the file holds")
        if math.prod(shape) * kind.itemsize != len(content):
            raise _Refused(
                f"it claims an array of the shape {_brief(shape)} of {kind}, and holds {len(content)} bytes for it: "
                "damaged; get it again"
            )
        flat = np.frombuffer(content, kind) if len(content) else np.empty(0, kind)
        if kind.kind in "bU":
            self._spend(len(content) // 1024)
            _check_content(flat)
        array = flat.reshape(shape, order="F" if order == "F" else "C")
        array.flags.writeable = False
        return array

    def _copy(self, count: int) -> None:
        self._copied += count
        if self._copied > 2 * len(self._data) + _LONG:
            raise _Refused("it copies its own values until they become far more than the file: not read")

    def _encoded(self, text: str) -> bytes:
        """Bytes that Python 3 wrote as text, in protocols 0 to 2."""
        self._copy(len(text))
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError as error:
            raise _Refused("damaged (text where bytes should be): get it again") from error

    # -- makers: what the names stand for

    def reconstruct(self, *arguments: Any) -> Any:
        """An array that BUILD fills: _reconstruct(ndarray, (0,), b'b')."""
        plain = len(arguments) == 3 and arguments[0] is _Name.NDARRAY and isinstance(arguments[1], tuple)
        return _Array() if plain else NotImplemented

    def from_buffer(self, *arguments: Any) -> Any:
        """An array of protocol 5: content, dtype, shape, order 'C' or 'F', or 'K' and the order of its axes."""
        if len(arguments) not in (4, 5) or not isinstance(arguments[1], _Dtype):
            return NotImplemented
        content, dtype, shape, order = arguments[:4]
        axes: Any = arguments[4] if len(arguments) == 5 else None
        if order not in ("C", "F", "K") or (order == "K") != isinstance(axes, tuple):
            return NotImplemented
        made = _Array()
        made.array = self._array(shape, dtype, order, content)
        if order == "K":
            if any(type(axis) is not int for axis in axes) or sorted(axes) != list(range(made.array.ndim)):
                return NotImplemented
            made.array = made.array.transpose(axes)
        return made

    def scalar(self, *arguments: Any) -> Any:
        """A number of numpy's, as Python's: dtype and content."""
        if len(arguments) != 2 or not isinstance(arguments[0], _Dtype):
            return NotImplemented
        value = self._array((), arguments[0], "C", arguments[1])
        self._copy(value.nbytes)
        return value.item()

    def dtype(self, *arguments: Any) -> Any:
        """A dtype by its name: 'u1', False, True."""
        name = arguments[0] if len(arguments) in (1, 3) else None
        if not isinstance(name, str):
            return NotImplemented
        if name.startswith("O"):
            raise _Refused(_not_allowed("an array of Python objects"))
        if not _DTYPE.fullmatch(name):
            raise _Refused(_not_allowed(f"an array of the dtype {name[:20]!r}"))
        return _Dtype(name)

    def encode(self, *arguments: Any) -> Any:
        """Bytes, from text and the word 'latin1'."""
        if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
            return NotImplemented
        return self._encoded(arguments[0])

    def ordered_dict(self, *arguments: Any) -> Any:
        """OrderedDict(), or of pairs in Python 2."""
        pairs: Any = arguments[0] if arguments else []
        if len(arguments) > 1 or not isinstance(pairs, list):
            return NotImplemented
        self._spend(8 * len(pairs))
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return NotImplemented
        return {_key(key): value for key, value in pairs}

    def no_bytes(self, *arguments: Any) -> Any:
        """bytes(), as Python 3 writes b'' in protocols 0 to 2."""
        return NotImplemented if arguments else b""


class _Finish:
    """From what the machine made to plain data: no cycles, no depths, and nothing that grows when it is walked."""

    def __init__(self, limits: Limits, size: int) -> None:
        self._limits, self._bytes = limits, 4 * size + 2**26
        self._done: dict[int, tuple[Any, int, int, int]] = {}
        self._open: set[int] = set()

    def plain(self, value: Any) -> Any:
        """The value, if it is data and no bomb."""
        return self._visit(value)[0]

    def _visit(self, value: Any) -> tuple[Any, int, int, int]:
        """A value as plain data, how many values and bytes a walk through it meets, and its depth."""
        if type(value) in (bool, int, float, type(None)):
            return value, 1, 8, 0
        if type(value) is str:
            return _checked_text(value), 1, len(value), 0
        place = id(value)
        if place in self._open:
            raise _Refused("it holds a list or dict that contains itself: no data set does; not read")
        if place not in self._done:
            self._open.add(place)
            if len(self._open) > self._limits.depth + 1:
                raise _Refused(f"it holds more than {self._limits.depth} containers inside one another: not read")
            found = self._found(value)
            self._open.discard(place)
            if found[1] > self._limits.values or found[2] > self._bytes:
                raise _Refused("it refers to its own values so often that they become far more than the file: not read")
            if found[3] > self._limits.depth:
                raise _Refused(f"it holds more than {self._limits.depth} containers inside one another: not read")
            self._done[place] = found
        return self._done[place]

    def _found(self, value: Any) -> tuple[Any, int, int, int]:
        if isinstance(value, dict):
            kept = self._all(value.values())
            names = sum(len(key) if isinstance(key, str | bytes) else 8 for key in value)
            whole = dict(zip((_checked_text(key) for key in value), kept[0], strict=True))
            return whole, kept[1] + len(value), kept[2] + names, kept[3]
        if isinstance(value, list):
            return self._all(value)
        if isinstance(value, tuple):
            kept = self._all(value)
            return (tuple(kept[0]), *kept[1:])
        if isinstance(value, bytes | memoryview):
            return bytes(value), 1, len(value), 0
        if isinstance(value, _Array) and value.array is not None:
            return value.array, 1, value.array.nbytes, 0
        raise _Refused("damaged (an array or name without its content): get it again")

    def _all(self, values: Iterable[Any]) -> tuple[list[Any], int, int, int]:
        kept, count, size, depth = [], 1, 8, 0
        for value in values:
            plain, more, longer, deeper = self._visit(value)
            kept.append(plain)
            count, size, depth = count + more, size + longer, max(depth, deeper)
        return kept, count, size, depth + 1


def _checked_text(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _Refused("it holds text that is damaged (half a character)") from error
    return value


def _key(key: Any) -> str | bytes | int:
    """A key of a dict: of a kind that is quickly looked up, whatever was thought out."""
    if type(key) in (str, bytes) or (type(key) is int and abs(key) < 2**60):
        return key  # type: ignore[no-any-return]
    raise _Refused(f"it holds a dict with a key of the type {type(key).__name__}; expected texts or whole numbers")


def _check_content(flat: np.ndarray) -> None:
    """Bits that are no truth value or character would trip whoever looks at them."""
    if flat.dtype.kind == "b" and flat.size and flat.view("u1").max() > 1:
        raise _Refused("damaged (an array of truth values holds others): get it again")
    if flat.dtype.kind == "U" and flat.size:
        points = flat.view(np.dtype("u4").newbyteorder(flat.dtype.byteorder))
        if points.max() > 0x10FFFF or ((points >= 0xD800) & (points < 0xE000)).any():
            raise _Refused("damaged (an array of text holds what are no characters): get it again")


def _build_dtype(target: _Dtype, state: tuple[Any, ...]) -> None:
    """(3, '<', None, None, None, -1, -1, 0): no fields, no sub-arrays; a version 4 has no metadata at the end."""
    order = state[1] if len(state) in (8, 9) else None
    order = str(order, "latin-1") if isinstance(order, bytes | memoryview) else order
    if not isinstance(order, str) or order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
        raise _Refused(_not_allowed("an array with fields or in another form than of numbers or text"))
    target.order = order


def _named(module: str, name: str) -> _Name:
    whole = f"{module}.{name}"
    for spelling, usual in _SPELLINGS.items():
        if module == spelling or module.startswith(f"{spelling}."):
            module = usual + module.removeprefix(spelling)
    try:
        return _Name(f"{module}.{name}")
    except ValueError as error:
        raise _Refused(_not_allowed(repr(whole[:120]))) from error


def _not_allowed(what: str) -> str:
    return f"it holds {what}; what is read: {READ}; {_ADVICE}"


def _brief(shape: tuple[Any, ...]) -> str:
    sides = [str(side) if type(side) is int and abs(side) < 10**30 else "…" for side in shape[:6]]
    return f"({', '.join(sides)}{', …' if len(shape) > 6 else ''})"


_MAKERS: dict[_Name, Callable[..., Any]] = {
    _Name.RECONSTRUCT: _Machine.reconstruct,
    _Name.FROM_BUFFER: _Machine.from_buffer,
    _Name.SCALAR: _Machine.scalar,
    _Name.DTYPE: _Machine.dtype,
    _Name.ENCODE: _Machine.encode,
    _Name.ORDERED_DICT: _Machine.ordered_dict,
    _Name.BYTES: _Machine.no_bytes,
}


def _with(step: Callable[..., Any], argument: Any) -> Callable[[_Machine], Any]:
    return lambda machine: step(machine, argument)


_STEPS: dict[int, Callable[[_Machine], Any]] = {
    ord(code): step
    for code, step in {
        ".": lambda _: _END,
        "(": _Machine.mark,
        "0": _Machine.pop_one,
        "1": _Machine.pop_mark,
        "2": _Machine.duplicate,
        "N": _with(_Machine.constant, None),
        "\x88": _with(_Machine.constant, True),
        "\x89": _with(_Machine.constant, False),
        "I": _Machine.integer_line,
        "L": _Machine.integer_line,
        "F": _Machine.float_line,
        "J": _with(_Machine.number, "<i"),
        "K": _with(_Machine.number, "<B"),
        "M": _with(_Machine.number, "<H"),
        "G": _with(_Machine.number, ">d"),
        "\x8a": _with(_Machine.long, "<B"),
        "\x8b": _with(_Machine.long, "<i"),
        "S": _Machine.old_text_line,
        "T": _with(_Machine.old_text, "<i"),
        "U": _with(_Machine.old_text, "<B"),
        "V": _Machine.text_line,
        "X": _with(_Machine.text, "<I"),
        "\x8c": _with(_Machine.text, "<B"),
        "\x8d": _with(_Machine.text, "<Q"),
        "B": _with(_Machine.binary, "<I"),
        "C": _with(_Machine.binary, "<B"),
        "\x8e": _with(_Machine.binary, "<Q"),
        "\x96": _with(_Machine.binary, "<Q"),
        "]": _with(_Machine.empty, list),
        "}": _with(_Machine.empty, dict),
        ")": _with(_Machine.constant, ()),
        "l": _Machine.list_of_marked,
        "d": _Machine.dict_of_marked,
        "t": _Machine.tuple_of_marked,
        "\x85": _with(_Machine.tuple_of, 1),
        "\x86": _with(_Machine.tuple_of, 2),
        "\x87": _with(_Machine.tuple_of, 3),
        "a": _Machine.append,
        "e": _Machine.appends,
        "s": _Machine.set_item,
        "u": _Machine.set_items,
        "p": _Machine.put_line,
        "q": _with(_Machine.put, "<B"),
        "r": _with(_Machine.put, "<I"),
        "\x94": _Machine.memoize,
        "g": _Machine.get_line,
        "h": _with(_Machine.get, "<B"),
        "j": _with(_Machine.get, "<I"),
        "\x80": _Machine.protocol,
        "\x95": _Machine.frame,
        "c": _Machine.name,
        "\x93": _Machine.name_of_stack,
        "i": _Machine.instance,
        "R": _Machine.reduce,
        "b": _Machine.build,
    }.items()
}

_REFUSED = {
    ord(code): what
    for code, what in {
        "P": "a persistent id (a reference to something outside of it)",
        "Q": "a persistent id (a reference to something outside of it)",
        "o": "an object of a class",
        "\x81": "an object of a class",
        "\x92": "an object of a class",
        "\x82": "an extension code",
        "\x83": "an extension code",
        "\x84": "an extension code",
        "\x8f": "a set",
        "\x90": "a set",
        "\x91": "a set",
        "\x97": "a buffer outside of the file",
        "\x98": "a buffer outside of the file",
    }.items()
}
