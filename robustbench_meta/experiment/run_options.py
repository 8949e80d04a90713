"""The options of a run, each written once: `bench run`, suites and the Python API get theirs from here.

It imports neither torch nor pydantic, for `bench run --help` is to be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Le, Lt

from robustbench_meta.experiment.profiles import PROFILES
from robustbench_meta.options import (
    DEFAULT_ATTACKS,
    DEFAULT_LEARNERS,
    DEFAULT_SCENARIOS,
    SCENARIOS,
    Compile,
    Precision,
)

COMPARED, TASKS, WORK = "What to compare (repeat an option to compare several)", "The tasks", "How much work"
HOW, WHERE = "How it is done (the numbers are the same)", "Where"
PANELS = (COMPARED, TASKS, WORK, HOW, WHERE)
"""Headings in the help, in order."""
PLUGIN = "NAME[:…]"


@dataclass(frozen=True)
class RunOption:
    """What the command line shows of an option."""

    help: str
    panel: str
    metavar: str = "N"
    flags: tuple[str, ...] = ()
    """More than the name, such as `-l`."""
    default: str | None = None
    """What is used where nothing is given, if the field's default is None or empty."""
    kind: str | None = None
    """The kind of plugin that it names."""
    values: tuple[str, ...] = ()
    """All that can be typed."""


class RunOptions:
    """The fields of `RunSpec`: a type with bounds, a default, and help."""

    learners: Annotated[
        tuple[str, ...], RunOption("Meta-learner.", COMPARED, PLUGIN, ("-l",), kind="learner")
    ] = DEFAULT_LEARNERS  # fmt: skip
    attacks: Annotated[
        tuple[str, ...],
        RunOption("Attack; its option eps overrides --eps.", COMPARED, PLUGIN, ("-a",), kind="attack"),
    ] = DEFAULT_ATTACKS
    eps: Annotated[
        tuple[str, ...],
        RunOption("Bound of the perturbation; pixels lie in 0…1. FROM:TO:COUNT sweeps.", COMPARED,
                  "0.1|8/255|0:0.3:7", default="the data set's"),
    ] = ()  # fmt: skip
    scenarios: Annotated[
        tuple[str, ...],
        RunOption(f"What is attacked: {', '.join(SCENARIOS)} or all.", COMPARED, "SUPPORT/QUERY",
                  values=(*SCENARIOS, "all")),
    ] = DEFAULT_SCENARIOS  # fmt: skip
    surrogate: Annotated[
        str | None,
        RunOption("Of clean/transfer: the learner, or the checkpoint, on which attacks are made.", COMPARED,
                  "NAME[:…]|FILE", default="none", kind="learner"),
    ] = None  # fmt: skip
    seeds: Annotated[
        tuple[Annotated[int, Ge(0), Lt(2**63)], ...], RunOption("Seed of meta-training and attacks.", COMPARED)
    ] = (0,)
    dataset: Annotated[str, RunOption("Data set.", TASKS, PLUGIN, ("-d",), kind="dataset")] = "glyphs"
    backbone: Annotated[
        str | None, RunOption("Network.", TASKS, PLUGIN, ("-b",), "the data set's", "backbone")
    ] = None  # fmt: skip
    way: Annotated[int | None, Ge(2), Le(10_000), RunOption("Classes in a task.", TASKS)] = None
    shot: Annotated[
        int | None, Ge(1), Le(10_000), RunOption("Support images a class, to adapt on.", TASKS)
    ] = None  # fmt: skip
    query: Annotated[
        int | None, Ge(1), Le(10_000), RunOption("Query images a class, to be judged on.", TASKS)
    ] = None  # fmt: skip
    profile: Annotated[
        str, RunOption("What is not given is the profile's.", WORK, "|".join(PROFILES), values=tuple(PROFILES))
    ] = "quick"
    meta_steps: Annotated[
        int | None, Ge(0), Le(1_000_000_000), RunOption("Meta-updates in meta-training.", WORK)
    ] = None  # fmt: skip
    tasks_per_step: Annotated[int | None, Ge(1), Le(10_000), RunOption("Tasks in a meta-update.", WORK)] = None
    episodes: Annotated[
        int | None, Ge(2), Le(1_000_000), RunOption("Test tasks that each number rests on.", WORK)
    ] = None  # fmt: skip
    checks: Annotated[bool, RunOption("Reliability checks, which give the flags.", WORK, default="checks")] = True
    device: Annotated[str, RunOption("auto: CUDA if it is there.", WHERE, "auto|cpu|cuda[:I]")] = "auto"
    precision: Annotated[
        Precision,
        RunOption("What layers are computed in; tf32: CUDA only.", WHERE, "float32|tf32|bf16",
                  values=("float32", "tf32", "bf16")),
    ] = "float32"  # fmt: skip
    compile: Annotated[
        Compile,
        RunOption("Whether meta-training goes through torch.compile.", WHERE, "on|off", values=("on", "off")),
    ] = "off"
    """Decides rounding only, and so is in no hash."""
    chunk: Annotated[
        int | None, Ge(1), Le(10_000),
        RunOption("Tasks computed at a time: fewer need less memory.", WHERE, default="by device and network"),
    ] = None  # fmt: skip
    """Decides rounding, and what dropout draws; in no hash."""


_REPEATED = {"learners", "attacks", "scenarios", "seeds"}
"""Fields whose option, in the singular, may be repeated."""


def option_of(field: str) -> str:
    """The option of the command line, without its dashes, that sets a field of `RunSpec`."""
    return (field.removesuffix("s") if field in _REPEATED else field).replace("_", "-")


ARGUMENTS = {option_of(field).replace("-", "_"): field for field in RunOptions.__annotations__}
"""The fields of `RunSpec` by the names of the arguments that set them: `learner`, `meta_steps`."""


def run_options() -> dict[str, tuple[Any, Any, RunOption]]:
    """Of each argument: its type, its default, and what the command line shows of it."""
    types, annotated = get_type_hints(RunOptions), get_type_hints(RunOptions, include_extras=True)
    return {
        name: (types[field], getattr(RunOptions, field), annotated[field].__metadata__[-1])
        for name, field in ARGUMENTS.items()
    }


def fields_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `RunSpec` among arguments by their names, where something was given."""
    given = {field: options[name] for name, field in ARGUMENTS.items() if options.get(name) not in (None, [])}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
