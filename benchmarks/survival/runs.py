"""Runs of `bench run`, each in a process group of its own, and what must be true of what they leave. Linux only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

_BENCH = (sys.executable, "-c", "from robustbench_meta.cli import main; main()")
_SERVER = multiprocessing.get_context("forkserver")
_LONGEST = 900.0
"""Seconds; a run that takes longer hangs."""

GRID = (
    "--profile", "smoke", "--learner", "maml", "--learner", "adml", "--attack", "none", "--attack", "fgsm", "--attack",
    "pgd", "--meta-steps", "20", "--episodes", "16", "--device", "cpu",
)  # fmt: skip
"""Six cells of two trainings: some seconds of work on one core, beside the start of a process."""


class Run:
    """One process group: `pid` and `poll` are those of its first process; `log`: what it says."""

    def __init__(self, pid: int, poll: Callable[[], int | None], log: Path) -> None:
        self.pid, self._poll, self._log = pid, poll, log
        self.began = time.monotonic()
        self.seconds = 0.0
        """How long it took."""

    @property
    def code(self) -> int | None:
        """The exit code, or minus the signal; None: it is not over."""
        return self._poll()

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def wait(self) -> int:
        """Wait until it is over; its exit code.

        Raises:
            AssertionError: it hangs, or left a process behind.
        """
        if not self.until(lambda: False, _LONGEST):
            self.kill()
            raise AssertionError(f"a run hung for {_LONGEST:.0f} s, and was killed; it said:\n{self.said}")
        self._ended()
        code = self.code
        assert code is not None
        return code

    def until(self, event: Callable[[], bool], seconds: float = _LONGEST, pause: float = 0.001) -> bool:
        """Wait for an event, or for the end; False if neither came in that time."""
        end = time.monotonic() + seconds
        while self.code is None and not event():
            if time.monotonic() >= end:
                return False
            time.sleep(pause)
        return True

    def signal(self, number: int, *, group: bool = True) -> None:
        """Send a signal to all of its processes, or to the first only."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        """End all of its processes, at once and without a word (SIGKILL)."""
        while self.code is None:
            self.signal(signal.SIGKILL)
            time.sleep(0.005)
        self._ended()

    def _ended(self) -> None:
        self.seconds = time.monotonic() - self.began
        end = time.monotonic() + 10
        while left := list(_members(self.pid)):
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"{len(left)} processes of a run outlived it; it said:\n{self.said}")
            time.sleep(0.01)


@dataclass(frozen=True)
class Bench:
    """How `bench run` is called."""

    cache: Path
    """The cache folder, the same for all runs that are compared: it holds the plans that were measured."""
    arguments: tuple[str, ...] = GRID
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside that of this process."""
    keep_seconds: float = 0.2
    """Between two times that what is under way is kept."""

    def having(self, *arguments: str, **environment: str) -> Bench:
        """The same with more options."""
        return replace(
            self, arguments=(*self.arguments, *arguments), environment={**self.environment, **environment}
        )  # fmt: skip

    def start(self, results: Path, log: Path | None = None) -> Run:
        """Begin a run on a results folder; what it says goes to a file, beside the folder unless told."""
        log = log or results.with_name(f"{results.name}.{time.monotonic_ns()}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        local = () if "--plugins" in self.arguments else ("--no-local-plugins",)
        arguments = ["run", *self.arguments, *local, "--results", str(results)]
        told = {
            **self.environment,
            "ROBUSTBENCH_META_CACHE": str(self.cache), "ROBUSTBENCH_META_KEEP_SECONDS": f"{self.keep_seconds:g}",
            "COLUMNS": "200",
        }  # fmt: skip
        return self._begin(arguments, told, log)

    def finish(self, results: Path) -> Run:
        """A run that nothing disturbs, to its end.

        Raises:
            AssertionError: it fails.
        """
        run = self.start(results)
        code = run.wait()
        assert code == 0, f"a run ended with {code}; it said:\n{run.said}"
        return run

    def _begin(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> Run:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*_BENCH, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip
        return Run(process.pid, process.poll, log)


@dataclass(frozen=True)
class WarmBench(Bench):
    """The same by processes that have torch imported already: forks of one that is kept for it.

    The runs are as any others, but begin within a second.
    """

    def _begin(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> Run:
        slow = ("cli.run_steps", "jobs.worker_process", "results.leaderboard")  # to import
        _SERVER.set_forkserver_preload([*(f"robustbench_meta.{name}" for name in slow), __name__])
        process = _SERVER.Process(target=_bench, args=(arguments, dict(environment), log))
        process.start()
        assert process.pid is not None
        return Run(process.pid, lambda: process.exitcode, log)


def _bench(arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
    """`bench` in a process group of its own."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    from robustbench_meta.cli import main  # noqa: PLC0415  # it is imported in the process that this is a fork of

    main(arguments)


def _members(group: int) -> Iterator[int]:
    """The processes of a group that have not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state not in "ZX":
                yield int(path.parent.name)
