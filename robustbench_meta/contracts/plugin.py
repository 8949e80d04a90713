"""What all plugins share: options as fields, declarations as class variables."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

from robustbench_meta.contracts.threat_model import Norm
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.options import Choice, as_typed, parse_choice, parse_eps

LossName = Literal["cross_entropy", "squared"]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no such file{'; it is a folder' if path.is_dir() else ''}")
    return Path(os.path.normpath(path))


File = Annotated[Path, AfterValidator(_existing)]
"""An option that names a file, such as one with weights. What is in it identifies results: a file that is exchanged
makes new ones. Optional: `weights: File | None = Field(None, …)`."""


def eps_by_norm(declared: Mapping[str, float | str]) -> Mapping[str, float | str]:
    """Defaults of ε by norm, checked.

    Raises:
        ValueError: an unknown norm, or what is no ε.
    """
    for norm, eps in declared.items():
        if norm not in get_args(Norm):
            raise ValueError(f"eps by norm, one of {', '.join(map(repr, get_args(Norm)))}, as in {{'linf': '8/255'}}")
        try:
            parse_eps(eps)
        except BenchError as error:
            raise ValueError(f"eps by norm, as in {{'linf': '8/255'}}: {error}") from error
    return declared


class Plugin(BaseModel, ABC):
    """What all plugins share: a name, one line about it, where it comes from, and options as fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: ClassVar[str]
    """Lower case, digits and '-': what is typed on the command line."""
    source: ClassVar[str] = ""
    """The paper or project that it follows."""
    version: ClassVar[str] = ""
    """Part of what identifies results; for classes given from Python whose source does not tell all."""

    @classmethod
    def option_names(cls, options: Mapping[str, str]) -> Collection[str]:
        """The options that it has, where these are given."""
        return cls.model_fields

    @classmethod
    def summary(cls) -> str:
        """The first line of the class's docstring."""
        return (cls.__doc__ or "").strip().split("\n")[0]

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse, and say what to do instead."""
        try:
            if name.startswith("_") and name not in self.__private_attributes__:
                raise AttributeError(name)
            super().__setattr__(name, value)
        except (ValueError, AttributeError) as error:
            raise PluginError(
                f"{type(self).__name__} sets self.{name}; a plugin holds its options alone, which are fixed once it is "
                "made: a learner keeps what it learns in θ (init) and what adapt returns, an attack in local variables"
            ) from error

    @field_validator("*", mode="before")
    @classmethod
    def _typed(cls, value: object, info: ValidationInfo) -> object:
        """Read '8/255' as the number it is where one is wanted, and 'none' as None where that is the default."""
        option = cls.model_fields[str(info.field_name)]
        if value == "none" and (option.default is None or type(None) in get_args(option.annotation)):
            return None
        number = float in (option.annotation, *get_args(option.annotation))
        if number and isinstance(value, str) and value.count("/") == 1:
            above, below = value.split("/")
            try:
                return float(above) / float(below)
            except (ValueError, ZeroDivisionError):
                return value
        return value


Make = Callable[[str, str, Mapping[str, Any]], Plugin]
"""(kind, name, options) → a plugin."""
_MAKE: ContextVar[Make] = ContextVar("make")


@contextmanager
def made_by(make: Make) -> Iterator[None]:
    """Inside, options that name another plugin are made by this."""
    token = _MAKE.set(make)
    try:
        yield
    finally:
        _MAKE.reset(token)


def make_plugin(kind: str, text: str, more: Mapping[str, Any] | None = None) -> Plugin:
    """The plugin that an option names, as typed (`r2d2:scale=10;train_way=20`), with more options where it has none.

    Raises:
        ValueError: it cannot be read or made, or options of another plugin are read outside a registry.
    """
    try:
        choice = parse_choice(text, ";")
        return _MAKE.get()(kind, choice.name, {**(more or {}), **choice.options})
    except LookupError:
        raise ValueError(f"'{text}' names a {kind}, and outside a run there is none: give the {kind} itself") from None
    except BenchError as error:
        raise ValueError(str(error)) from error


def plugin_as_typed(plugin: Plugin, separator: str = ";") -> str:
    """The plugin with the options that differ from its defaults; by default as an option of another one names it."""
    fields = type(plugin).model_fields
    given = {
        option: as_typed(value)
        for option, value in plugin.model_dump(mode="json").items()
        if value != fields[option].get_default(call_default_factory=True)
    }
    return Choice(plugin.name, given).text(separator)


class Setting(NamedTuple):
    """What a plugin is asked to work in."""

    shape: tuple[int, ...]
    way: int
    shot: int
    query: int
    loss: LossName
    transductive: bool
    base_classes: int = 0
    """How many classes the training split has."""
