"""Live progress: a listener to the events that any plugin can hear."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import pluggy
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from robustbench_meta.hookspecs import hookimpl

QUIET_SECONDS = 15.0
"""Between two lines about the same work, where there is no terminal."""


class Display(Protocol):
    """Shows work under way."""

    def show(self, work: str, done: int, total: int, told: str = "") -> None:
        """`work` is at `done` of `total`; `told` is what else there is to say."""
        ...

    def finish(self, work: str) -> None:
        """The work is over."""
        ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...


class Listener:
    """Turns the events of a run into a display."""

    def __init__(self, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self.display = display
        self._clock = clock
        self._started: dict[str, float] = {}
        self._cells = self._over = 0

    @hookimpl
    def run_started(self, cells: int) -> None:
        """Show how many cells there are to do."""
        self._cells = cells
        if cells:
            self.display.show("cells", 0, cells)

    @hookimpl
    def training_progress(self, training: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Show the step, the loss and the validation accuracy."""
        self._show(f"train {training}", step, steps, _told(metrics))

    @hookimpl
    def evaluation_progress(self, training: str, done: int, total: int) -> None:
        """Show how many of the (episode, attack) pairs are evaluated."""
        self.display.finish(f"train {training}")  # with a checkpoint, it never got to its last step
        self._show(f"test {training}", done, total)

    @hookimpl
    def cell_finished(self) -> None:
        """Count the cell."""
        self._count()

    @hookimpl
    def cell_failed(self, cell: Mapping[str, Any], training: str, reason: str) -> None:
        """Count the cell and say why it failed; nothing more comes of what its training was at."""
        for work in ("train", "test"):
            self.display.finish(f"{work} {training}")
        self.display.say(
            f"failed: {cell['attack']['plugin']['name']} on {cell['training']['learner']['name']}: {reason}"
        )
        self._count()

    @hookimpl
    def run_finished(self) -> None:
        """Take the count of cells away."""
        self.display.finish("cells")

    def _show(self, work: str, done: int, total: int, told: str = "") -> None:
        if work not in self._started and 0 < done < total:
            self.display.say(f"{work}: going on from {done:,} of {total:,}")
        started = self._started.setdefault(work, self._clock())
        self.display.show(work, done, total, told)
        if done >= total:
            self.display.finish(work)
            took = timedelta(seconds=round(self._clock() - started))
            self.display.say(f"{work}: {total:,} in {took}{', ' + told if told else ''}")

    def _count(self) -> None:
        self._over += 1
        self.display.show("cells", self._over, self._cells)


def _told(metrics: Mapping[str, float]) -> str:
    """`loss 0.51, val 83.1 %`, of what has been measured so far."""
    shown = [f"loss {metrics['loss']:.2f}"] if "loss" in metrics else []
    shown += [f"val {100 * metrics['validation_accuracy']:.1f} %"] if "validation_accuracy" in metrics else []
    return ", ".join(shown)


class Bars:
    """Bars with rate and time left, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=24)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6, max_width=40)),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}", table_column=Column(no_wrap=True, justify="right")),
            _Pace(table_column=Column(no_wrap=True, justify="right")),
            TextColumn("{task.fields[told]}", style="dim", table_column=Column(no_wrap=True)),
            console=console, transient=True, refresh_per_second=4, expand=True, speed_estimate_period=60,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, work: str, done: int, total: int, told: str = "") -> None:
        """Move the bar of this work."""
        if work not in self._tasks:
            self._tasks[work] = self._progress.add_task(work.replace("[", r"\["), total=total, told=told)
        self._progress.update(self._tasks[work], completed=done, told=told)

    def finish(self, work: str) -> None:
        """Take the bar away."""
        if work in self._tasks:
            self._progress.remove_task(self._tasks.pop(work))

    def say(self, line: str) -> None:
        """Print above the bars."""
        self._progress.console.print(line, style="dim", markup=False)


class _Pace(ProgressColumn):
    """Rate and time left; not for cells, which come in batches."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.description == "cells" or not task.speed or task.time_remaining is None:
            return Text("")
        return Text(f"{_rate(task.speed)} {timedelta(seconds=round(task.time_remaining))} left", style="cyan")


def _rate(speed: float) -> str:
    return f"{speed:.0f}/s" if speed >= 100 else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


class Lines:
    """A plain line now and then, where there is no terminal."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._began: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def show(self, work: str, done: int, total: int, told: str = "") -> None:
        """Print where the work is, if it has been quiet long enough."""
        if work == "cells":
            return
        now = self._clock()
        began, first = self._began.setdefault(work, (now, done))
        if now - self._last.setdefault(work, now) < QUIET_SECONDS or done >= total:
            return
        self._last[work] = now
        speed = (done - first) / (now - began)
        left = f", {_rate(speed)}, {timedelta(seconds=round((total - done) / speed))} left" if speed > 0 else ""
        self.say(f"{work}: {done:,}/{total:,}{left}{', ' + told if told else ''}")

    def finish(self, work: str) -> None:
        """Forget the work."""
        self._began.pop(work, None)
        self._last.pop(work, None)

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, soft_wrap=True)


@contextmanager
def showing_progress(manager: pluggy.PluginManager, console: Console) -> Iterator[None]:
    """Show the progress of what runs inside: bars on a terminal, lines elsewhere."""
    bars = Bars(console) if console.is_terminal else None
    listener = Listener(bars or Lines(console))
    manager.register(listener)
    try:
        if bars is None:
            yield
        else:
            with bars:
                yield
    finally:
        manager.unregister(listener)
