"""The state of a meta-training, saved now and then and when the training is told to stop, to resume from."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from robustbench_meta.checkpoints import TrainingState, read_state, state_bytes, state_name
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.files import read_bytes, remove, write_bytes
from robustbench_meta.stopping import Stop

_log = logging.getLogger(__name__)
SECONDS = "ROBUSTBENCH_META_KEEP_SECONDS"
"""The environment variable with the seconds between two times that the work under way is kept; 15 if not given."""
_SHARE = 0.02
"""The most of the time that keeping may take."""


def keep_seconds() -> float:
    """The seconds between two times that the work under way is kept.

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


class Keeper:
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
