"""Pickles from strangers: read by Python's own unpickler, with nothing left in it that could be called.

A pickle is a program: opcodes for a stack machine, one of which calls any function with any arguments. All opcodes are
looked through first (`pickletools`); only those of data (numbers, text, bytes, lists, tuples, dicts) and of numpy's
arrays are let through. In the unpickler, every name stands for an inert stand-in, or is refused: no module is imported.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

from robustbench_meta.data.archives import looks_like_html
from robustbench_meta.data.stand_ins import Array, Dtype, Named, Purse, Refused, checked_key, refuse
from robustbench_meta.errors import DataError, brief

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x89HDF": "HDF5"}


class Limits(NamedTuple):
    """What a pickle may ask for before it is taken for a bomb."""

    size: int = 4 * 2**30
    """Bytes of the file. A pickle is not compressed, so that its arrays cannot be larger."""
    steps: int = 5_000_000
    """Opcodes, those that make something and the entries that they copy more than once: some seconds."""
    depth: int = 16
    """Containers inside one another."""
    values: int = 10_000_000
    """Values that a walk through the result meets; what is referred to twice counts twice."""


def read_pickle(path: Path, limits: Limits | None = None) -> Any:
    """The data in a pickle of protocol 0 to 5, written by Python 2 or 3 and any numpy; nothing in it is executed.

    Byte strings of Python 2 come as text (Latin-1), ordered dicts as dicts, numbers of numpy as Python's, and arrays
    read-only.

    Raises:
        DataError: no pickle, truncated, or one that holds or asks for anything but data, with what that is.
    """
    limits = limits or Limits()
    try:
        size = path.stat().st_size
        if size > limits.size:
            raise DataError(f"{path} has {size} bytes; pickles of at most {limits.size} are read")
        data = _unpacked(path, limits.size) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or truncated ({error}): get it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_pickle(data, str(path), limits)


def _unpacked(path: Path, most: int) -> bytes:
    with gzip.open(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(f"{path} unpacks to more than {most} bytes: not read")
    return data


def parse_pickle(data: bytes, where: str, limits: Limits | None = None) -> Any:
    """The data in the content of a pickle, as `read_pickle` gives them; `where` names it in messages."""
    if looks_like_html(data[:512]):
        raise DataError(f"{where} is a web page, not a pickle (a log-in or error page?): download it again")
    packed = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if packed:
        raise DataError(f"{where} is a {packed} file, not a pickle: unpack it first")
    limits = limits or Limits()
    purse = Purse(len(data), limits.steps)
    try:
        _look_through(data, purse)
        return _Finish(limits, len(data)).plain(_Reader(data, purse).load())
    except Refused as error:
        raise DataError(f"{where}: {error}") from error


def _look_through(data: bytes, purse: Purse) -> None:
    """Refuse opcodes that are not of data, and what is no pickle from its first to its last byte."""
    if not data:
        raise Refused("the file is empty, not a pickle")
    at = 0
    while True:
        purse.spend(1)
        if at >= len(data):
            raise Refused("truncated (it has no end): get it again")
        opcode = _OPCODES.get(data[at])
        if opcode is None:
            where = f" at byte {at}" if at > 0 else ""
            raise Refused(f"not a pickle, or damaged{where} (0x{data[at]:02x} is no opcode)")
        at += 1
        end = _after(data, at, opcode)
        if opcode.name not in _DATA:
            _refuse_opcode(opcode.name, data[at:end])
        if opcode.name == "PROTO" and data[at] > 5:
            raise Refused(f"it is of pickle protocol {data[at]}; 0 to 5 are read")
        at = end
        if opcode.name == "STOP":
            break
    if at < len(data):
        raise Refused(f"{len(data) - at} bytes follow the end of the pickle: damaged; get it again")


def _after(data: bytes, at: int, opcode: pickletools.OpcodeInfo) -> int:
    """Where an opcode's argument ends that begins at a byte."""
    size = opcode.arg.n if opcode.arg is not None else 0
    if size == pickletools.UP_TO_NEWLINE:
        end = data.find(b"\n", at) + 1
        if end and opcode.name in ("GLOBAL", "INST"):
            end = data.find(b"\n", end) + 1
        if not end:
            raise Refused("truncated, or damaged (a line has no end): get it again")
        return end
    if size < 0:
        width = _WIDTHS[size]
        counted = int.from_bytes(data[at : at + width], "little", signed=opcode.name in _SIGNED)
        if counted < 0:
            raise Refused("damaged (a negative length): get it again")
        size = width + counted
    if size > len(data) - at:
        raise Refused("truncated, or damaged (it ends inside a value): get it again")
    return at + size


def _refuse_opcode(name: str, argument: bytes) -> NoReturn:
    if name == "INST":
        whole = str(argument, "latin-1").replace("\n", ".", 1).rstrip("\n")
        refuse(f"an object of the class {whole[:120]!r}")
    refuse(_OTHER.get(name, f"the opcode {name}"))


_Unpickler: type[Any] = vars(pickle)["_Unpickler"]
"""The one that is written in Python, of which opcodes can be replaced."""


class _Reader(_Unpickler):  # type: ignore[misc]  # typeshed does not know it
    """Python's unpickler, of data only."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Unpickler.dispatch)

    def __init__(self, data: bytes, purse: Purse) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self._named = Named(purse)

    def load(self) -> Any:
        """What the pickle holds."""
        try:
            return super().load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError,
                BufferError, OverflowError) as error:  # fmt: skip
            raise Refused(f"damaged ({brief(error)}): get it again") from error

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; nothing is imported."""
        return self._named.find(module, name)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._named.call(self.stack[-1], arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Array | Dtype) or not isinstance(state, tuple):
            refuse("the state of an object")
        target.build(state)

    def _dict(self) -> None:
        values = self.pop_mark()
        self.append(_filled({}, values))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _filled(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        values = self.pop_mark()
        _filled(self.stack[-1], values)

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items


def _filled(target: Any, values: list[Any]) -> Any:
    """A dict with keys and values, in turn."""
    if type(target) is not dict or len(values) % 2:
        raise Refused("damaged (a dict or a value is missing): get it again")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[checked_key(key)] = value
    return target


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
            return _checked_number(value), 1, 8, 0
        if type(value) is str:
            return _checked_text(value), 1, len(value), 0
        place = id(value)
        if place in self._open:
            raise Refused("it holds a list or dict that contains itself: no data set does; not read")
        if place not in self._done:
            self._open.add(place)
            if len(self._open) > self._limits.depth + 1:
                raise Refused(f"it holds more than {self._limits.depth} containers inside one another: not read")
            found = self._found(value)
            self._open.discard(place)
            if found[1] > self._limits.values or found[2] > self._bytes:
                raise Refused("it refers to its own values so often that they become far more than the file: not read")
            if found[3] > self._limits.depth:
                raise Refused(f"it holds more than {self._limits.depth} containers inside one another: not read")
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
        if isinstance(value, bytes | bytearray):
            return bytes(value), 1, len(value), 0
        if isinstance(value, Array) and value.array is not None:
            return value.array, 1, value.array.nbytes, 0
        raise Refused("damaged (an array or name without its content): get it again")

    def _all(self, values: Iterable[Any]) -> tuple[list[Any], int, int, int]:
        kept, count, size, depth = [], 1, 8, 0
        for value in values:
            plain, more, longer, deeper = self._visit(value)
            kept.append(plain)
            count, size, depth = count + more, size + longer, max(depth, deeper)
        return kept, count, size, depth + 1


def _checked_number(value: Any) -> Any:
    if type(value) is int and not -(2**63) <= value < 2**64:
        size = value.bit_length() // 8 + 1
        raise Refused(f"it holds an integer of {size} bytes; data sets have none beyond 8")
    return value


def _checked_text(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused("it holds text that is damaged (half a character)") from error
    return value


_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_WIDTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}  # fmt: skip
"""Bytes of the count that stands before an argument."""
_SIGNED = frozenset(("LONG4", "BINSTRING"))
_DATA = frozenset((
    "MARK", "STOP", "POP", "POP_MARK", "DUP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
    "PROTO", "FRAME", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
    "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE",
    "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
))  # fmt: skip
_OTHER = {
    **dict.fromkeys(("PERSID", "BINPERSID"), "a persistent id (a reference to something outside of it)"),
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), "an object of a class"),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "an extension code"),
    **dict.fromkeys(("EMPTY_SET", "ADDITEMS", "FROZENSET"), "a set"),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), "a buffer outside of the file"),
}
