"""A contract as clauses, each with a method that checks it; and the clauses that all plugins share."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Plugin, Setting
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.experiment.spec import PluginSpec
from robustbench_meta.options import parse_choice
from robustbench_meta.registry.declarations import check_declarations
from robustbench_meta.registry.file_reads import files_read, unnamed
from robustbench_meta.registry.registry import Origin, Registry
from robustbench_meta.runtime.seeds import seeded
from robustbench_meta.testing.fixtures import settings

_READS = "reads no file but those that its options name"
Method = TypeVar("Method", bound=Callable[[Any], None])


DECLARES = "declares what it is in the words that the contract has"


class ContractError(AssertionError):
    """A plugin breaks clauses of its contract.

    Args:
        summary: which plugin, and how many.
        broken: each clause with what was seen and what to do.
    """

    def __init__(self, summary: str, broken: list[str]) -> None:
        super().__init__("\n- ".join([summary + ":", *broken]))
        self.broken = broken


class Broken(Exception):  # noqa: N818  # not an error: what a clause found
    """What was seen that the contract rules out, and what to do."""

    def __init__(self, seen: str, remedy: str) -> None:
        super().__init__(seen, remedy)
        self.seen, self.remedy = seen, remedy


def expect(kept: bool, seen: str, remedy: str) -> None:
    """Raise Broken unless the clause is kept."""
    if not kept:
        raise Broken(seen, remedy)


def clause(name: str, *, after: tuple[str, ...] = ()) -> Callable[[Method], Method]:
    """Mark a method as the check of a clause, which says nothing if one of those in `after` is broken."""

    def mark(method: Method) -> Method:
        method.clause, method.after = name, after  # type: ignore[attr-defined]  # a mark, as pluggy's
        return method

    return mark


class Contract:
    """A plugin under its contract: every clause is checked once, whoever asks."""

    kind: ClassVar[str]

    def __init__(
        self, plugin: Any, registry: Registry, *, backbone: str | None = None, data_root: Path | None = None
    ) -> None:
        self.plugin, self.registry, self.backbone, self.data_root = plugin, registry, backbone, data_root
        self.clauses: dict[str, Callable[[], None]] = {}
        for cls in reversed(type(self).__mro__):
            for attribute, member in vars(cls).items():
                if hasattr(member, "clause"):
                    self.clauses[member.clause] = getattr(self, attribute)
        self._found: dict[str, Broken | None] = {}
        self._read: list[Path] = []

    @property
    def title(self) -> str:
        """The plugin, for messages."""
        return f"{self.kind} '{getattr(self.plugin, 'name', type(self.plugin).__name__)}'"

    def told(self, name: str) -> Broken | None:
        """What is wrong with a clause; None if it is kept, or cannot be told while another one is broken."""
        if name not in self._found:
            check = self.clauses[name]
            after: tuple[str, ...] = check.after  # type: ignore[attr-defined]  # marked by `clause`
            with files_read() as read:
                self._found[name] = None if self._in_doubt(after) else _run(check)
            self._read += read
        return self._found[name]

    def _in_doubt(self, names: tuple[str, ...]) -> bool:
        """Whether one of these clauses is broken, or itself in doubt."""
        return any(
            self.told(name) is not None or self._in_doubt(self.clauses[name].after)  # type: ignore[attr-defined]  # as above
            for name in names
        )

    @clause("can be registered under its name")
    def registers(self) -> None:
        """By the registry itself, as a module that brings nothing else."""
        module, cls = ModuleType("conformance"), type(self.plugin)
        hook = f"register_{self.kind}s"

        def bring(register: Callable[[type[Plugin]], None]) -> None:
            register(cls)

        setattr(module, hook, hookimpl(specname=hook)(bring))
        found = Registry().add(module, Origin("local", cls.__module__, ""))
        expect(found.error is None, str(found.error), "see 'A plugin' in docs/plugins.md")

    @clause("says what it is: a summary, and options with descriptions and defaults")
    def describes_itself(self) -> None:
        """What `bench list` prints."""
        cls = type(self.plugin)
        own = cls.__doc__ if "__doc__" in vars(cls) else None
        expect(bool((own or "").strip()), "the class has no docstring", "its first line is its line in `bench list`")
        expect(isinstance(cls.source, str), f"source is {cls.source!r}", "give the paper or project, as text")
        for name, option in cls.model_fields.items():
            expect(not option.is_required(), f"option '{name}' has no default", "every option needs one")
            expect(
                bool(option.description),
                f"option '{name}' has no description",
                f'write {name}: … = Field(…, description="…")',
            )
        clash = self.kind == "attack" and "eps" in cls.model_fields
        expect(not clash, "it has an option 'eps'", "every attack is given eps in `threat`: drop the option")

    @clause(DECLARES)
    def declares(self) -> None:
        """As the registry asks when a run names it."""
        try:
            check_declarations(self.plugin)
        except PluginError as error:
            raise Broken(str(error), "see robustbench_meta/contracts/ for what may be declared") from error

    @clause("its options survive JSON and the command line", after=("can be registered under its name",))
    def options_travel(self) -> None:
        """Records, worker processes and labels hold options as plain data, and users type them."""
        cls, kept = type(self.plugin), self.plugin.model_dump(mode="json")
        again = cls(**json.loads(json.dumps(kept)))
        expect(again == self.plugin, f"{self.plugin!r} came back from JSON as {again!r}", "use plain types for options")
        typed = PluginSpec(name=cls.name, options=kept, code="").label({}).replace("=None", "=none")
        try:
            read = cls(**parse_choice(typed).options)
        except (BenchError, ValidationError) as error:
            raise Broken(f"typed as '{typed}' it is refused: {error}", "let options be read from their text") from error
        expect(read == self.plugin, f"typed as '{typed}' it is {read!r}", "let options be read from their text")

    @clause(_READS)
    def reads_what_it_names(self) -> None:
        """What a plugin reads is part of what it is; the images of a data set identify themselves."""
        for name in self.clauses:
            if name != _READS:
                self.told(name)
        found = [] if self.kind == "dataset" else unnamed(self.plugin, self._read)
        expect(
            not found, f"it read {', '.join(dict.fromkeys(map(str, found)))}, which no option names",
            "let an option of type robustbench_meta.contracts.File name it, so that its content identifies the results",
        )  # fmt: skip

    @clause("is frozen: its options cannot be changed once it is made")
    def frozen(self) -> None:
        """Plugins are shared by cells."""
        names = list(type(self.plugin).model_fields)
        twin = self.plugin.model_copy()
        try:
            for name in names:
                setattr(twin, name, getattr(twin, name))
        except PluginError:
            return
        expect(not names, f"option '{names[0] if names else ''}' could be set", "do not override model_config's frozen")


@dataclass(frozen=True)
class Check:
    """One clause of a plugin's contract, to be called."""

    contract: Contract
    name: str

    def __str__(self) -> str:
        return self.name

    def problem(self) -> str | None:
        """The clause with what was seen and what to do, if it is broken."""
        found = self.contract.told(self.name)
        return None if found is None else f"{self.name}: {found.seen}. To do: {found.remedy}"

    def __call__(self) -> None:
        """Check the clause.

        Raises:
            ContractError: it is broken.
        """
        problem = self.problem()
        if problem is not None:
            raise ContractError(f"{self.contract.title} breaks its contract", [problem])


def _run(check: Callable[[], None]) -> Broken | None:
    with seeded(0):
        try:
            check()
        except Broken as broken:
            return broken
        except Exception as error:  # a plugin may raise anything
            return as_broken(error)
    return None


def as_broken(error: Exception, where: str = "") -> Broken:
    """An exception as what was seen: its type and message, and the line of the plugin's that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not {"robustbench_meta", "torch"} & set(Path(frame.filename).parts)]
    place = f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
    text = " ".join(str(error).split()) or "no message"
    return Broken(
        f"{where}it raised {type(error).__name__}: {text}{place}",
        "let it work there, or say in `obstacle` why it cannot",
    )


def first_accepted(obstacle: Callable[[Setting], str | None], *, transductive: bool = False) -> Setting:
    """The first setting that is not refused."""
    reasons: dict[str, None] = {}
    for setting in settings(transductive=transductive):
        reason = obstacle(setting)
        if reason is None:
            return setting
        reasons[reason] = None
    raise Broken(f"it refuses every setting: {'; '.join(reasons)}", "let `obstacle` return None where it can work")


def reason_or_none(value: object, asked: str) -> None:
    """Raise Broken unless an obstacle is None or a reason in words."""
    expect(
        value is None or (isinstance(value, str) and bool(value.strip())),
        f"{asked} returned {value!r}",
        "return None, or the reason as text",
    )
