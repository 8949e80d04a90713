"""A model of the user's own as a learner: adapted one task at a time, by any code, on the episodes of everybody."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_meta.contracts import Backbone, Learner, Model, Operations, Toward, Update
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.errors import BenchError, PluginError, located
from robustbench_meta.evaluation.evaluator import test_episodes
from robustbench_meta.experiment.grid import Grid
from robustbench_meta.options import NAME, NAMED
from robustbench_meta.registry.discovery import SESSION, Origin, code_digest
from robustbench_meta.registry.in_memory import bringing
from robustbench_meta.registry.registry import Registry
from robustbench_meta.results.records import unpack
from robustbench_meta.runtime.seeds import seed_from, seeded

Adapted = Callable[[Tensor], Tensor]
"""Images [n, *shape] in [0, 1] → logits [n, way], differentiable in the images where attacks are to use gradients."""
Adapt = Callable[[Tensor, Tensor], Adapted]
"""(support images [way·shot, *shape] in [0, 1], labels [way·shot] in 0 … way−1) → the model for that task."""
OWN = "own"
"""The backbone where none is named."""
LOOKED_AT = 8
"""Test episodes on which stored answers are held against those of the model at hand."""
_MOST_APART = 0.02
"""The share of answers that may differ there: another device or version of torch rounds otherwise."""
NO_GRADIENT = (
    "the logits of '{}' do not depend on its images by torch's autograd. Compute them with torch, and without no_grad, "
    "detach or numpy on the way; or attack it without gradients, by square or noise"
)
_KEPT = 16
"""Adapted models that are kept; others are adapted again when they are wanted."""


class OwnBackbone(Backbone):
    """A network that is not told."""

    name: ClassVar[str] = OWN

    @property
    def norm_layer(self) -> str:
        """Not known."""
        return OWN

    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """Nothing: the learner has its own."""
        return nn.Identity()


class OwnModels:
    """Adapts the user's model to tasks, each time with the same random draws, and keeps the last few.

    Args:
        adapt: the user's function.
        seed: of what it draws, beside the support images.
        who: its name, for messages.
    """

    def __init__(self, adapt: Adapt, seed: int, who: str) -> None:
        self._adapt, self._seed, self._who = adapt, seed, who
        self._kept: OrderedDict[int, Adapted] = OrderedDict()
        self._count = 0

    def add(self, support: Batch) -> int:
        """Adapt to a task, and give the number under which the model is kept."""
        self._count += 1
        self._keep(self._count, self.adapted(support))
        return self._count

    def get(self, number: int, support: Batch) -> Adapted:
        """The model of that number, which was adapted to this support set."""
        if number not in self._kept:
            self._keep(number, self.adapted(support))
        self._kept.move_to_end(number)
        return self._kept[number]

    def adapted(self, support: Batch) -> Adapted:
        """The model for a task.

        Raises:
            BenchError: the function gave something that cannot be called.
        """
        x, y = support.x.detach().clone(), support.y.clone()
        seed = seed_from("own model", self._seed, hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest())
        with seeded(seed, x.device), torch.enable_grad():
            model: Any = self._adapt(x, y)
        if not callable(model):
            hint = ": is a `return` missing?" if model is None else ""
            raise BenchError(
                f"adapt of '{self._who}' returned {type(model).__name__}; expected a function or module: "
                f"images [n, *shape] → logits [n, way]{hint}"
            )
        adapted: Adapted = model
        return adapted

    def logits(self, model: Adapted, x: Tensor, way: int) -> Tensor:
        """Logits [n, way] of x [n, *shape], in the dtype of x.

        Raises:
            BenchError: the model gives something else.
        """
        found: object = model(x)
        if isinstance(found, Tensor) and found.shape == (len(x), way) and found.is_floating_point():
            return found.to(x.dtype)
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise BenchError(f"the model of '{self._who}' gave {what} for {len(x)} images; expected logits {(len(x), way)}")

    def _keep(self, number: int, model: Adapted) -> None:
        self._kept[number] = model
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def own_learner(models: OwnModels, called: str, *, is_transductive: bool) -> type[Learner]:
    """A learner without weights of its own, whose adapted state is the support set and the number of a model.

    Args:
        models: adapts.
        called: its name.
        is_transductive: whether predictions of one query depend on the others.
    """

    class Own(Learner):
        """A model of the user's own, adapted in this process."""

        name: ClassVar[str] = called
        transductive: ClassVar[bool] = is_transductive
        theta_predicts: ClassVar[bool] = False

        def init(self, weights: Mapping[str, Tensor], feature_shape: tuple[int, ...]) -> dict[str, Tensor]:
            return {}

        def adapt(self, model: Model, state: Any, support: Batch, **_: Any) -> dict[str, Tensor]:
            number = torch.tensor(models.add(support), device=support.y.device)
            return {"number": number, "x": support.x, "y": support.y}

        def logits(self, model: Model, state: Any, x: Tensor) -> Tensor:
            own = models.get(int(state["number"]), Batch(state["x"], state["y"]))
            return models.logits(own, x, model.way)

        def objective(self, ops: Operations, theta: State, tasks: TaskBatch) -> list[Update | Toward]:
            raise BenchError(f"'{called}' is evaluated only, and not meta-trained here")

    return Own


def check_named(name: str) -> None:
    """Raise BenchError unless a learner may be called so."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BenchError(f"invalid name {name!r}: expected {NAMED}")


def bring(registry: Registry, learner: type[Learner], version: str | None) -> None:
    """Let a registry know the learner, and the backbone that is not told.

    Raises:
        PluginError: the name is taken.
    """
    kind_of = "transductive" if learner.transductive else "inductive"
    code = f"{SESSION} own model {version!r}, {kind_of}, sha256:{code_digest(Path(__file__))}"
    for kind, cls in (("learner", learner), ("backbone", OwnBackbone)):
        found = registry.add(bringing(kind, cls), Origin("session", f"the {kind} given to evaluate()", code))
        if found.error is not None:
            raise PluginError(found.error)


def check_on_test_episodes(
    models: OwnModels, grid: Grid, device: torch.device, records: Iterable[Mapping[str, Any]]
) -> None:
    """Try the model on the first test episodes, before anything is attacked; compare with what is stored of it.

    Args:
        models: adapts.
        grid: of the learner alone.
        device: where.
        records: what is stored under its name and version.

    Raises:
        BenchError: it fails, it has no gradients and is to be checked, or it gives other answers than those that are
            stored: it is another model.
    """
    stored = next((unpack(record["clean"]) for record in records), None)
    spec, source = grid.trainings[0].spec, grid.splits.test.to(device)
    count = 1 if stored is None else min(LOOKED_AT, len(stored), grid.run.size("episodes"))
    tasks, answers, who = test_episodes(source, spec, range(count)), list[np.ndarray](), grid.trainings[0].label
    for index in range(count):
        support, query = (Batch(batch.x[index], batch.y[index]) for batch in tasks)
        try:
            model = models.adapted(support)
            with torch.enable_grad():
                models.logits(model, query.x[:1], grid.setting.way)
                logits = models.logits(model, query.x.clone().requires_grad_(), grid.setting.way)
        except BenchError:
            raise
        except Exception as error:  # it is the user's code, and may raise anything
            raise BenchError(f"'{who}' failed on test episode {index}: {located(error)}") from error
        if grid.probe_plan is not None and not logits.requires_grad:
            raise BenchError(NO_GRADIENT.format(who) + "; its rows cannot be checked then: add checks=False")
        answers.append((logits.argmax(-1) == query.y).cpu().numpy())
    if stored is not None and float((np.stack(answers) != stored[:count]).mean()) > _MOST_APART:
        raise BenchError(
            f"'{who}' answers {count} test episodes otherwise than the model whose results are "
            "stored under this name and version: give it another `version`, or another folder; fresh=True forgets "
            "those results"
        )
