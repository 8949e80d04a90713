"""What workers log, warn of and print: written as events, and repeated by the process that was started."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from robustbench_meta.jobs.events import Event, EventLog, Logged, Printed, Warned


class _Handler(logging.Handler):
    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._events = log

    def emit(self, record: logging.LogRecord) -> None:
        self._events.emit(Logged(record.name, record.levelno, record.getMessage()))


class _Stream(io.TextIOBase):
    """Sends what is printed by whole lines, lest it runs through progress bars."""

    def __init__(self, log: EventLog, stream: str) -> None:
        self._events, self._stream, self._begun = log, stream, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._events.emit(Printed(self._stream, whole + newline))
        return len(text)


@contextlib.contextmanager
def as_events(log: EventLog, level: int) -> Iterator[None]:
    """Inside, log messages, warnings and what is printed become events."""

    def warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        log.emit(Warned(str(message), category.__name__, filename, lineno))

    for logger in logging.root.manager.loggerDict.values():  # in a fork these may wait for a thread that is not there
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
    logging.basicConfig(level=level, handlers=[_Handler(log)], force=True)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Stream(log, "stdout")),
        contextlib.redirect_stderr(_Stream(log, "stderr")),
    ):
        warnings.showwarning = warn  # type: ignore[assignment]  # as the documentation of warnings has it
        yield


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Inside, nothing is logged, warned of or printed."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(action="ignore"),
    ):
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def repeat(event: Event, shown: dict[str, dict[Any, Any]]) -> None:
    """Log, warn or print here what a worker did; a warning that another worker gave was `shown`, and is not again."""
    if isinstance(event, Logged):
        logger = logging.getLogger(event.name)
        if logger.isEnabledFor(event.level):
            logger.log(event.level, "%s", event.message)
    elif isinstance(event, Warned):
        category = getattr(builtins, event.category, UserWarning)
        registry = shown.setdefault(event.filename, {})
        warnings.warn_explicit(event.text, category, event.filename, event.lineno, registry=registry)
    elif isinstance(event, Printed):
        getattr(sys, event.stream).write(event.text)
