"""Our side of a race, in a process of its own that computes as `bench run` does.

On the CPU the suite tells torch (one thread an operation) and malloc (keep what is freed) things that hold for a whole
process, and the latter for good. So others, who are to run as their users run them, cannot be measured beside it in one
process. Only one of the two processes works at a time; the other waits at a pipe.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.measure import Contestant, Settings, clocked, on_cpu
from benchmarks.processes import Watch, tree_mib
from robustbench_meta.runtime.cpu import computing_alone
from robustbench_meta.runtime.precision import computing_in

_SPAWN = multiprocessing.get_context("spawn")
SETTLE_SECONDS = 0.02
"""Before our turn: OpenMP's threads in the other process spin for some milliseconds when their work is done."""
GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Job:
    """What is done again and again, and what the other process is told beforehand. Both are made in our process."""

    run: Callable[[], Any]
    told: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[Settings], Job]
"""Makes the job; it is sent to the process, so it must be picklable."""


class Apart:
    """A process that makes a job, and then does it when it is its turn.

    Raises:
        RuntimeError: it failed, at this or at a later request; the message has its traceback.
    """

    def __init__(self, make: Make, settings: Settings) -> None:
        self._device = settings.device
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, make, settings))  # no daemon: it forks
        with theirs:
            self._process.start()
        try:
            self.told: dict[str, Any] = self._answer()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def turn(self, least: float = 0.0) -> tuple[float, Callable[[], Any]]:
        """See `measure.Turn`; the result stays in the process until it is asked for, or the next turn begins."""
        time.sleep(SETTLE_SECONDS)
        seconds: float = self._ask("turn", least)
        return seconds, lambda: self._ask("result")

    def memory_mib(self) -> float | None:
        """What it and the processes that it started have now (CPU), or have allocated on the device; None: unknown."""
        if self._device.type == "cuda":
            return float(self._ask("memory"))
        assert self._process.pid is not None
        return tree_mib(self._process.pid)

    def peak_mib_of_turn(self) -> float | None:
        """Have a turn, not to be timed; the most of `memory_mib` while it lasted."""
        assert self._process.pid is not None
        with Watch(self._process.pid, 0.1) as watch:
            self.turn()
        return float(self._ask("peak")) if self._device.type == "cuda" else watch.peak_mib

    def contestant(self, units: int = 1) -> Contestant:
        """Us, in a race."""
        return Contestant("ours", self.turn, "ours", units)

    def _ask(self, *request: Any) -> Any:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead, as the answer will say
            _send(self._pipe, request)
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = _receive(self._pipe)
        except (EOFError, ConnectionResetError):
            self._process.join(GRACE_SECONDS)
            raise RuntimeError(f"our process died, with exit code {self._process.exitcode}") from None
        if kind == "failed":
            raise RuntimeError(f"our process failed:\n{value}")
        return value

    def _end(self) -> None:
        self._pipe.close()  # it ends when nobody can ask any more
        self._process.join(GRACE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _send(pipe: Connection, value: Any) -> None:
    pipe.send_bytes(pickle.dumps(on_cpu(value)))  # pipe.send would share tensors instead of sending them


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())


def _serve(pipe: Connection, make: Make, settings: Settings) -> None:
    """The whole life of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which ends this one
    device = settings.device
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the other process needs us no more
        try:
            with computing_alone(device), computing_in("float32", device):
                job = make(settings)
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # both processes share the GPU's memory
                _send(pipe, ("done", dict(job.told)))
                result = None
                while True:
                    request: tuple[Any, ...] = _receive(pipe)
                    match request:
                        case ("turn", least):
                            result = None
                            gc.collect()
                            seconds, result = clocked(job.run, device, least)
                            _send(pipe, ("done", seconds))
                        case ("result",):
                            _send(pipe, ("done", result))
                        case ("memory",):
                            _send(pipe, ("done", torch.cuda.memory_allocated(device) / 2**20))
                        case ("peak",):
                            _send(pipe, ("done", torch.cuda.max_memory_allocated(device) / 2**20))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            _send(pipe, ("failed", traceback.format_exc()))
