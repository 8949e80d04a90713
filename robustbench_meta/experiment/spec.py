"""What a run is: plain, validated data that can travel, and the hash that identifies a cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from robustbench_meta.errors import BenchError, expected
from robustbench_meta.experiment.profiles import get_profile
from robustbench_meta.experiment.run_options import RunOptions, option_of
from robustbench_meta.options import (
    Choice,
    Part,
    Precision,
    as_typed,
    parse_choice,
    parse_eps,
    parse_eps_range,
    parse_scenarios,
)
from robustbench_meta.runtime.digest import digest_of

TRANSFER = "clean/transfer"
"""The scenario whose queries are attacked on another model."""
PROTOCOL = 1
"""Raised whenever the same spec would give other numbers: results of another protocol are not mixed in."""


class OptionError(BenchError):
    """An option of a run that cannot be.

    Args:
        field: of `RunSpec`.
        told: what is wrong with it, without its name.
        message: the same with its name, where `told` needs it.
        text: which of several values, as typed.
    """

    def __init__(self, field: str, told: str, message: str | None = None, text: str | None = None) -> None:
        super().__init__(told if message is None else message)
        self.field, self.told, self.about = field, told, (field, text)


class RunSpec(RunOptions, BaseModel):
    """What the user asked for: a grid of learners × attacks × ε × scenarios × seeds on one data set.

    Lists are as typed; None means: the profile's, the data set's or the plugin's default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, **given: Any) -> RunSpec:
        """Make one from options as typed, checking all that can be checked without loading plugins.

        Raises:
            OptionError: a value out of range, or a learner, attack, ε, scenario or profile that cannot be read.
        """
        try:
            spec = cls(**{key: value for key, value in given.items() if value is not None and value != ()})
        except ValidationError as error:
            issues = error.errors()
            message = "; ".join(map(_explain, issues))
            field, *index = issues[0]["loc"]
            text = str(issues[0]["input"]) if index else None
            raise OptionError(str(field), _explain(issues[0]), message, text) from error
        with _of("profile"):
            get_profile(spec.profile)
        for field, texts in {
            "learners": spec.learners, "attacks": spec.attacks, "dataset": (spec.dataset,),
            "backbone": (spec.backbone,) if spec.backbone else (),
        }.items():  # fmt: skip
            for text in texts:
                with _of(field, text):
                    parse_choice(text)
        values: list[str] = []
        for eps in spec.eps:
            with _of("eps", eps):
                values += [value for value in parse_eps_range(eps) if parse_eps(value)]
        for scenario in spec.scenarios:
            with _of("scenarios", scenario):
                parse_scenarios([scenario])
        if spec.surrogate is None and TRANSFER in spec.scenarios:
            raise OptionError(
                "scenarios",
                f"the scenario {TRANSFER} needs a model on which the attack is made: add --surrogate maml (a learner, "
                "trained as the others are), or --surrogate FILE.safetensors (a checkpoint)",
            )
        if spec.surrogate is not None and not {TRANSFER, "all"} & set(spec.scenarios):
            told = f"is for the scenario {TRANSFER}: add --scenario {TRANSFER}"
            raise OptionError("surrogate", told, f"--surrogate {spec.surrogate} {told}")
        return spec.model_copy(update={"eps": tuple(values)})

    def size(self, name: str) -> int:
        """`way`, `shot`, `query`, `meta_steps`, `tasks_per_step` or `episodes`: as typed, or the profile's."""
        given = getattr(self, name)
        value: int = given if given is not None else getattr(get_profile(self.profile), name)
        return value

    def choices(self, kind: str) -> list[Choice]:
        """The learners or attacks, read, without repetitions."""
        return [choice for _, choice in self.typed(kind)]

    def typed(self, kind: str) -> list[tuple[str, Choice]]:
        """The same, each with the text that it was read from."""
        texts = self.learners if kind == "learner" else self.attacks
        unique: dict[str, tuple[str, Choice]] = {}
        for text in texts:
            choice = parse_choice(text)
            unique.setdefault(str(choice), (text, choice))
        return list(unique.values())


def _explain(issue: Any) -> str:
    return f"invalid --{option_of(str(issue['loc'][0]))} {issue['input']!r}: {expected(issue['msg'])}"


@contextmanager
def _of(field: str, text: str | None = None) -> Iterator[None]:
    """What is found wrong inside is wrong with this field, and with this one of its values."""
    try:
        yield
    except BenchError as error:
        raise OptionError(field, str(error), text=text) from error


class PluginSpec(BaseModel):
    """A plugin as it runs: its name, all its options, and what its code is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = {}
    code: str
    """Version of the distribution, or a digest of the code, or both."""

    def label(self, defaults: dict[str, Any]) -> str:
        """The name with the options that differ from the defaults, as one would type it."""
        given = {key: as_typed(value) for key, value in self.options.items() if value != defaults.get(key)}
        return str(Choice(self.name, given))


class _Hashed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """16 hexadecimal digits that change with anything that may change the numbers."""
        return digest_of(self.model_dump(mode="json"))


class AttackSpec(BaseModel):
    """An attack in its threat model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plugin: PluginSpec
    norm: str
    eps: float
    sweep: tuple[float, ...] = ()
    """The smaller ε through which it came: it began where it had ended at the last of them."""


class SurrogateSpec(BaseModel):
    """The model on which transferred attacks are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learner: PluginSpec
    backbone: PluginSpec
    trained: str
    """The key of its training, or a digest of the file that it was read from."""
    recipe: str = ""
    """Of its training, what is the same for all seeds; empty for a file."""


class TrainingSpec(_Hashed):
    """All that affects meta-training; cells that agree in it share one checkpoint."""

    protocol: int = PROTOCOL
    code: str
    """Of the modules that make the numbers, and the version of torch."""
    dataset: PluginSpec
    fingerprint: str
    """Of the data."""
    backbone: PluginSpec
    learner: PluginSpec
    attack: AttackSpec | None
    """The training attack."""
    surrogate: PluginSpec | None
    way: int
    shot: int
    query: int
    meta_steps: int
    tasks_per_step: int
    validations: int
    validation_tasks: int
    seed: int
    precision: Precision = "float32"
    """Of the training, and of all that is evaluated with it."""

    def recipe(self) -> str:
        """The digest, but for the seed."""
        return self.model_copy(update={"seed": 0}).digest()


class CellSpec(_Hashed):
    """One row: a learner, an attack, ε and a scenario, on so many test episodes. Its digest is the cell's key."""

    training: TrainingSpec
    code: str
    """Of the modules that evaluate and check."""
    attack: AttackSpec
    support: Part
    query: Part
    surrogate: SurrogateSpec | None = None
    episodes: int
    checks: str
    """What identifies the probes of the reliability checks; empty without checks."""
