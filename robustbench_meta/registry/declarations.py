"""Holds what a plugin declares about itself (class variables, properties, inherited options) against its contract."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from robustbench_meta.contracts import AnyLearner, Attack, Backbone, Dataset, Learner, Plugin
from robustbench_meta.errors import PluginError, expected


def check_declarations(plugin: Plugin) -> None:
    """Raise PluginError unless everything that a plugin declares is of the words and types that its contract allows."""
    base = next((base for base in (Attack, Backbone, Dataset, Learner, AnyLearner) if isinstance(plugin, base)), Plugin)
    kind = base.__name__.lower().removeprefix("any")
    _check_spelling(plugin, kind, _allowed(base))
    for name, allowed in _allowed(base).items():
        found: Any = None
        try:
            found = getattr(plugin, name)
            found = found() if inspect.ismethod(found) else found
            allowed.validate_python(found, strict=True)
        except ValidationError as error:
            wanted = "expected " + expected(error.errors()[0]["msg"]).removeprefix("expected ")
            raise PluginError(f"{kind} '{plugin.name}' declares {name} = {found!r}; {wanted}") from error
        except Exception as error:  # a property of a plugin may raise anything
            raise PluginError(
                f"{kind} '{plugin.name}' cannot say its {name}: {type(error).__name__}: {error}"
            ) from error


def _check_spelling(plugin: Plugin, kind: str, allowed: Mapping[str, object]) -> None:
    """Raise PluginError for a class variable that is nearly called as a declaration, which nobody would read."""
    for cls in type(plugin).__mro__:
        for name, annotation in inspect.get_annotations(cls).items():
            if name in allowed or name in Plugin.__annotations__ or "ClassVar" not in str(annotation):
                continue
            if near := get_close_matches(name, allowed, 1, 0.9):
                raise PluginError(
                    f"{kind} '{plugin.name}' declares '{name}', which nothing reads: did you mean '{near[0]}'?"
                )


@cache
def _allowed(base: type[Plugin]) -> Mapping[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(kind) for cls in base.__mro__ if issubclass(cls, Plugin) for name, kind in _declared(cls)}


def _declared(cls: type[Plugin]) -> Iterator[tuple[str, Any]]:
    """What a contract has its plugins declare, with the type."""
    annotations: dict[str, Any] = inspect.get_annotations(cls, eval_str=True)
    for name, kind in annotations.items():
        origin: object = get_origin(kind)
        if origin is ClassVar and name != "model_config":
            yield name, get_args(kind)[0]
    for name, option in cls.model_fields.items():
        yield name, Annotated[(option.annotation, "an option", *option.metadata)]
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else member if name == "how" else None
        if function is not None:
            yield name, inspect.get_annotations(function, eval_str=True)["return"]
