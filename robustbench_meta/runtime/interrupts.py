"""Ctrl-C and SIGTERM: unfinished work stops where it can be resumed; how processes begin and end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):  # no error, and nothing that a plugin should catch
    """The work was asked to stop; what can be resumed is saved."""


class Stop:
    """Whether the work was asked to stop.

    Asked once, work that can be resumed from any of its steps finishes the current one; other work ends at once. Asked
    twice, all of it ends at once, by KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at_once = self._shielded = 0
        self._announce: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def ask(self, by: int = signal.SIGTERM) -> None:
        """Ask the work to stop.

        Raises:
            Stopped: it is work that ends at once.
            KeyboardInterrupt: it was asked before.
        """
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = by
        if self._announce is not None:
            self._announce()
        if self._at_once and not self._shielded:
            raise Stopped

    def check(self) -> None:
        """Raise Stopped if the work was asked to stop."""
        if self:
            raise Stopped

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Work inside ends at once, by Stopped, when it is asked to."""
        self.check()
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Inside, work that ends at once does not, but at the end of this."""
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= 1
        if self._at_once and not self._shielded:
            self.check()

    @contextlib.contextmanager
    def listening(
        self, announce: Callable[[], None] | None = None, signals: tuple[int, ...] = SIGNALS
    ) -> Iterator[Stop]:
        """Inside, the signals ask the work to stop, and `announce` says so; outside the main thread nothing listens."""
        self._announce = announce
        with handling({number: lambda number, _: self.ask(number) for number in signals}):
            yield self


@contextlib.contextmanager
def handling(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Inside, these signals have these handlers, and afterwards those of before; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python


def begin_fork(parent: int) -> None:
    """What a forked process does first: leave Ctrl-C and SIGTERM to its parent, and end with it (Linux)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it was gone before it could be watched


def how_it_ended(code: int | None) -> str:
    """What a process did, to follow its name in a message.

    Args:
        code: its exit code, or minus the signal that ended it; None if it is not known.
    """
    if code is None:
        return "does not answer any more"
    if code >= 0:
        return f"ended itself with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"was ended by signal {-code}"
