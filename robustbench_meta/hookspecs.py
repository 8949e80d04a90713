"""The whole plugin interface. Implement any of these with `robustbench_meta.hookimpl` in a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pluggy

if TYPE_CHECKING:
    from robustbench_meta.contracts import AnyLearner, Attack, Backbone, Dataset
    from robustbench_meta.contracts.tracker import Tracker

PROJECT = "robustbench_meta"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
P_contra = TypeVar("P_contra", contravariant=True)


class Register(Protocol[P_contra]):
    """With what a plugin brings its classes."""

    def __call__(self, plugin: type[P_contra]) -> None:
        """Bring a class."""
        ...

    def later(self, name: str, load: Callable[[], type[P_contra]]) -> None:
        """Bring the class of that name; `load` returns it when it is first wanted, for what takes long to import."""
        ...


@hookspec
def register_learners(register: Register[AnyLearner]) -> None:
    """Call `register(MyLearner)` once for each meta-learner that the plugin brings, or `register.later`."""


@hookspec
def register_attacks(register: Register[Attack]) -> None:
    """Call `register(MyAttack)` once for each attack that the plugin brings."""


@hookspec
def register_datasets(register: Register[Dataset]) -> None:
    """Call `register(MyDataset)` once for each data set that the plugin brings."""


@hookspec
def register_backbones(register: Register[Backbone]) -> None:
    """Call `register(MyBackbone)` once for each backbone that the plugin brings."""


@hookspec
def register_trackers(register: Register[Tracker]) -> None:
    """Call `register(MyTracker)` once for each tracker that the plugin brings: it hears the runs that say `--track`."""


@hookspec
def run_started(
    run: Mapping[str, Any], cells: int, work: Sequence[Mapping[str, Any]], results: str,
    trainings: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """A run begins: what it is (`run`, plain data), how many cells it has still to do, and the work that they are.

    `work` has for each learner to train or test its label (`training`), its `cells`, the passes through a task that
    it needs to `train` and to `test`, 0 where nothing is to do, and how many (episode, attack) pairs, the first ones,
    are `checked` and so take longer than their share. `results` is the folder that it writes
    to. `trainings` has by its key each training that the cells need: the `title` that other events call it by, the
    labels `learner`, `dataset` and `backbone`, and all that decides it (`spec`).
    """


@hookspec
def training_progress(training: str, key: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
    """Meta-training of `training` (its label; `key` is its own) reached `step` of `steps`.

    `metrics` are those of the last validation, with its `step`; empty before the first.
    """


@hookspec
def evaluation_progress(training: str, done: int, total: int) -> None:
    """`done` of `total` (episode, attack) pairs of a trained learner's cells are evaluated."""


@hookspec
def cell_finished(record: Mapping[str, Any]) -> None:
    """A cell's record is on disk."""


@hookspec
def cell_failed(cell: Mapping[str, Any], labels: Mapping[str, Any], training: str, reason: str) -> None:
    """A cell of `training` (its label) could not be computed, and why; the grid goes on.

    `cell` is its spec. `labels` are what the leaderboard would say of it, in columns of these names: `spec_hash`,
    `learner` and `attack` with their options, `eps` as typed, `support`, `query` and `seed`.
    """


@hookspec
def run_finished(run: Mapping[str, Any], finished: int, failed: int) -> None:
    """The run is over, whether complete or not."""
