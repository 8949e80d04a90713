"""The bridge to torchattacks 3.5.1: each of its attacks by its lower-case name, with its own options, mended."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field, create_model, field_validator
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Setting
from robustbench_meta.contracts.threat_model import Norm
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.hookspecs import Register

from .attack import TorchAttack
from .options import TRAITS, options
from .victim_module import PIXEL_RANGE, VictimModule, drawn_to_grey, widened


class _CW(TorchAttack):
    """Optimises in a tanh box wider than the pixel range, so that black and white pixels can move."""

    _wider: ClassVar[bool] = True

    def _run(self, module: VictimModule, images: Tensor, y: Tensor, eps: float, way: int, seed: int) -> Tensor:
        fed = drawn_to_grey(images)
        found = super()._run(module, fed, y, eps, way, seed)
        return torch.where(found == fed, images, widened(found))

    def arguments(self, images: Tensor, eps: float, way: int, seed: int) -> dict[str, Any]:
        given = super().arguments(images, eps, way, seed)
        return given | {"c": given["c"] * PIXEL_RANGE**2}  # squared distances shrink by as much


class _DeepFool(TorchAttack):
    """Overshoots the whole perturbation, as the paper does, where torchattacks stops on the boundary.

    torchattacks overshoots each step; where pixels are clipped the steps shrink, and the last one leaves the
    prediction to rounding.
    """

    overshoot: float = 0.02

    def _run(self, module: VictimModule, images: Tensor, y: Tensor, eps: float, way: int, seed: int) -> Tensor:
        found = super()._run(module, images, y, eps, way, seed)
        with torch.no_grad():
            withstands = (module(found).argmax(1) == y).view(-1, 1, 1, 1)
        return torch.where(withstands, (images + (1 + self.overshoot) * (found - images)).clamp(0, 1), found)


class _OnePixel(TorchAttack):
    """Changes ε pixels."""

    def default_eps(self) -> float | str | None:
        """One pixel, as its name says."""
        return 1

    def arguments(self, images: Tensor, eps: float, way: int, seed: int) -> dict[str, Any]:
        return super().arguments(images, eps, way, seed) | {"pixels": int(eps)}


class _JSMA(TorchAttack):
    """Changes up to ε features, towards the next class modulo the way (torchattacks: modulo 10)."""

    def eps_obstacle(self, eps: float) -> str | None:
        """It changes features in pairs."""
        return super().eps_obstacle(eps) or ("it changes features in pairs: expected 2 or more" if eps < 2 else None)

    def obstacle(self, setting: Setting) -> str | None:
        """It compares all pairs of features."""
        features = int(torch.Size(setting.shape).numel())
        if features > 4096:
            return f"jsma compares all pairs of features: {features} of them take too much memory; 4096 is the most"
        return super().obstacle(setting)

    def build(self, module: VictimModule, images: Tensor, eps: float, way: int, seed: int) -> Any:
        attack = super().build(module, images, eps, way, seed)
        attack.set_mode_targeted_by_function(lambda _, labels: (labels + 1) % way, quiet=True)
        return attack

    def arguments(self, images: Tensor, eps: float, way: int, seed: int) -> dict[str, Any]:
        pairs = int(eps) // 2
        gamma = (2 * pairs - 0.5) / images[0].numel()  # it takes the ceiling of gamma·features/2 as the pairs
        return super().arguments(images, eps, way, seed) | {"gamma": gamma}


class _Square(TorchAttack):
    """In L2 it starts from five by five tiles, for which torchattacks has no room on some sizes."""

    def obstacle(self, setting: Setting) -> str | None:
        """Its L2 start must fit the image."""
        reason = super().obstacle(setting)
        if reason is None and self.norm == "l2":
            side = setting.shape[-1]
            tile = side // 5
            if tile == 0 or (side - 5 * tile) // 2 + side // tile * tile > side:
                return f"{self.name} with norm=L2 fails in torchattacks on images of {side}×{side}; 28, 32 and 84 work"
        return reason


class _AutoAttack(_Square):
    """Its parts take the steps of the paper, not torchattacks' 10."""

    steps: int = Field(
        100, ge=1, description="number of steps of APGD, APGDT and FAB (the paper: 100; torchattacks: 10)"
    )

    def how(self) -> Method:
        """It always searches for long, but for `version=rand` of one step: the others end with Square Attack."""
        return super().how() if getattr(self, "version", "standard") == "rand" else self.method

    def least_way(self) -> int:
        """The targeted DLR loss needs 4 classes, DLR 3."""
        return 3 if getattr(self, "version", "standard") == "rand" else 4

    def build(self, module: VictimModule, images: Tensor, eps: float, way: int, seed: int) -> Any:
        attack = super().build(module, images, eps, way, seed)
        for part in attack._autoattack.attacks:
            if hasattr(part, "steps"):
                part.steps = self.steps
        return attack


class _MultiAttack(TorchAttack):
    """Tries several attacks in turn on what still withstands."""

    attacks: str = Field("pgd+pgd", description="two or more attacks with their defaults, joined by '+'")

    @field_validator("attacks")
    @classmethod
    def _known(cls, value: str) -> str:
        parts = value.split("+")
        for part in parts:
            if our_name(part.upper()) not in BRIDGED:
                raise ValueError(unknown("attack of torchattacks", part, BRIDGED))
            if not _combines(_part(part)):
                raise ValueError(
                    f"multiattack cannot take {part}: only attacks that stay within ε and need no mended model"
                )
        if len(parts) < 2 or len({_part(part)().norm for part in parts}) > 1:
            raise ValueError(f"multiattack needs two or more attacks of one norm, was given '{value}'")
        return value

    @property
    def parts(self) -> list[TorchAttack]:
        """The attacks, with their default options."""
        return [_part(part)() for part in self.attacks.split("+")]

    @property
    def norm(self) -> Norm:
        """The norm of its attacks."""
        return self.parts[0].norm

    def how(self) -> Method:
        """As its attacks do, if all that do not only draw search alike."""
        searches = {attack.how() for attack in self.parts} - {"random"}
        if not searches:
            return "random"
        return searches.pop() if len(searches) == 1 else "iterative"

    def obstacle(self, setting: Setting) -> str | None:
        """Its own, or the first of its attacks'."""
        found = (attack.obstacle(setting) for attack in self.parts)
        return super().obstacle(setting) or next((reason for reason in found if reason), None)

    def eps_obstacle(self, eps: float) -> str | None:
        """The first of its attacks'."""
        found = (attack.eps_obstacle(eps) for attack in self.parts)
        return next((reason for reason in found if reason), None)

    def build(self, module: VictimModule, images: Tensor, eps: float, way: int, seed: int) -> Any:
        return self.wraps([attack.build(module, images, eps, way, seed + i) for i, attack in enumerate(self.parts)])


class _LGV(TorchAttack):
    """Always refused."""

    def obstacle(self, setting: Setting) -> str | None:
        """It cannot work on a learner that was adapted to a task."""
        return (
            "lgv trains copies of the model further on its training set and attacks those; a learner adapted to a "
            "task of a few images has no such set"
        )

    def build(self, module: VictimModule, images: Tensor, eps: float, way: int, seed: int) -> Any:
        raise BenchError("lgv needs a training set, which an adapted learner does not have")


def _part(name: str) -> type[TorchAttack]:
    """Torchattacks' attack of that name, even where we have our own."""
    return BRIDGED[our_name(name.upper())]


def _combines(cls: type[TorchAttack]) -> bool:
    return not (cls.traits.minimal or cls.traits.positive or cls.clean or cls.wraps.__name__ in {"MultiAttack", "LGV"})


def bridge(wraps: type[Any], version: str, base: type[TorchAttack] = TorchAttack) -> type[TorchAttack]:
    """The attack class for one of torchattacks' classes."""
    fields = options(wraps) if wraps.__name__ != "LGV" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", 'Field name "norm"')  # meant: see the property below
        warnings.filterwarnings("ignore", 'Field name "version"')  # an option of AutoAttack's
        cls = create_model(wraps.__name__, __base__=base, __module__=__name__, **fields)
    if "norm" in fields:
        cls.norm = property(lambda self: self.__dict__["norm"].lower())  # type: ignore[method-assign, assignment]  # the option, in our spelling
    text = inspect.getdoc(wraps) or ""
    paper = re.search(r"https?://arxiv\.org/\S+?(?=\])", text)
    cls.__doc__ = text.split("\n")[0].strip()
    cls.name = our_name(wraps.__name__)
    cls.source = f"torchattacks {version}" + (f", {paper.group()}" if paper else "")
    cls.clean = wraps.__name__ == "VANILA"
    cls.wraps, cls.traits = wraps, TRAITS[wraps.__name__]
    cls.method = cls.traits.method
    return cls


def our_name(theirs: str) -> str:
    """The name under which one of torchattacks' classes is registered: another where we have an attack of our own."""
    return f"torchattacks-{theirs.lower()}" if theirs.upper() in OURS else theirs.lower()


OURS = ("FGSM", "PGD", "PGDL2", "APGD", "APGDT", "FAB", "SQUARE")
_BASES: dict[str, type[TorchAttack]] = {"CW": _CW, "DeepFool": _DeepFool, "OnePixel": _OnePixel, "JSMA": _JSMA}
_BASES |= {"Square": _Square, "AutoAttack": _AutoAttack, "MultiAttack": _MultiAttack, "LGV": _LGV}


class _Bridged(Mapping[str, type[TorchAttack]]):
    """Makes a class when it is first asked for, and only then imports torchattacks, which takes half a second."""

    def __init__(self) -> None:
        self._theirs = {our_name(name): name for name in TRAITS}
        self._made: dict[str, type[TorchAttack]] = {}

    def __getitem__(self, name: str) -> type[TorchAttack]:
        if name not in self._made:
            theirs = self._theirs[name]
            import torchattacks  # noqa: PLC0415

            wraps = getattr(torchattacks, theirs)
            self._made[name] = bridge(wraps, torchattacks.__version__, _BASES.get(theirs, TorchAttack))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._theirs)

    def __len__(self) -> int:
        return len(self._theirs)


BRIDGED: Mapping[str, type[TorchAttack]] = _Bridged()
"""Every attack of torchattacks by the name it is registered under."""


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring every attack of torchattacks."""
    for name in BRIDGED:
        register.later(name, partial(BRIDGED.__getitem__, name))
