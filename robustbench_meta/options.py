"""Reads what is typed: `name:option=value,…`, ε as a number or a ratio, scenarios. Needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from robustbench_meta.errors import BenchError, unknown

Part = Literal["clean", "adv", "poisoned", "asp", "swap", "transfer", "certified"]
Precision = Literal["float32", "tf32", "bf16"]
Compile = Literal["on", "off"]
Jobs = int | Literal["auto"]
"""How many trainings are done side by side."""
SCENARIOS: dict[str, tuple[Part, Part]] = {
    "clean/clean": ("clean", "clean"),
    "clean/adv": ("clean", "adv"),
    "adv/clean": ("adv", "clean"),
    "adv/adv": ("adv", "adv"),
    "poisoned/clean": ("poisoned", "clean"),
    "poisoned/adv": ("poisoned", "adv"),
    "asp/clean": ("asp", "clean"),
    "swap/clean": ("swap", "clean"),
    "clean/transfer": ("clean", "transfer"),
    "clean/certified": ("clean", "certified"),
}
"""What is done to (support, query).

ADML's four first. `adv` support is made on θ before adaptation, `adv` queries on the adapted model; `poisoned` support
is made through adaptation, to hurt the clean queries; `transfer` queries are made on another model, the surrogate.

`asp` and `swap` support (Oldewage et al. 2021) is made with half of a task's queries and judged on the other half:
`asp` through adaptation, towards the next class; `swap` by attacking these queries on the adapted model and putting
them into the support set. `certified` queries are proved right within ε; attacks that certify run there only.
"""

THROUGH_ADAPTATION = ("poisoned", "asp")
"""Support that is attacked by the gradient through adaptation."""
BY_HALVES = ("asp", "swap")
"""Support that is made with half of the queries."""
CERTIFIED = "clean/certified"

NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
"""A plugin's."""
NAMED = "lower-case letters, digits, '-', '_', '.' or '+'"

DEFAULT_LEARNERS = ("maml", "adml")
DEFAULT_ATTACKS = ("none", "fgsm", "pgd")
DEFAULT_SCENARIOS = ("clean/adv",)


@dataclass(frozen=True)
class Choice:
    """A plugin as typed: its name and the options given."""

    name: str
    options: dict[str, str] = field(default_factory=dict)

    def text(self, separator: str = ",") -> str:
        """As it is typed: `name:option=value,…`."""
        given = separator.join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{given}" if given else self.name

    def __str__(self) -> str:
        return self.text()


def parse_choice(text: str, separator: str = ",") -> Choice:
    """Read `name:option=value,option=value`.

    A value may itself hold ':' and '=' (`aq:train_attack=pgd:steps=7;alpha=0.02`): inside it, ';'
    separates the options.

    Raises:
        BenchError: no name, or a part that is not option=value.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        shown = text.encode(errors="replace").decode()
        raise BenchError(
            f"'{shown}' is not UTF-8, as results are; rename that file or folder, or give a link to it whose name is"
        )
    name, _, rest = text.strip().partition(":")
    if not name:
        raise BenchError(f"'{text}' names nothing; expected NAME or NAME:option=value,option=value")
    if "," in name:
        raise BenchError(f"'{text}' names several at once; repeat the option instead: one for each of {name}")
    options: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(separator))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            whole = f"{name.strip()}:{key.strip() or 'option'}=VALUE"
            raise BenchError(
                f"'{part}' in '{text}' has no value; expected {whole}, several as NAME:option=value{separator}"
                "option=value; `bench list KIND NAME` explains the options"
            )
        if key.strip() in options:
            raise BenchError(f"option '{key.strip()}' is given twice in '{text}'; give it once")
        options[key.strip()] = value.strip()
    return Choice(name.strip(), options)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Epsilon:
    """ε with the text that tables show: the user's ratio as typed, or a plain decimal."""

    value: float
    text: str


def parse_eps(given: str | float) -> Epsilon:
    """Read ε: a number ≥ 0, or a ratio such as 8/255.

    Raises:
        BenchError: not a number, a ratio with a zero below, negative, or not finite.
    """
    text = str(given).strip()
    parts = [piece.strip() for piece in text.split("/")]
    if len(parts) > 2 or not all(_NUMBER.fullmatch(piece) for piece in parts):
        told = f"eps '{text}' is not a number; expected one such as 0.1, or a ratio such as 8/255"
        several = " ".join(f"--eps {each.strip()}" for each in text.split(","))
        raise BenchError(f"{told}; for several: {several}" if "," in text else told)
    numbers = [float(piece) for piece in parts]
    if len(numbers) == 2 and numbers[1] == 0:
        raise BenchError(f"eps '{text}' divides by zero; expected a number such as 0.1, or a ratio such as 8/255")
    value = numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0]
    if not math.isfinite(value) or value < 0:
        raise BenchError(f"eps '{text}' is {'negative' if value < 0 else 'not finite'}; expected 0 or more")
    return Epsilon(value, "/".join(parts) if len(parts) == 2 else plain(value))


_MOST_VALUES = 100
"""Of a range of ε."""


def parse_eps_range(text: str) -> list[str]:
    """Read `FROM:TO:COUNT` as that many values of ε, evenly spaced, ends included; anything else is one value.

    Ends that are ratios with one denominator (`0:8/255:5`) give ratios.

    Raises:
        BenchError: not a range, or one that goes nowhere.
    """
    if ":" not in text:
        return [text]
    parts = [part.strip() for part in text.split(":")]
    told = f"eps '{text}' is no range; expected FROM:TO:COUNT, such as 0:0.3:7 or 0:8/255:5"
    if len(parts) != 3 or not (parts[2].isascii() and parts[2].isdigit()):
        raise BenchError(told)
    ends, count = [parse_eps(part) for part in parts[:2]], int(parts[2])
    if not 2 <= count <= _MOST_VALUES or ends[1].value <= ends[0].value:
        raise BenchError(f"{told}, FROM below TO, and 2 to {_MOST_VALUES} values")
    exactly = [Fraction(Decimal(above)) / Fraction(Decimal(below or "1"))
               for above, _, below in (part.partition("/") for part in parts[:2])]  # fmt: skip
    values = [exactly[0] + (exactly[1] - exactly[0]) * step / (count - 1) for step in range(count)]
    below = {part.partition("/")[2].strip() for part in parts[:2] if "/" in part}
    if len(below) == 1 and all("/" in part or not end.value for part, end in zip(parts, ends, strict=False)):
        whole = below.pop()
        return [f"{plain(float(value * Fraction(Decimal(whole))))}/{whole}" if value else "0" for value in values]
    return [plain(float(value)) for value in values]


def plain(value: float) -> str:
    """A number as a plain decimal, without an exponent and without trailing zeros."""
    text = f"{value:.12f}".rstrip("0").rstrip(".")
    return text or "0"


def exact(value: float) -> str:
    """The shortest text that reads back as exactly this number: a decimal, or a ratio such as 8/255."""
    decimal, ratio = repr(float(value)).removesuffix(".0"), f"{round(value * 255)}/255" if abs(value) < 1e9 else ""
    is_ratio = ratio and round(value * 255) / 255 == value
    return ratio if is_ratio and len(ratio) < len(decimal) else decimal


def as_typed(value: object) -> str:
    """An option's value as one types it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return exact(value) if isinstance(value, float) else str(value)


def parse_scenarios(given: list[str]) -> list[str]:
    """Read scenarios (support/query, of `SCENARIOS`), or `all`.

    Raises:
        BenchError: an unknown scenario.
    """
    wanted = list(SCENARIOS) if "all" in given else given
    for name in wanted:
        if name not in SCENARIOS:
            raise BenchError(unknown("scenario (support/query)", name, [*SCENARIOS, "all"]))
    return list(dict.fromkeys(wanted))


def parse_jobs(text: str) -> Jobs:
    """Read `auto` or a number.

    Raises:
        BenchError: it is neither, or less than 1.
    """
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BenchError(f"--jobs '{text}' cannot be; expected auto, or a number of trainings side by side, 1 or more")
    return int(text)


def parse_seconds(option: str, text: str | None) -> float | None:
    """Read a length of time: `90`, `90s`, `10m` or `2h`; None stays None.

    Raises:
        BenchError: not one of these, or not above 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise BenchError(f"invalid {option} '{text}': expected seconds, or a time such as 90s, 10m or 2h")
    return seconds


def chosen_executor(executor: str, ray_address: str | None) -> str:
    """The executor as typed, with the address that was given for itself.

    Raises:
        BenchError: an address, and another executor than Ray.
    """
    if ray_address is None:
        return executor
    choice = parse_choice(executor)
    if choice.name not in {"local", "ray"} or "address" in choice.options:
        raise BenchError(f"--ray-address {ray_address} does not go with --executor {executor}: use --executor ray")
    return str(Choice("ray", {**choice.options, "address": ray_address}))
