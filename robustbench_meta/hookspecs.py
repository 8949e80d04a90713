"""The whole plugin interface. Implement any of these with `robustbench_meta.hookimpl` in a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from robustbench_meta.contracts import Attack, Backbone, Dataset, Learner

PROJECT = "robustbench_meta"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_learners(register: Callable[[type[Learner]], None]) -> None:
    """Call `register(MyLearner)` once for each meta-learner that the plugin brings."""


@hookspec
def register_attacks(register: Callable[[type[Attack]], None]) -> None:
    """Call `register(MyAttack)` once for each attack that the plugin brings."""


@hookspec
def register_datasets(register: Callable[[type[Dataset]], None]) -> None:
    """Call `register(MyDataset)` once for each data set that the plugin brings."""


@hookspec
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Call `register(MyBackbone)` once for each backbone that the plugin brings."""


@hookspec
def run_started(run: Mapping[str, Any], cells: int) -> None:
    """A run begins: what it is (`run`, plain data) and how many cells it has still to do."""


@hookspec
def training_progress(training: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
    """Meta-training of `training` (its label) reached `step` of `steps`; loss and accuracies so far."""


@hookspec
def evaluation_progress(training: str, done: int, total: int) -> None:
    """`done` of `total` (episode, attack) pairs of a trained learner's cells are evaluated."""


@hookspec
def cell_finished(record: Mapping[str, Any]) -> None:
    """A cell's record is on disk."""


@hookspec
def cell_failed(cell: Mapping[str, Any], reason: str) -> None:
    """A cell could not be computed, and why; the grid goes on."""


@hookspec
def run_finished(run: Mapping[str, Any], finished: int, failed: int) -> None:
    """The run is over, whether complete or not."""
