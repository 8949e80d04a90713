"""What hangs on modules beside their weights: attributes, hooks and methods, as they were at some moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import nn

_GLOBAL_HOOKS = {
    name: value for name, value in vars(torch_module).items() if name.startswith("_global_") and isinstance(value, dict)
}
"""Hooks that torch calls for every module."""
_NAMESPACES: dict[str, Any] = {"torch": torch, "torch.nn.functional": nn.functional}
"""Whose functions every model calls."""


class Modules:
    """The attributes of modules, among them hooks, modes and methods; those of their classes, global hooks, and torch.

    Args:
        modules: are looked at now.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._attributes = [_copy(vars(module)) for module in self._modules]
        classes: set[type] = {torch.Tensor}
        classes |= {each for module in self._modules for each in type(module).__mro__ if issubclass(each, nn.Module)}
        self._methods = {each: _methods(each) for each in classes}
        self._hooks = _copy(_GLOBAL_HOOKS)
        self._functions = {name: dict(vars(space)) for name, space in _NAMESPACES.items()}

    def restore(self) -> set[str]:
        """Give everything back as it was; the names of what was not."""
        found = {f"{type(module).__name__} #{place}.{name}" for place, (module, kept) in enumerate(
            zip(self._modules, self._attributes, strict=True)
        ) for name in _restore(vars(module), kept)}  # fmt: skip
        found |= {f"torch's {name}" for name in _restore(_GLOBAL_HOOKS, self._hooks)}
        for each, kept in self._methods.items():
            now = _methods(each)
            for name in [name for name in {**kept, **now} if now.get(name) is not kept.get(name)]:
                found.add(f"the class {each.__name__}.{name}")
                if name in kept:
                    setattr(each, name, kept[name])
                else:
                    delattr(each, name)
        for space, kept in self._functions.items():
            now = vars(_NAMESPACES[space])  # what is new there is torch's own: it imports parts of itself when asked
            for name in [name for name, value in kept.items() if now.get(name) is not value and callable(value)]:
                found.add(f"{space}.{name}")
                setattr(_NAMESPACES[space], name, kept[name])
        return found


def _methods(of: type) -> dict[str, Any]:
    return {name: value for name, value in vars(of).items() if callable(value)}


def _copy(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each value, and what it holds if it is a container."""
    return {name: (value, value.copy() if isinstance(value, (dict, list, set)) else None)
            for name, value in attributes.items()}  # fmt: skip


def _restore(attributes: dict[str, Any], kept: dict[str, tuple[Any, Any]]) -> Iterator[str]:
    """Give attributes back as they were; the names of those that were not."""
    for name in [name for name in attributes if name not in kept]:
        del attributes[name]
        yield name
    for name, (value, held) in kept.items():
        if name not in attributes or attributes[name] is not value:
            attributes[name] = value
            yield name
        if held is not None and not _same(value, held):
            value.clear()
            value.extend(held) if isinstance(value, list) else value.update(held)
            yield name


def _same(now: Any, then: Any) -> bool:
    """Whether a container holds the very same things in the same order."""
    if isinstance(now, dict):
        return len(now) == len(then) and all(
            a is b and x is y for (a, x), (b, y) in zip(now.items(), then.items(), strict=True)
        )
    if isinstance(now, set):
        return bool(now == then)
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
