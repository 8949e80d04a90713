"""What torchattacks does not say about its attacks (`TRAITS`), and what it does: options read from constructors."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from robustbench_meta.contracts import Method
from robustbench_meta.contracts.threat_model import Norm


@dataclass(frozen=True)
class Traits:
    """What the bridge must know of one attack, read from its source.

    Args:
        norm: of its threat model; an option `norm`, where there is one, overrides it.
        minimal: it looks for the smallest perturbation instead of staying within ε.
        sub_batches: the model sees other batches than the task's.
        square: it needs images as high as wide.
        channels: the only number of channels that it can do.
        positive: it is right only for logits above zero.
        method: how it searches.
    """

    norm: Norm = "linf"
    minimal: bool = False
    sub_batches: bool = False
    square: bool = False
    channels: int | None = None
    positive: bool = False
    method: Method = "iterative"


TRAITS: dict[str, Traits] = {
    "VANILA": Traits(),
    "GN": Traits(method="random"),
    "FGSM": Traits(method="single-step"),
    "BIM": Traits(),
    "RFGSM": Traits(),
    "PGD": Traits(),
    "EOTPGD": Traits(),
    "FFGSM": Traits(method="single-step"),
    "TPGD": Traits(),
    "MIFGSM": Traits(),
    "UPGD": Traits(positive=True),
    "APGD": Traits(sub_batches=True),
    "APGDT": Traits(sub_batches=True),
    "DIFGSM": Traits(square=True),
    "TIFGSM": Traits(square=True, channels=3),
    "Jitter": Traits(),
    "NIFGSM": Traits(),
    "PGDRS": Traits(sub_batches=True),
    "SINIFGSM": Traits(),
    "VMIFGSM": Traits(),
    "VNIFGSM": Traits(),
    "SPSA": Traits(sub_batches=True, method="black-box"),
    "JSMA": Traits(norm="l0", sub_batches=True),
    "EADL1": Traits(norm="l1", minimal=True, positive=True),
    "EADEN": Traits(norm="l2", minimal=True, positive=True),
    "PIFGSM": Traits(channels=3),
    "PIFGSMPP": Traits(channels=3),
    "CW": Traits(norm="l2", minimal=True, positive=True),
    "PGDL2": Traits(norm="l2"),
    "DeepFool": Traits(norm="l2", minimal=True, sub_batches=True),
    "PGDRSL2": Traits(norm="l2", sub_batches=True),
    "SparseFool": Traits(norm="l0", minimal=True, sub_batches=True),
    "OnePixel": Traits(norm="l0", sub_batches=True, method="black-box"),
    "Pixle": Traits(norm="l0", minimal=True, sub_batches=True, square=True, method="black-box"),
    "FAB": Traits(minimal=True, sub_batches=True),
    "AutoAttack": Traits(sub_batches=True, square=True),
    "Square": Traits(sub_batches=True, square=True, method="black-box"),
    "MultiAttack": Traits(sub_batches=True),
    "LGV": Traits(),
}
"""By torchattacks' own names of its classes."""

FILLED = {"model", "n_classes", "seed", "verbose", "eps", "max_epsilon", "pixels", "gamma", "attacks", "trainloader"}
"""Parameters that the run decides and no option sets: model, way, seed, silence, and the budget, which is ε."""


def _capital(value: object) -> object:
    return value.capitalize() if isinstance(value, str) else value


def _sides(value: object) -> object:
    """Read '2-10' as (2, 10)."""
    return tuple(value.split("-")) if isinstance(value, str) else value


_NOISE = Literal["guassian", "uniform"]  # spelled as torchattacks spells it
_MAPPING = Literal["random", "similarity", "similarity_random", "distance", "distance_random"]
_TYPES: dict[str, Any] = {
    "norm": Annotated[Literal["Linf", "L2"], BeforeValidator(_capital)],
    "x_dimensions": Annotated[tuple[int, int], BeforeValidator(_sides)],
    "y_dimensions": Annotated[tuple[int, int], BeforeValidator(_sides)],
    "noise_type": _NOISE,
    "pixel_mapping": _MAPPING,
    "kernel_name": Literal["gaussian", "linear", "uniform"],
    "version": Literal["standard", "plus", "rand"],
    "num_iter_set": int,
    "scale": float,
    "SPSA.lr": float | None,
    "APGD.loss": Literal["ce", "dlr"],
    "UPGD.loss": Literal["ce", "margin", "dlr"],
    "Square.loss": Literal["ce", "margin"],
}
"""Types that the defaults do not tell, by option or by attack and option."""

_DEFAULTS: dict[str, Any] = {"PGD.steps": 20, "SPSA.lr": None}
"""Where ours differ from torchattacks'."""

_PAPER = "number of steps (as in torchattacks; the paper: 100)"
_TEXTS: dict[str, str] = {
    "norm": "norm of the threat model: Linf or L2",
    "PGD.steps": "number of steps (torchattacks: 10)",
    "APGD.steps": _PAPER,
    "APGDT.steps": _PAPER,
    "FAB.steps": _PAPER,
    "SPSA.lr": "step size; unless given 2.5·ε/nb_iter (torchattacks: 0.01, whatever ε is)",
    "x_dimensions": "least and greatest width of a patch, as 2-10",
    "y_dimensions": "least and greatest height of a patch, as 2-10",
    "version": "which attacks: standard, plus or rand",
    "pixel_mapping": "how pixels are moved",
    "random_start": "start from a random point of the ball",
    "multi_targeted": "attack towards every wrong class in turn",
    "alpha_max": "greatest step towards the clean image",
    "amplification": "factor on the step size",
    "noise_type": "noise of the smoothed model: guassian (sic) or uniform",
    "noise_sd": "standard deviation of the noise, or its range if uniform",
    "noise_batch_size": "noisy copies of each image",
    "batch_max": "greatest number of noisy copies in one batch",
    "eps_for_division": "added to a gradient's norm before dividing by it",
    "theta": "change of a feature: up if positive, down if negative",
    "GN.std": "standard deviation of the noise",
    "Jitter.std": "standard deviation of the noise on the softmax",
    "Jitter.scale": "factor on the logits before the softmax",
}
"""Descriptions where the docstring has none, or one that misleads."""


def options(cls: type[Any]) -> dict[str, Any]:
    """The options of one of torchattacks' attacks, as pydantic field definitions.

    Names and defaults are the constructor's, types and descriptions also its docstring's. The step
    size `alpha` stands for a multiple of ε/steps unless given: see `step_factor`.
    """
    documented = {name: (kind, text) for name, kind, text in _ARGUMENT.findall(cls.__doc__ or "")}
    fields: dict[str, Any] = {}
    for name, default in defaults(cls).items():
        if name == "alpha":
            steps = "ε/steps" if "steps" in defaults(cls) else "ε"
            text = f"step size; unless given {step_factor(cls):.4g}·{steps}"
            fields[name] = float | None, Field(None, gt=0, description=text)
        elif name not in FILLED:
            fields[name] = _field(cls.__name__, name, default, *documented.get(name, ("", "")))
    return fields


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The constructor's parameters with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}


def step_factor(cls: type[Any]) -> float | None:
    """The k in alpha = k·ε/steps that gives torchattacks' alpha at its own ε and steps; None without alpha.

    It is 2.5, the rule of Madry et al., for PGD and most others; SPSA, whose default cannot reach the edge of any
    usual ball, is given the same.
    """
    given = defaults(cls)
    if cls.__name__ == "SPSA":
        return 2.5
    return given["alpha"] / given["eps"] * given.get("steps", 1) if "alpha" in given else None


_ARGUMENT = re.compile(r"^ +(\w+) \(([^)]*)\) ?: *(.+?) *$", re.MULTILINE)
_DEFAULT = re.compile(r"[.,]? *(\[[^]]*\])?\.? *\(Default: .*\)$")


def _field(attack: str, name: str, default: Any, documented: str, text: str) -> tuple[Any, Any]:
    own = f"{attack}.{name}"
    default = _DEFAULTS.get(own, default)
    kind = _TYPES.get(own, _TYPES.get(name, float if type(default) is int and documented == "float" else type(default)))
    text = _TEXTS.get(own, _TEXTS.get(name, _DEFAULT.sub("", text)))
    return kind, Field(default, description=text or None, **_bounds(attack, name, kind))


def _bounds(attack: str, name: str, kind: Any) -> dict[str, Any]:
    if kind is int:
        halving = name == "max_iterations" and attack.startswith("EAD")  # it divides by max_iterations // 10
        return {"ge": 10 if halving else 1}
    return {"ge": 0} if kind is float and name != "theta" else {}
