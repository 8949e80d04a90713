"""A digest of code that lies in no module: of a class or function of a notebook or script, and of what it refers to."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import logging
import sys
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from robustbench_meta import blobs
from robustbench_meta.discovery import own_code
from robustbench_meta.errors import PluginError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, torch.dtype, torch.device, logging.Logger)
_CODE = (type, FunctionType, MethodType, ModuleType, functools.partial, BuiltinFunctionType)
_CACHED = type(functools.cache(len))
_HOLDERS = (FunctionType, staticmethod, classmethod, property, functools.cached_property, _CACHED)
"""What classes have their functions in."""
_HERE = Path(__file__).resolve().parent


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
        if not isinstance(value, _CODE):
            self.parts.append(f"{name}={self._value(name, value)}")  # small numbers are one object under many names
            return
        self.parts.append(f"{name} is {getattr(value, '__qualname__', '')}")
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

    def _class(self, cls: type) -> None:
        self.parts.append(f"class {cls.__module__}.{cls.__qualname__}")
        if cls.__module__ != "__main__":
            self._module(cls.__module__)
            return
        for base in cls.__mro__[1:]:
            self.add(base.__qualname__, base)
        if issubclass(cls, BaseModel):
            for name, info in cls.model_fields.items():
                factory = info.default_factory
                self.parts.append(f"{name}: {info.annotation!r} {info.metadata!r}")
                self.add(name, info.default if factory is None else factory)
            for name, private in cls.__private_attributes__.items():
                self.add(name, private.default if private.default_factory is None else private.default_factory)
        for name, value in sorted(vars(cls).items()):
            if isinstance(value, _HOLDERS):
                for function in _functions(value):
                    self.add(f"{cls.__qualname__}.{name}", function)
            elif not (_is_pythons(name) or (issubclass(cls, BaseModel) and name in cls.model_fields)):
                self.add(f"{cls.__qualname__}.{name}", value)

    def _module(self, name: str) -> None:
        """One's own module by its file and those of its own that it imports; of what is installed the name."""
        self.parts.append(f"module {name}")
        file = getattr(sys.modules.get(name), "__file__", None)
        path = Path(file).resolve() if file else None
        if path is not None and path.suffix == ".py" and not path.is_relative_to(_HERE):
            self.parts += [f"{each} {text.decode(errors='replace')}" for each, text in own_code(name).items()]

    def _function(self, function: FunctionType) -> None:
        self.parts.append(f"function {function.__module__}.{function.__qualname__}")
        if function.__module__ != "__main__":
            self._module(function.__module__)
            return
        try:
            source = textwrap.dedent(inspect.getsource(function.__code__))  # its own, not of what it wraps
        except (OSError, TypeError) as error:
            raise PluginError(
                f"the source of {function.__qualname__} cannot be had, and with it not what identifies the results of "
                f"'{self._who}'; put the class into a file, and name its folder: plugins='FOLDER'"
            ) from error
        self.parts += [source, _compiled(function.__code__)]
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
        if isinstance(value, BaseModel):
            self.add(name, type(value))
            return value.model_dump_json()
        if isinstance(value, nn.Module):
            return self._network(name, value)
        return self._leaf(name, value)

    def _network(self, name: str, network: nn.Module) -> str:
        """Its weights, and of each of its modules the class, the mode and the attributes."""
        told = []
        for place, module in network.named_modules():
            self.add(f"{name}.{place}", type(module))
            if module._forward_hooks or module._forward_pre_hooks:
                self._refuse(name, "network with hooks")
            attributes = {key: value for key, value in vars(module).items() if not key.startswith("_")}
            told.append([place, self._value(f"{name}.{place}", attributes)])
        return json.dumps([blobs.digest(network.state_dict()), told])

    def _leaf(self, name: str, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return value.name if isinstance(value, logging.Logger) else repr(value)
        if isinstance(value, Tensor):
            return blobs.digest({"": value})
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        self._refuse(name, type(value).__name__)

    def _refuse(self, name: str, what: str) -> NoReturn:
        raise PluginError(
            f"'{self._who}' reads '{name}', a {what}, of which nobody can tell whether it changed, so "
            "that old results might be taken for new ones; make it an option of the class, or put the class into a "
            "file, and name its folder: plugins='FOLDER'"
        )

    def _inside(self, name: str, value: Any) -> str:
        """An element of a collection: plain, or code, which is met like any other."""
        if isinstance(value, _CODE):
            self.add(name, value)
            return getattr(value, "__qualname__", "")
        return self._value(name, value)


def _functions(value: Any) -> Iterator[FunctionType]:
    """Those behind what a class has under a name, with what they wrap."""
    if isinstance(value, (staticmethod, classmethod)):
        found: list[Any] = [value.__func__]
    elif isinstance(value, property):
        found = [value.fget, value.fset, value.fdel]
    else:
        found = [value.func if isinstance(value, functools.cached_property) else value]
    while found:
        each = found.pop(0)
        if isinstance(each, FunctionType):
            yield each
        wrapped = getattr(each, "__wrapped__", None)
        found += [wrapped] if wrapped is not None else []


def _is_pythons(name: str) -> bool:
    """Whether a class has an attribute of that name from Python or pydantic."""
    return (name.startswith("__") and name.endswith("__")) or name.startswith("model_") or name == "_abc_impl"


def _compiled(code: CodeType) -> str:
    """What a function does, whatever source it is taken to have."""
    constants = [
        _compiled(each) if isinstance(each, CodeType)
        else json.dumps(sorted(map(repr, each))) if isinstance(each, frozenset) else repr(each)
        for each in code.co_consts
    ]  # fmt: skip
    return json.dumps([code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars])


def _globals(code: CodeType) -> Iterator[str]:
    """The names of the globals that a function, or one inside it, reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)
