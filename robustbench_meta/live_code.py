"""A digest of code that lies in no module: of a class or function of a notebook or script, and of what it refers to."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import logging
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from robustbench_meta import blobs
from robustbench_meta.discovery import code_digest
from robustbench_meta.errors import PluginError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, torch.dtype, torch.device, logging.Logger)
_HERE = Path(__file__).resolve().parent
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def class_digest(cls: type) -> str:
    """Changes with the code of a class, and with what that code refers to.

    Of a class of a module: its files. Of one of a notebook or script, which changes while one works on it: the sources
    of its methods and of the functions and classes that they call, and the values of the globals that they read.

    Raises:
        PluginError: the source cannot be had, or a global is something of which nobody can tell whether it changed.
    """
    seen = _Seen(cls.__qualname__)
    seen.add(cls.__qualname__, cls)
    return hashlib.sha256("\0".join(seen.parts).encode()).hexdigest()[:16]


class _Seen:
    """What has been met so far, as text.

    Args:
        who: whose code it is, for messages.
    """

    def __init__(self, who: str) -> None:
        self.parts: list[str] = []
        self._who = who
        self._met: dict[int, object] = {}

    def add(self, name: str, value: Any) -> None:
        """Something, by the name under which it was met."""
        if id(value) in self._met:
            return
        self._met[id(value)] = value  # kept, so that no other object gets its id
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, ModuleType):
            self._module(value.__name__)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self.add(name, value.__func__)
            self.add(name, value.__self__)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.add(name, part)
        elif isinstance(value, BuiltinFunctionType):
            self.parts.append(f"{value.__module__}.{value.__qualname__}")
        else:
            self.parts.append(f"{name}={self._value(name, value)}")

    def _class(self, cls: type) -> None:
        if cls.__module__ != "__main__":
            self._module(cls.__module__)
            return
        self.parts.append(f"class {cls.__qualname__}")
        for base in cls.__mro__[1:]:
            self.add(base.__qualname__, base)
        if issubclass(cls, BaseModel):
            for name, info in cls.model_fields.items():
                factory = info.default_factory
                self.parts.append(f"{name}: {info.annotation!r} {info.metadata!r}")
                self.add(name, info.default if factory is None else factory)
        for name, value in sorted(vars(cls).items()):
            if isinstance(value, (FunctionType, staticmethod, classmethod, property, functools.cached_property)):
                for function in _functions(value):
                    self.add(f"{cls.__qualname__}.{name}", function)
            elif not name.startswith(("_", "model_")) and not (issubclass(cls, BaseModel) and name in cls.model_fields):
                self.add(f"{cls.__qualname__}.{name}", value)

    def _module(self, name: str) -> None:
        """One's own module by its file; of what is installed the name."""
        self.parts.append(f"module {name}")
        file = getattr(sys.modules.get(name), "__file__", None)
        path = Path(file).resolve() if file else None
        if path is not None and path.suffix == ".py" and not path.is_relative_to(_HERE):
            inside = any(path.is_relative_to(folder) for folder in _INSTALLED)
            self.parts.append("" if inside else code_digest(path))

    def _function(self, function: FunctionType) -> None:
        if function.__module__ != "__main__":
            self._module(function.__module__)
            return
        try:
            source = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError) as error:
            raise PluginError(
                f"the source of {function.__qualname__} cannot be had, and with it not what identifies the results of "
                f"'{self._who}'; put the class into a file, and name its folder: plugins='FOLDER'"
            ) from error
        self.parts.append(source)
        names = dict.fromkeys(_globals(function.__code__))
        closed = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        values = {name: cell.cell_contents for name, cell in closed if name != "__class__"}
        values |= {name: function.__globals__[name] for name in names if name in function.__globals__}
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for name, value in [*values.items(), *((f"{function.__qualname__}()", each) for each in defaults)]:
            self.add(name, value)

    def _value(self, name: str, value: Any) -> str:
        if isinstance(value, Mapping):
            return json.dumps([[repr(key), self._inside(name, each)] for key, each in value.items()])
        if isinstance(value, (list, tuple, set, frozenset)):
            told = [self._inside(name, each) for each in value]
            return json.dumps(told if isinstance(value, (list, tuple)) else sorted(told))
        if isinstance(value, (nn.Module, BaseModel)):
            self.add(name, type(value))
            return value.model_dump_json() if isinstance(value, BaseModel) else blobs.digest(value.state_dict())
        return self._leaf(name, value)

    def _leaf(self, name: str, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return value.name if isinstance(value, logging.Logger) else repr(value)
        if isinstance(value, Tensor):
            return blobs.digest({"": value})
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        raise PluginError(
            f"'{self._who}' reads '{name}', a {type(value).__name__}, of which nobody can tell whether it changed, so "
            "that old results might be taken for new ones; make it an option of the class, or put the class into a "
            "file, and name its folder: plugins='FOLDER'"
        )

    def _inside(self, name: str, value: Any) -> str:
        """An element of a collection: plain, or code, which is met like any other."""
        if isinstance(value, (type, FunctionType, MethodType, ModuleType, functools.partial, BuiltinFunctionType)):
            self.add(name, value)
            return getattr(value, "__qualname__", "")
        return self._value(name, value)


def _functions(value: Any) -> Iterator[FunctionType]:
    """Those behind what a class has under a name."""
    if isinstance(value, (staticmethod, classmethod)):
        found: list[Any] = [value.__func__]
    elif isinstance(value, property):
        found = [value.fget, value.fset]
    else:
        found = [value.func if isinstance(value, functools.cached_property) else value]
    yield from (inspect.unwrap(each) for each in found if isinstance(each, FunctionType))


def _globals(code: CodeType) -> Iterator[str]:
    """The names of the globals that a function, or one inside it, reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)
