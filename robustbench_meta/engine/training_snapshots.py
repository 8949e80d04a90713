"""Snapshots of a meta-training, saved now and then and when it is to stop, to resume from."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_meta.contracts import Weights
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.errors import BenchError, StorageError, brief
from robustbench_meta.experiment.checkpoints import Trained
from robustbench_meta.runtime import tensor_files
from robustbench_meta.runtime.atomic_files import read_bytes, remove, write_bytes
from robustbench_meta.runtime.interrupts import Stop

_log = logging.getLogger(__name__)
SECONDS = "ROBUSTBENCH_META_KEEP_SECONDS"
"""The environment variable with the seconds between two saves of unfinished work; 15 by default."""
_SHARE = 0.02
"""The most of the time that keeping may take."""


def keep_seconds() -> float:
    """The seconds between two saves of unfinished work.

    Raises:
        BenchError: the environment says something else than a number of seconds.
    """
    text = os.environ.get(SECONDS, "15")
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise BenchError(f"{SECONDS}={text}: expected a number of seconds from 0 on")
    return seconds


class Pace:
    """When to keep something again: every so many seconds, and more seldom where keeping takes long."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._next = clock() + seconds

    def due(self) -> bool:
        """Whether it is time."""
        return self._clock() >= self._next

    def do(self, keep: Callable[[], None]) -> None:
        """Keep it, and note how long that takes."""
        began = self._clock()
        keep()
        ended = self._clock()
        self._next = ended + max(self._seconds, (ended - began) / _SHARE if self._seconds else 0.0)


class TrainingSnapshots:
    """Keeps the state of one meta-training.

    Args:
        root: the results folder.
        key: of the training.
        stop: whether to stop.
    """

    def __init__(self, root: Path, key: str, stop: Stop) -> None:
        self._path, self._key, self._stop = root / state_name(key), key, stop
        self._pace = Pace(keep_seconds())

    def state(self, device: torch.device) -> TrainingState | None:
        """The state to go on from, on `device`; None if there is none.

        A damaged one is warned of and removed; so is one of another kind of device (CPU, CUDA): it rounds differently.
        """
        data = read_bytes(self._path)
        if data is None:
            return None
        try:
            state = read_state(data, self._key, device)
            if state.device != device.type:
                raise StorageError(f"it was left on {state.device}, and this is {device.type}")
            return state
        except StorageError as error:
            _log.warning("%s: %s; this meta-training begins anew", self._path, error)
            remove(self._path)
            return None

    def wants(self, step: int, steps: int) -> bool:
        """Whether the state after this step is to be kept."""
        return step < steps and (bool(self._stop) or self._pace.due())

    def keep(self, state: TrainingState) -> None:
        """Keep it.

        Raises:
            Stopped: after that, if the work was told to stop.
            StorageError: it cannot be written.
        """
        self._pace.do(lambda: write_bytes(self._path, state_bytes(state, self._key)))
        self._stop.check()

    def forget(self) -> None:
        """The training is over."""
        remove(self._path)


_STATE = "state of a meta-training"


def state_name(key: str) -> str:
    """The file of an unfinished training's state."""
    return f"progress/{key}.safetensors"


@dataclass
class TrainingState:
    """All that the next meta-step needs of those before it.

    No random state is among it: every draw is seeded by the number of its step.
    """

    step: int
    weights: Weights
    optimizer: dict[str, Any]
    """Its state dict."""
    trained: Trained
    """The best so far on the validation tasks, and the history."""
    judged: QueryMetrics
    """Since the last validation."""
    plan: Plan
    """Of the engine: it decides the rounding."""
    device: str
    """Its kind, cpu or cuda."""


def state_bytes(state: TrainingState, key: str) -> bytes:
    """The state of an unfinished training."""
    judged = {"loss": state.judged.loss, "correct": state.judged.correct, "batches": state.judged.batches}
    optimizer = {
        "groups": state.optimizer["param_groups"],
        "state": [[index, values] for index, values in state.optimizer["state"].items()],
    }
    tree = {**vars(state), "trained": vars(state.trained), "judged": judged, "optimizer": optimizer}
    return tensor_files.dump(_STATE, {**tree, "plan": asdict(state.plan), "key": key})


def read_state(data: bytes, key: str, device: torch.device) -> TrainingState:
    """The state of a training, its tensors on `device`, as `state_bytes` was given it.

    Raises:
        StorageError: it is damaged, or of another training.
    """
    tree = tensor_files.restore(_STATE, data)
    try:
        if tree.pop("key") != key:
            raise StorageError("it is of another training than its name says")
        groups, entries = tree["optimizer"]["groups"], tree["optimizer"]["state"]
        return TrainingState(
            step=int(tree["step"]), device=str(tree["device"]), plan=Plan(**tree["plan"]),
            weights=_on(tree["weights"], device),
            optimizer={"param_groups": groups, "state": dict(map(tuple, entries))},  # load_state_dict moves it
            trained=Trained(**{**tree["trained"], "weights": _on(tree["trained"]["weights"], device)}),
            judged=QueryMetrics(**{name: _there(value, device) for name, value in tree["judged"].items()}),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"it is damaged ({brief(error)})") from error


def _on(weights: Mapping[str, Tensor], device: torch.device) -> Weights:
    return {name: weight.to(device) for name, weight in weights.items()}


def _there(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
