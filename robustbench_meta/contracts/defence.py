"""A learner around another one: it adapts and predicts as that one does, and trains it otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import Field, field_serializer, model_validator

from robustbench_meta.contracts.learner import AnyLearner, Operations, Toward, Update
from robustbench_meta.contracts.plugin import Plugin, make_plugin, plugin_as_typed
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.errors import unknown


def _as_the_base(method: str) -> Any:
    def delegate(self: Any, *args: Any, **settings: Any) -> Any:
        return getattr(self.base, method)(*args, **settings)

    delegate.__name__, delegate.__doc__ = method, f"As `{method}` of the base."
    return delegate


class Defence(AnyLearner):
    """A defence of any learner, its option `base`: override what the defence changes, such as `logits`.

    Options that the defence does not have are the base's: `aq:alpha=0.1` is `aq:base=maml:alpha=0.1`.
    """

    base: AnyLearner = Field(
        cast("Any", "maml"), description="the learner defended, with options as 'r2d2:train_shot=5;augment=flip'"
    )

    def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
        """As the base, unless `query_loss` is another one: then the loss of states adapted to the support sets."""
        if type(self).query_loss is not Defence.query_loss:
            return super().objective(ops, theta, tasks)
        return self.base.objective(ops, theta, tasks)

    if not TYPE_CHECKING:  # mypy takes the signatures from AnyLearner
        transductive = property(lambda self: self.base.transductive)
        theta_predicts = property(lambda self: self.base.theta_predicts)
        takes_step = property(lambda self: self.base.takes_step)
        outputs = _as_the_base("outputs")
        init = _as_the_base("init")
        inner_steps = _as_the_base("inner_steps")
        adapt = _as_the_base("adapt")
        logits = _as_the_base("logits")
        smoothing_sigma = _as_the_base("smoothing_sigma")
        unsmoothed = _as_the_base("unsmoothed")
        query_loss = _as_the_base("query_loss")
        base_training = _as_the_base("base_training")
        base_logits = _as_the_base("base_logits")
        base_objective = _as_the_base("base_objective")
        training_attack = _as_the_base("training_attack")
        surrogate_backbone = _as_the_base("surrogate_backbone")
        make_optimizer = _as_the_base("make_optimizer")
        rate_factor = _as_the_base("rate_factor")
        train_tasks = _as_the_base("train_tasks")
        augmentation = _as_the_base("augmentation")
        obstacle = _as_the_base("obstacle")

    @classmethod
    def option_names(cls, options: Mapping[str, str]) -> Collection[str]:
        """Its own and those of the base."""
        base = make_plugin("learner", options.get("base", cls.model_fields["base"].default))
        return {*cls.model_fields, *base.option_names({})}

    @model_validator(mode="before")
    @classmethod
    def _hand_on(cls, options: Any) -> Any:
        """Make the base, with the options that the defence does not have."""
        own = {name: value for name, value in options.items() if name in cls.model_fields}
        more = {name: value for name, value in options.items() if name not in own}
        base = own.get("base", cls.model_fields["base"].default)
        if isinstance(base, str):
            known = cls.option_names(own) if more else ()
            for name in more:
                if name not in known:
                    of, see = f" of learner '{cls.name}' and its base", f"bench list learners {cls.name}"
                    raise ValueError(unknown("option", name, known, of, see))
            return own | {"base": make_plugin("learner", base, more)}
        if more:
            raise ValueError(f"{', '.join(more)}: set options of a base that is made already in the base itself")
        return options

    @field_serializer("base")
    def _typed_base(self, base: Plugin) -> str:
        return plugin_as_typed(base)


class AdversarialDefence(Defence):
    """A defence by attacks in meta-training, which `ops.perturb` makes: override `objective` or `query_loss`."""

    train_attack: str = Field("fgsm", description="attack in meta-training, with options as 'pgd:steps=7;alpha=0.02'")
    train_eps: float | None = Field(None, ge=0, description="its ε; none: the data set's default")

    def training_attack(self) -> tuple[str, float | None] | None:
        """The options `train_attack` and `train_eps`."""
        return self.train_attack, self.train_eps

    def base_objective(self, ops: Operations, theta: State, images: Batch) -> list[Update | Toward]:
        """The base's, on images of the base classes that are attacked through the classifier."""
        return self.base.base_objective(ops, theta, ops.perturb(ops.base_classifier(theta), images))

    @model_validator(mode="after")
    def _one_attack(self) -> Self:
        if self.base.training_attack() is not None:
            raise ValueError(f"base '{self.base.name}' is trained against an attack already: defend another learner")
        return self
