"""What a learner, an attack, a data set and a backbone must offer.

Every plugin is a frozen pydantic model: its fields are its options, settable on the command line as
`name:option=value,…`; its class variables are what it declares about itself.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from robustbench_meta.devices import send
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.options import parse_eps
from robustbench_meta.seeds import seed_from
from robustbench_meta.tasks import Batch, Splits, TaskBatch
from robustbench_meta.threat import Norm, ThreatModel

if TYPE_CHECKING:
    from robustbench_meta.models import State

Weights = dict[str, Tensor]
"""θ: the meta-trained tensors by name."""
LossName = Literal["cross_entropy", "squared"]
Method = Literal["random", "single-step", "iterative", "black-box"]
"""How an attack searches: blindly, by one gradient, by many, or by the model's answers alone."""


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no such file{'; it is a folder' if path.is_dir() else ''}")
    return Path(os.path.normpath(path))


File = Annotated[Path, AfterValidator(_existing)]
"""An option that names a file, such as one with weights. What is in it identifies results: a file that is exchanged
makes new ones. Optional: `weights: File | None = Field(None, …)`."""


def _eps_by_norm(declared: Mapping[str, float | str]) -> Mapping[str, float | str]:
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
        if value == "none" and option.default is None:
            return None
        number = float in (option.annotation, *get_args(option.annotation))
        if number and isinstance(value, str) and value.count("/") == 1:
            above, below = value.split("/")
            try:
                return float(above) / float(below)
            except (ValueError, ZeroDivisionError):
                return value
        return value


class Setting(NamedTuple):
    """What a plugin is asked to work in."""

    shape: tuple[int, ...]
    way: int
    shot: int
    query: int
    loss: LossName
    transductive: bool


class Model(Protocol):
    """A backbone as a pure function, for ONE task."""

    way: int

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """Outputs [n, outputs] of the backbone with these weights on x [n, *shape]."""
        ...

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The data set's loss, averaged over the examples: a scalar."""
        ...


class Update(NamedTuple):
    """One step of the meta-optimiser: a loss a task [tasks], and a factor on the meta learning rate."""

    loss: Tensor
    rate: float = 1.0


class Operations(Protocol):
    """What an objective is written in: operations on ALL tasks of a batch at once. The engine maps them."""

    def adapt(self, theta: State, support: Batch, **settings: Any) -> State:
        """One adapted state a task: the learner's `adapt`, `inner_steps` times, settings passed on."""
        ...

    def logits(self, state: State, x: Tensor) -> Tensor:
        """Logits [tasks, n, way] of x [tasks, n, *shape]."""
        ...

    def loss(self, state: State, batch: Batch) -> Tensor:
        """The loss of each task [tasks]."""
        ...

    def perturb(self, state: State, batch: Batch) -> Batch:
        """The batch attacked, with the learner's training attack, through `state`; data, not differentiated."""
        ...

    def surrogate(self, batch: Batch) -> State:
        """A separate model for the training attack to differentiate (see `Learner.surrogate_backbone`)."""
        ...


class Learner(Plugin):
    """A meta-learning method: how it adapts to ONE task, and its objective over ALL tasks of a meta-step.

    `adapt` and `logits` are pure functions of explicit state, written without a task axis. The
    state is any pytree of tensors; before the first inner step it is θ.
    """

    transductive: ClassVar[bool] = False
    """True if predictions of one query depend on the other queries, whatever the backbone."""
    theta_predicts: ClassVar[bool] = True
    """False if θ alone gives no logits (a prototype head): then an attack on the support set is made
    on the state adapted to the clean support set, instead of on θ."""

    meta_lr: float = Field(1e-3, gt=0, description="learning rate of the meta-update")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="meta-optimiser")

    def outputs(self, way: int) -> int | None:
        """How many outputs the backbone shall have; None for its features."""
        return way

    def init(self, weights: Weights) -> Weights:
        """θ at the start of meta-training, from freshly initialised backbone weights."""
        return weights

    def inner_steps(self, training: bool) -> int:
        """How many times `adapt` is applied to a task."""
        return 1

    @abstractmethod
    def adapt(self, model: Model, state: Any, support: Batch, **settings: Any) -> Any:
        """One inner step on ONE task: support.x [way·shot, *shape], support.y [way·shot]."""

    @abstractmethod
    def logits(self, model: Model, state: Any, x: Tensor) -> Tensor:
        """Logits [n, way] of ONE task's x [n, *shape]."""

    @abstractmethod
    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update]:
        """The losses whose gradients with respect to θ make the meta-updates, in order."""

    def training_attack(self) -> tuple[str, float | None] | None:
        """The attack (as typed: 'pgd:steps=7') and ε that `ops.perturb` uses; ε None: the data set's default."""
        return None

    def surrogate_backbone(self) -> str | None:
        """The backbone of `ops.surrogate`, as typed; None if there is no need of one."""
        return None

    def obstacle(self, setting: Setting) -> str | None:
        """Why the learner cannot work in this setting; None if it can."""
        return None


class Random:
    """An attack's randomness: one seed a task, so that a task's draws do not depend on its batch mates."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), in the shape of `like` [tasks, …]."""
        return self._draw(torch.rand, like)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape of `like` [tasks, …]."""
        return self._draw(torch.randn, like)

    def _draw(self, make: Callable[..., Tensor], like: Tensor) -> Tensor:
        drawn = [make(like.shape[1:], generator=generator, dtype=like.dtype) for generator in self._generators]
        return send(torch.stack(drawn), like.device)

    def split(self) -> list[Random]:
        """One Random a task."""
        return [Random([seed]) for seed in self.seeds]

    def seed(self) -> int:
        """One seed for code that seeds itself."""
        return seed_from("attack", *self.seeds)


class Victim(Protocol):
    """The model under attack: images → logits, differentiable in the images.

    An attack with `per_task` sees one task: x [n, *shape], y [n], logits [n, way]. Any other sees
    all tasks of a batch at once, with a task axis in front of each of them.
    """

    way: int
    event: int
    """How many axes one example has (3 for images): the last ones of x."""
    transductive: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x."""
        ...

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, not averaged: in the shape of y. What an attack wants large."""
        ...

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each example is answered wrongly, so that there is no more to reach: booleans in the shape of y."""
        ...


class Attack(Plugin):
    """Makes adversarial images inside a threat model. It proposes; the harness checks and judges.

    The option `eps` is understood for every attack: it takes the place of the run's --eps.
    """

    per_task: ClassVar[bool] = False
    """True: the attack is given one task at a time, without the task axis."""
    clean: ClassVar[bool] = False
    """True for the one that leaves its images as they are: it runs in the scenario clean/clean only."""
    method: ClassVar[Method] = "iterative"
    """How it searches. What a number of it can show depends on this: one gradient, or noise, show no robustness, and
    an attack that asks for no gradient beats one that does only where gradients mislead."""

    def how(self) -> Method:
        """`method`, or what the options make of it."""
        return self.method

    @property
    def loss_only(self) -> bool:
        """True if it asks the model for `loss` and `fooled` only, never for logits.

        Then it can be aimed at the loss of the queries through adaptation (support poisoning).
        """
        return False

    def stronger(self) -> Attack | None:
        """The same attack with clearly more steps or restarts, to see whether it has converged; None: there is none."""
        return None

    @property
    def norm(self) -> Norm:
        """The norm of its threat model."""
        return "linf"

    @property
    def sub_batches(self) -> bool:
        """True if it passes parts of a task's batch to the model, which a transductive model cannot answer."""
        return False

    def default_eps(self) -> float | str | None:
        """ε when neither the user nor the data set names one for this norm."""
        return None

    def eps_obstacle(self, eps: float) -> str | None:
        """Why the attack cannot work with this ε; None if it can."""
        if self.norm == "linf" and eps > 1:
            return "it is more than the whole pixel range: images lie in [0, 1]"
        if self.norm == "l0" and (eps < 1 or eps != int(eps)):
            return "in the l0 norm it is how many pixels may change: expected a whole number, 1 or more"
        return None

    @abstractmethod
    def perturb(self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Adversarial images in the shape of x; all randomness comes from `random`."""

    def perturb_from(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor
    ) -> Tensor:
        """The same, from `start` instead of where the attack would begin: what it found within a smaller ε.

        An attack that cannot begin elsewhere need not define it: whoever sweeps ε keeps what fooled before.
        """
        return self.perturb(model, x, y, threat, random)

    def obstacle(self, setting: Setting) -> str | None:
        """Why the attack cannot work in this setting; None if it can."""
        return None


class Backbone(Plugin):
    """A network architecture."""

    @property
    def norm_layer(self) -> str:
        """Its normalisation, for the leaderboard's column `norm`."""
        return "none"

    @property
    def transductive(self) -> bool:
        """True if the output for one example depends on the others in its batch."""
        return False

    @abstractmethod
    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """A freshly initialised module [n, *shape] → [n, outputs], or → [n, features] when `outputs` is None.

        It keeps no state between calls (no running statistics), and draws only from torch's global generator. A module
        with `reads_support = True` is called as `module(x, support)` once a task is adapted: with the images that it
        was adapted to.
        """

    def obstacle(self, setting: Setting) -> str | None:
        """Why the backbone cannot work in this setting; None if it can."""
        return None


class Dataset(Plugin):
    """A data set with classes split into train, validation and test."""

    loss: ClassVar[LossName] = "cross_entropy"
    backbone: ClassVar[str] = "conv4"
    """The backbone when the user names none."""
    eps: ClassVar[Annotated[Mapping[str, float | str], AfterValidator(_eps_by_norm)]] = {"linf": 0.1}
    """ε by norm when the user names none; also the default ε of training attacks (linf)."""
    way: ClassVar[Annotated[int, Field(ge=2)] | None] = None
    """The only way that it can give, if there is one."""

    def placed(self, root: Path | None) -> Dataset:
        """This data set with folders among its options written in one way: what results know it by."""
        return self

    @abstractmethod
    def load(self, root: Path | None) -> Splits:
        """Read (or make) the data; `root` is --data-root.

        Raises:
            DataError: missing, damaged, or unfit; the message says what was looked for and what to do.
        """
