"""What a meta-learner must offer, and what it is lent."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field
from torch import Tensor

from robustbench_meta.contracts.tasks import Batch, TaskBatch

if TYPE_CHECKING:
    from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.plugin import Plugin, Setting
from robustbench_meta.contracts.state import State, Weights


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
