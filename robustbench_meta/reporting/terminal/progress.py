"""Live progress: a listener to the events that any plugin can hear, and what it shows them on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import pluggy
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from robustbench_meta.hookspecs import hookimpl
from robustbench_meta.jobs.time_left import JobProgress, RunProgress, TimeLeft
from robustbench_meta.reporting.terminal.console import counted, err, is_screen

QUIET_SECONDS = 15.0
"""Between two lines about the same work, where there is no terminal; longer where much is done side by side."""
OVERALL_SECONDS = 60.0
"""Between two lines about the whole run there."""
MOST_BARS = 8
"""More trainings side by side are counted only."""
WIDE = 100
MOST_WIDTH = 110
"""Wider bars tell no more."""
NOTEBOOK_SECONDS = 0.5
_NOTEBOOK_WIDTH = 110


class Display(Protocol):
    """Shows where a run is."""

    def changed(self, progress: RunProgress, job: JobProgress | None) -> None:
        """The run, and a training or evaluation of it, got further."""
        ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...


class ProgressListener:
    """Turns the events of a run into a display."""

    def __init__(self, display: Display, progress: RunProgress | None = None) -> None:
        self.display, self.progress = display, progress or RunProgress()
        self._reasons: set[tuple[str, str]] = set()

    @hookimpl
    def run_started(self, cells: int, work: Sequence[Mapping[str, Any]]) -> None:
        """Note how much there is to do."""
        self.progress.begin(cells, work)
        self.display.changed(self.progress, None)

    @hookimpl
    def training_progress(self, training: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Show the step, the loss and the validation accuracy."""
        self._told(self.progress.reach("train", training, step, steps, metrics))

    @hookimpl
    def evaluation_progress(self, training: str, done: int, total: int) -> None:
        """Show how many of the (episode, attack) pairs are evaluated."""
        self._told(self.progress.reach("test", training, done, total))

    @hookimpl
    def cell_finished(self) -> None:
        """Count the cell."""
        self.progress.cell_over()
        self.display.changed(self.progress, None)

    @hookimpl
    def cell_failed(self, labels: Mapping[str, Any], training: str, reason: str) -> None:
        """Count the cell and say why it failed, each reason once; nothing more comes of what its training was at."""
        self.progress.cell_over(failed_of=training)
        what = f"{labels['attack']} eps={labels['eps']} {labels['support']}/{labels['query']}"
        why = "for the same reason" if (training, reason) in self._reasons else reason
        self._reasons.add((training, reason))
        self.display.say(f"failed: {what} on {training}: {why}")
        self.display.changed(self.progress, None)

    def _told(self, job: JobProgress) -> None:
        if job.spent == 0 and 0 < job.first == job.done < job.total:
            self.display.say(f"{_name(job)}: resuming at {job.done:,} of {job.total:,}")
        if job.over and job.total:
            metrics = _metrics(job)
            self.display.say(f"{_name(job)}: {job.total:,} in {duration(job.spent)}{', ' + metrics if metrics else ''}")
        self.display.changed(self.progress, job)


# -- words -----------------------------------------------------------------------------------------


def _name(job: JobProgress) -> str:
    return f"{job.stage} {job.title}"


def _metrics(job: JobProgress) -> str:
    """`loss 0.51, val 83.1 %`, of what has been measured so far; of a test, whether its checks are running."""
    metrics = job.told
    if job.stage == "test":
        return "with checks" if job.done < min(job.checked, job.total) else ""
    shown = [f"loss {metrics['loss']:.2f}"] if "loss" in metrics else []
    shown += [f"val {100 * metrics['validation_accuracy']:.1f} %"] if "validation_accuracy" in metrics else []
    return ", ".join(shown)


def _rate(speed: float) -> str:
    return f"{speed:.0f}/s" if speed >= 100 else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


def duration(seconds: float) -> str:
    """`0:01:05`."""
    return str(timedelta(seconds=round(seconds)))


def left_text(left: TimeLeft | None) -> str:
    """`0:12:30 left`, with a mark.

    ~ where it rests on the pace of others, > where of some work there is no pace yet, < where the pace is that of
    episodes that are checked.
    """
    if left is None or (left.known == "more" and left.seconds < 1):
        return "…"
    mark = {"measured": "", "guessed": "~", "more": ">", "less": "<"}[left.known]
    return f"{mark}{duration(left.seconds)} left"


def _own_left(job: JobProgress) -> str:
    return "" if job.left is None else f"{'<' if job.quickens else ''}{duration(job.left)}"


def _shortened(text: str, width: int) -> str:
    """With … in the middle where it is too long: its end, the seed and the part, tells it from others."""
    if len(text) <= width:
        return text
    end = min(17, width // 2)
    return f"{text[: width - end - 1]}…{text[-end:]}"


# -- displays --------------------------------------------------------------------------------------


def draw_progress(progress: RunProgress, width: int, height: int = 24) -> RenderableType:
    """A line for each running training and evaluation, as many as there is room for, and one for the whole run."""
    width = min(width, MOST_WIDTH)
    running = list(progress.running)
    room = max(1, min(MOST_BARS, height - 4))
    shown = running if len(running) <= room else running[: room - 1]
    table = Table.grid(padding=(0, 1), expand=True)
    table.width = width
    wide = width >= WIDE
    table.add_column(no_wrap=True, width=min(48, width * 3 // 10))
    table.add_column(ratio=1, min_width=6)
    for style in (None, "cyan", "cyan", "dim"):
        table.add_column(justify="left" if style == "dim" else "right", no_wrap=True, style=style)
    for job in shown:
        table.add_row(
            Text(_shortened(_name(job), min(48, width * 3 // 10))),
            ProgressBar(total=job.total or 1, completed=job.done),
            f"{job.done:,}/{job.total:,}",
            "" if job.rate is None else _rate(job.rate),
            "" if job.left is None else _own_left(job) + (" left" if wide else ""),
            _metrics(job).replace(" %", "%").replace(",", ""),
        )
    parts: list[RenderableType] = [table] if shown else []
    if len(shown) < len(running):
        parts.append(Text(f"and {counted(len(running) - len(shown), 'other')} running", style="dim"))
    if progress.cells:
        parts.append(_overall(progress, width))
    return Group(*parts)


def _overall(progress: RunProgress, width: int) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.width = width
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, min_width=6)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    fraction = progress.fraction
    table.add_row(
        Text("all", style="bold"),
        ProgressBar(total=1.0, completed=fraction or 0.0),
        Text("" if fraction is None else f"{100 * fraction:.0f} %", style="bold"),
        f"{progress.cells_over:,}/{counted(progress.cells, 'cell')}  {duration(progress.elapsed)} so far",
        Text(left_text(progress.left), style="bold cyan"),
    )
    return table


class Bars:
    """Bars with rate and time left, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: RunProgress | None = None
        self._live = Live(
            console=console, transient=True, refresh_per_second=4, get_renderable=self._drawn, redirect_stdout=True,
        )  # fmt: skip

    def __enter__(self) -> Bars:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress = None
        self._live.stop()

    def _drawn(self) -> RenderableType:
        return (
            Text("")
            if self._progress is None
            else draw_progress(self._progress, self._console.width, self._console.height)
        )

    def changed(self, progress: RunProgress, job: JobProgress | None) -> None:
        """It is drawn four times a second."""
        self._progress = progress

    def say(self, line: str) -> None:
        """Print above the bars."""
        self._console.print(line, style="dim", markup=False, highlight=False)


class Lines:
    """A plain line now and then, where there is no terminal."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._last: dict[str, float] = {}

    def changed(self, progress: RunProgress, job: JobProgress | None) -> None:
        """Print where the work is, if it has been quiet long enough."""
        if self._due("", OVERALL_SECONDS) and progress.cells and progress.fraction is not None:
            self.say(
                f"all: {100 * progress.fraction:.0f} %, {progress.cells_over:,}/{counted(progress.cells, 'cell')}, "
                f"{left_text(progress.left)}"
            )
        if job is None or job.over:
            return
        if not self._due(_name(job), QUIET_SECONDS * max(1.0, len(progress.running) / 4)):
            return
        pace = job.rate and f", {_rate(job.rate)}, {_own_left(job)} left"
        told = _metrics(job)
        self.say(f"{_name(job)}: {job.done:,}/{job.total:,}{pace or ''}{', ' + told if told else ''}")

    def _due(self, what: str, seconds: float) -> bool:
        now = self._clock()
        if now - self._last.setdefault(what, now) < seconds:
            return False
        self._last[what] = now
        return True

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Notebook:
    """One output of a notebook's cell that is written anew; needs IPython, which a notebook has, and no widgets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, float("-inf")
        self._lines: list[str] = []
        self._progress: RunProgress | None = None
        self._handle: Any = None

    def __enter__(self) -> Notebook:
        from IPython.display import display

        self._handle = display(self._shown(), raw=True, display_id=True)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        self._write(bars=False)

    def changed(self, progress: RunProgress, job: JobProgress | None) -> None:
        """Write it anew now and then."""
        self._progress = progress
        if self._clock() - self._last >= NOTEBOOK_SECONDS:
            self._last = self._clock()
            self._write()

    def say(self, line: str) -> None:
        """Keep a line above the bars."""
        self._lines.append(line)
        self._write()

    def _write(self, *, bars: bool = True) -> None:
        self._handle.update(self._shown(bars=bars), raw=True)

    def _shown(self, *, bars: bool = True) -> dict[str, str]:
        """As text, and the same as HTML in which everything is escaped."""
        console = Console(file=io.StringIO(), record=True, width=_NOTEBOOK_WIDTH, force_jupyter=False)
        parts: list[RenderableType] = [Text(line, style="dim") for line in self._lines]
        if bars and self._progress is not None:
            parts.append(draw_progress(self._progress, _NOTEBOOK_WIDTH))
        console.print(Group(*parts), end="")
        text = console.export_text(clear=False)
        html = console.export_html(inline_styles=True, code_format='<pre style="line-height:1.3">{code}</pre>')
        return {"text/plain": text, "text/html": html}


@contextmanager
def listening(manager: pluggy.PluginManager, listener: object) -> Iterator[None]:
    """Inside, it hears the events."""
    manager.register(listener)
    try:
        yield
    finally:
        manager.unregister(listener)


@contextmanager
def showing_progress(
    manager: pluggy.PluginManager, console: Console | None = None, *, show: bool = True
) -> Iterator[None]:  # fmt: skip
    """Show the progress of what runs inside: bars on a terminal and in notebooks, lines elsewhere.

    Args:
        manager: of the registry whose plugins hear the run.
        console: where to; default: stderr.
        show: False to show nothing.
    """
    if not show:
        yield
        return
    where = console or err()
    display: Bars | Notebook | None = Notebook() if where.is_jupyter else Bars(where) if is_screen(where) else None
    with listening(manager, ProgressListener(display or Lines(where))), display or nullcontext():
        yield
