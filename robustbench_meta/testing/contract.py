"""A contract as a class whose methods each check one clause; and the clauses that all plugins share."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from robustbench_meta.contracts import Setting
from robustbench_meta.contracts.plugin import made_by
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.experiment.spec import PluginSpec
from robustbench_meta.options import parse_choice
from robustbench_meta.registry.declarations import check_declarations
from robustbench_meta.registry.file_reads import files_read, unnamed
from robustbench_meta.registry.in_memory import bringing
from robustbench_meta.registry.registry import Origin, Registry
from robustbench_meta.runtime.seeds import seeded
from robustbench_meta.testing.fixtures import settings

Method = TypeVar("Method", bound=Callable[[Any], None])


class ContractError(AssertionError):
    """A plugin breaks clauses of its contract.

    Args:
        summary: which plugin, and how many.
        broken: each clause with what was seen and what to do.
    """

    def __init__(self, summary: str, broken: list[str]) -> None:
        super().__init__("\n- ".join([summary + ":", *broken]))
        self.broken = broken


class Broken(Exception):  # noqa: N818  # not an error: the result of a clause
    """What was seen that the contract rules out, and what to do."""

    def __init__(self, seen: str, remedy: str) -> None:
        super().__init__(seen, remedy)
        self.seen, self.remedy = seen, remedy


def expect(kept: bool, seen: str, remedy: str) -> None:
    """Raise Broken unless the clause is kept."""
    if not kept:
        raise Broken(seen, remedy)


@contextmanager
def works(where: str = "", remedy: str = "let it work there, or say in `obstacle` why it cannot") -> Iterator[None]:
    """Raise Broken for any exception inside: its type, message, and the line of the plugin's that it came through."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:  # a plugin may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not {"robustbench_meta", "torch"} & set(Path(frame.filename).parts)]
        place = f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
        text = " ".join(str(error).split()) or "no message"
        raise Broken(f"{where}it raised {type(error).__name__}: {text}{place}", remedy) from error


def clause(*, after: tuple[Callable[[Any], None], ...] = ()) -> Callable[[Method], Method]:
    """Mark a method as the check of the clause that its docstring states; not checked if one in `after` is broken."""

    def mark(method: Method) -> Method:
        text = (method.__doc__ or "").partition("\n")[0]
        method.clause = text[0].lower() + text[1:]  # type: ignore[attr-defined]  # a mark, as pluggy's
        method.after = tuple(each.clause for each in after)  # type: ignore[attr-defined]  # as above
        return method

    return mark


class Contract:
    """A plugin under its contract: every clause is checked at most once."""

    kind: ClassVar[str]

    def __init__(
        self, plugin: Any, registry: Registry, *, backbone: str | None = None, data_root: Path | None = None
    ) -> None:
        self.plugin, self.registry, self.backbone, self.data_root = plugin, registry, backbone, data_root
        members = [(name, member) for cls in reversed(type(self).__mro__) for name, member in vars(cls).items()]
        self.clauses: dict[str, Any] = {
            member.clause: getattr(self, name) for name, member in members if hasattr(member, "clause")
        }
        self._results: dict[str, Broken | None] = {}
        self._read: list[Path] = []

    @property
    def title(self) -> str:
        """The plugin, for messages."""
        return f"{self.kind} '{getattr(self.plugin, 'name', type(self.plugin).__name__)}'"

    def result(self, name: str) -> Broken | None:
        """What is wrong with a clause; None if it is kept, or makes no sense while another one is broken."""
        if name not in self._results:
            self._results[name] = None
            with files_read() as read:
                if not self._in_doubt(self.clauses[name].after):
                    try:
                        with seeded(0), works():
                            self.clauses[name]()
                    except Broken as broken:
                        self._results[name] = broken
            self._read += read
        return self._results[name]

    def _in_doubt(self, names: tuple[str, ...]) -> bool:
        """Whether one of these clauses is broken, or itself in doubt."""
        return any(self.result(name) is not None or self._in_doubt(self.clauses[name].after) for name in names)

    @clause()
    def registers(self) -> None:
        """Can be registered under its name"""
        cls = type(self.plugin)
        module = Registry().add(bringing(self.kind, cls), Origin("local", cls.__module__, ""))
        expect(module.error is None, str(module.error), "see 'A plugin' in docs/plugins.md")

    @clause()
    def describes_itself(self) -> None:
        """Says what it is: a summary, and options with descriptions and defaults"""
        cls = type(self.plugin)
        own = cls.__doc__ if "__doc__" in vars(cls) else None
        expect(bool((own or "").strip()), "the class has no docstring", "its first line is its line in `bench list`")
        expect(isinstance(cls.source, str), f"source is {cls.source!r}", "give the paper or project, as text")
        for name, option in cls.model_fields.items():
            expect(not option.is_required(), f"option '{name}' has no default", "every option needs one")
            remedy = f'write {name}: … = Field(…, description="…")'
            expect(bool(option.description), f"option '{name}' has no description", remedy)
        clash = self.kind == "attack" and "eps" in cls.model_fields
        expect(not clash, "it has an option 'eps'", "every attack is given eps in `threat`: drop the option")

    @clause()
    def declares(self) -> None:
        """Declares what it is in the words that the contract has"""
        try:
            check_declarations(self.plugin)
        except PluginError as error:
            raise Broken(str(error), "see robustbench_meta/contracts/ for what may be declared") from error

    @clause(after=(registers,))
    def options_travel(self) -> None:
        """Its options survive JSON and the command line"""
        cls, options = type(self.plugin), self.plugin.model_dump(mode="json")
        with made_by(self.registry.make):
            again = cls(**json.loads(json.dumps(options)))
        expect(again == self.plugin, f"{self.plugin!r} came back from JSON as {again!r}", "use plain types for options")
        typed = PluginSpec(name=cls.name, options=options, code="").label({})
        try:
            with made_by(self.registry.make):
                read = cls(**parse_choice(typed).options)
        except (BenchError, ValidationError) as error:
            raise Broken(f"typed as '{typed}' it is refused: {error}", "let options be read from their text") from error
        expect(read == self.plugin, f"typed as '{typed}' it is {read!r}", "let options be read from their text")

    @clause()
    def reads_what_it_names(self) -> None:
        """Reads no file but those that its options name"""
        for name in self.clauses:
            self.result(name)
        # the images of a data set identify themselves
        paths = [] if self.kind == "dataset" else unnamed(self.plugin, self._read)
        expect(
            not paths, f"it read {', '.join(dict.fromkeys(map(str, paths)))}, which no option names",
            "let an option of type robustbench_meta.contracts.File name it, so that its content identifies the results",
        )  # fmt: skip

    @clause()
    def frozen(self) -> None:
        """Is frozen: its options cannot be changed once it is made"""
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
        broken = self.contract.result(self.name)
        return None if broken is None else f"{self.name}: {broken.seen}. To do: {broken.remedy}"

    def __call__(self) -> None:
        """Check the clause.

        Raises:
            ContractError: it is broken.
        """
        problem = self.problem()
        if problem is not None:
            raise ContractError(f"{self.contract.title} breaks its contract", [problem])


def first_accepted(obstacle: Callable[[Setting], str | None], *, transductive: bool = False) -> Setting:
    """The first setting that is not refused."""
    reasons: dict[str, None] = {}
    for setting in settings(transductive=transductive):
        reason = obstacle(setting)
        if reason is None:
            return setting
        reasons[reason] = None
    raise Broken(f"it refuses every setting: {'; '.join(reasons)}", "let `obstacle` return None where it can work")


def expect_reasons(obstacle: Callable[[Any], object], cases: Iterator[Any] | tuple[float, ...]) -> None:
    """Raise Broken unless an obstacle is None or a reason in words, in all cases."""
    for case in cases:
        value = obstacle(case)
        fits = value is None or (isinstance(value, str) and bool(value.strip()))
        name = getattr(obstacle, "__name__", "obstacle")
        expect(fits, f"{name}({case}) returned {value!r}", "return None, or the reason as text")
