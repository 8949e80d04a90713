"""A cell's record: everything that a row needs, and what it takes to check or repeat it. Plain data."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from typing import Any

from robustbench_meta import __version__
from robustbench_meta.contracts import Attack, Method
from robustbench_meta.evaluation.evaluator import Outcome
from robustbench_meta.evaluation.flags import FLAGS, of_training, unchecked
from robustbench_meta.evaluation.partial_results import PartialResult
from robustbench_meta.experiment.checkpoints import Trained
from robustbench_meta.experiment.grid import Cell, Grid
from robustbench_meta.results.records import SCHEMA, finite, pack

_PACKAGES = ("torch", "torchattacks", "numpy", "pillow", "matplotlib")


def record_of(
    grid: Grid, cell: Cell, outcome: Outcome, trained: Trained, parts: Sequence[PartialResult]
) -> dict[str, Any]:
    """The record of a cell, with the outcome of its evaluation, which was made of these parts."""
    training = cell.training
    transductive = grid.setting.transductive or training.learner.transductive
    reliability = outcome.reliability
    raised = reliability.flags if reliability is not None else unchecked(cell.spec.episodes)
    raised = [*raised, *of_training(trained.history, grid.setting.loss, grid.setting.way)]
    record: dict[str, Any] = finite({
        "schema": SCHEMA,
        "key": cell.key,
        "training": training.key,
        "spec": cell.spec.model_dump(mode="json"),
        "labels": {**grid.labels, **labels_of(cell)},
        "norm_layer": grid.backbone.norm_layer,
        "inference": "transductive" if transductive else "inductive",
        "episodes_digest": outcome.episodes_digest,
        "accuracies": [round(float(value), 6) for value in outcome.robust.mean(1)],
        "clean": pack(outcome.clean),
        "robust": pack(outcome.robust),
        "chosen_step": trained.chosen_step,
        "history": trained.history,
        "timings": {
            "train_seconds": trained.seconds,
            "adapt_ms_per_task": outcome.adapt_ms_per_task,
            "attack_ms_per_task": outcome.attack_ms_per_task,
            "check_ms_per_task": outcome.check_ms_per_task,
        },
        "cost": outcome.effort.plain(),
        "memory": {
            "train_bytes": trained.peak_memory,
            "test_bytes": max((part.peak_memory for part in parts if part.peak_memory is not None), default=None),
        },
        "method": _method(cell.threat.attack, outcome),
        "flags": [flag for flag in FLAGS if flag in raised],
        "checks": reliability.plain() if reliability is not None else None,
        "gallery": outcome.gallery,
        "parameters": trained.parameters,
        "device": parts[0].device,
        "precision": training.spec.precision,
        "plans": {"train": trained.plan, "test": parts[0].plan},
        "versions": {
            "robustbench_meta": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    })  # fmt: skip
    return record


def labels_of(cell: Cell) -> dict[str, str]:
    """What tables show of the learner, its training attack, the attack, ε, and what the attack began from."""
    threat = cell.training.attack
    return {
        "learner": cell.learner,
        "attack": cell.attack,
        "eps": cell.eps,
        "training_attack": threat.label if threat else "none",
        "training_eps": threat.eps.text if threat else "0",
        "surrogate": cell.surrogate.label if cell.surrogate else "none",
        "warm_start": cell.threat.sweep[-1].text if cell.spec.attack.sweep else "",
    }


def _method(attack: Attack, outcome: Outcome) -> Method:
    """How it searched, by what it asked; one that says that it takes a single step is believed: `eot` repeats that."""
    return "single-step" if attack.how() == "single-step" else outcome.effort.method()
