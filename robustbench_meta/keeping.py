"""What can be resumed of the work under way: kept now and then, and when the work is told to stop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

import torch

from robustbench_meta.checkpoints import TrainingState, read_state, state_bytes, state_name
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.parts import Chunk, Found, part_bytes, part_name, read_part
from robustbench_meta.shelf import Shelf
from robustbench_meta.spec import digest_of
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
        shelf: where.
        key: of the training.
        stop: whether to stop.
    """

    def __init__(self, shelf: Shelf, key: str, stop: Stop) -> None:
        self._shelf, self._key, self._stop = shelf, key, stop
        self._pace = Pace(keep_seconds())

    def state(self, device: torch.device) -> TrainingState | None:
        """The state to go on from, on `device`; None if there is none.

        A damaged one is warned of and removed; so is one of another kind of device (CPU, CUDA): it rounds differently.
        """
        data = self._shelf.read(state_name(self._key))
        if data is None:
            return None
        try:
            state = read_state(data, self._key, device)
            if state.device != device.type:
                raise StorageError(f"it was left on {state.device}, and this is {device.type}")
            return state
        except StorageError as error:
            _log.warning("%s: %s; this meta-training begins anew", state_name(self._key), error)
            self._shelf.remove(state_name(self._key))
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
        self._pace.do(lambda: self._shelf.write(state_name(self._key), state_bytes(state, self._key)))
        self._stop.check()

    def forget(self) -> None:
        """The training is over."""
        self._shelf.remove(state_name(self._key))


class Notebook:
    """Keeps what an evaluation under way has found.

    Args:
        shelf: where.
        training: the key of the training whose cells are evaluated.
        cells: their keys: evaluations of other cells of the same training have their own pages.
        how: they are evaluated, as far as that decides the rounding: the plan and the device.
    """

    def __init__(self, shelf: Shelf, training: str, cells: Sequence[str], how: str) -> None:
        self._shelf, self._training, self._how = shelf, training, how
        self._page = digest_of(sorted(cells))
        self.pages: list[str] = []
        """The names of those that this one wrote or used; of no use once its records are written."""
        self._new: Found = {}
        self._pace = Pace(keep_seconds())

    def found(self, fits: Callable[[int, Chunk], bool]) -> Found:
        """What has been found before.

        Args:
            fits: whether a chunk, of the portion that begins at that episode, tells all that is asked for.
        """
        known: Found = {}
        for name in self._shelf.names(part_name(self._training)):
            try:
                page = read_part(self._shelf.read(name) or b"", self._training, self._how)
            except StorageError as error:
                _log.warning("%s: %s; these episodes are evaluated again", name, error)
                self._shelf.remove(name)
                continue
            usable = {
                portion: chunks for portion, chunks in page.items() if all(fits(portion[0], each) for each in chunks)
            }
            if usable:
                self.pages.append(name)
                known |= usable
        return known

    def note(self, portion: tuple[int, int], chunks: list[Chunk]) -> None:
        """Note what a portion of the episodes gave; it is kept now or a little later."""
        self._new[portion] = chunks
        if self._pace.due():
            self.flush()

    def flush(self) -> None:
        """Keep all that was noted.

        Raises:
            StorageError: it cannot be written.
        """
        if self._new:
            start = min(start for start, _ in self._new)
            name = part_name(self._training, f"{self._page}-{start}.safetensors")
            self._pace.do(lambda: self._shelf.write(name, part_bytes(self._new, self._training, self._how)))
            self.pages.append(name)
            self._new = {}
