"""Progress: what is said of time left, and what is written to terminals, files and notebooks."""

import inspect
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from functools import partial

import pluggy
import pytest
from rich.console import Console

from robustbench_meta import hookimpl, hookspecs
from robustbench_meta.jobs.time_left import RunProgress
from robustbench_meta.reporting.terminal.progress import (
    Lines,
    ProgressListener,
    draw_progress,
    left_text,
    showing_progress,
)

TWO = [
    {"training": "maml (seed 0)", "cells": 3, "train": 400, "test": 300, "checked": 0},
    {"training": "adml (seed 0)", "cells": 3, "train": 800, "test": 300, "checked": 0},
]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Tape:
    """A display that remembers what it is to say."""

    def __init__(self):
        self.lines = []

    def changed(self, progress, job):
        pass

    def say(self, line):
        self.lines.append(line)


def advance(progress, clock, stage, title, start, end, total, seconds):
    """From `start` to `end`, one by one, in so many seconds."""
    began = clock.now
    for done in range(start, end + 1):
        clock.now = began + seconds * (done - start) / (end - start)
        progress.reach(stage, title, done, total)


def of_two():
    clock = Clock()
    progress = RunProgress(clock)
    progress.begin(6, TWO)
    return progress, clock


# -- how much, how long ----------------------------------------------------------------------------


def test_the_share_that_is_done_is_weighted_by_work():
    progress, clock = of_two()
    assert progress.fraction == 0
    advance(progress, clock, "train", "maml (seed 0)", 0, 100, 100, 10.0)
    # 400 of 400 + 300 + 800 + 300 passes through a task.
    assert progress.fraction == pytest.approx(400 / 1800)
    advance(progress, clock, "test", "maml (seed 0)", 0, 30, 60, 3.0)
    assert progress.fraction == pytest.approx(550 / 1800)


def test_nothing_is_said_of_the_time_left_before_anything_is_measured():
    progress, clock = of_two()
    assert left_text(progress.left) == "…"
    progress.reach("train", "maml (seed 0)", 0, 100)
    clock.now = 30.0  # the first step may take long: a plan is made
    progress.reach("train", "maml (seed 0)", 1, 100)
    assert left_text(progress.left) == "…"


def test_the_time_left_is_a_lower_bound_then_a_guess_then_measured():
    progress, clock = of_two()
    # 1 step of 100 is 4 passes: 0.1 s a step is 0.025 s a pass; adml's 800 passes are guessed to take 20 s.
    advance(progress, clock, "train", "maml (seed 0)", 0, 100, 100, 10.0)
    assert left_text(progress.left) == ">0:00:20 left", "no test has been measured"
    advance(progress, clock, "test", "maml (seed 0)", 0, 300, 300, 6.0)
    assert left_text(progress.left) == "~0:00:26 left", "adml: 800 × 0.025 + 300 × 0.02"
    advance(progress, clock, "train", "adml (seed 0)", 0, 100, 100, 30.0)
    assert left_text(progress.left) == "~0:00:06 left"
    advance(progress, clock, "test", "adml (seed 0)", 0, 150, 300, 15.0)
    assert left_text(progress.left) == "0:00:15 left", "its own pace now: 150 pairs at 0.1 s"


def test_checked_episodes_bound_the_time_that_is_left():
    clock = Clock()
    progress = RunProgress(clock)
    progress.begin(3, [{**TWO[0], "train": 0, "checked": 96}, {**TWO[1], "train": 0, "checked": 96}])
    reach = partial(advance, progress, clock, "test")
    reach("maml (seed 0)", 0, 60, 300, 60.0)
    assert left_text(progress.left) == "<0:09:00 left", "240 and 300 pairs at a second each, at most"
    reach("maml (seed 0)", 60, 96, 300, 36.0)
    assert left_text(progress.left) == "<0:08:24 left", "what is not checked has not been seen yet"
    reach("maml (seed 0)", 96, 200, 300, 10.4)
    # 100 pairs of 0.1 s, and 300 of the mean of 200 that took 106.4 s
    assert left_text(progress.left) == "~0:02:50 left"
    reach("maml (seed 0)", 200, 300, 300, 10.0)
    reach("adml (seed 0)", 0, 96, 300, 96.0)
    reach("adml (seed 0)", 96, 200, 300, 10.4)
    assert left_text(progress.left) == "0:00:10 left"


def test_work_side_by_side_takes_as_long_as_the_longest_chain():
    progress, clock = of_two()
    for done in range(51):
        clock.now = done / 10
        progress.reach("train", "maml (seed 0)", min(100, 2 * done), 100)
        progress.reach("train", "adml (seed 0)", done, 100)
    assert left_text(progress.left) == ">0:00:05 left"


def test_what_was_done_before_counts_and_makes_no_rate():
    progress, clock = of_two()
    job = progress.reach("train", "maml (seed 0)", 50, 100)
    assert progress.fraction == pytest.approx(200 / 1800)
    advance(progress, clock, "train", "maml (seed 0)", 50, 60, 100, 10.0)
    assert job.rate == pytest.approx(1.0)
    assert job.left == pytest.approx(40.0)


def test_failed_cells_leave_no_work():
    progress, clock = of_two()
    progress.reach("train", "adml (seed 0)", 3, 100)
    for _ in range(3):
        progress.cell_over(failed_of="adml (seed 0)")
    assert progress.running == []
    advance(progress, clock, "train", "maml (seed 0)", 0, 100, 100, 10.0)
    advance(progress, clock, "test", "maml (seed 0)", 0, 300, 300, 10.0)
    assert progress.fraction == 1.0
    assert left_text(progress.left) == "0:00:00 left"


def test_two_parts_of_a_suite_may_have_one_label():
    clock = Clock()
    progress = RunProgress(clock)
    progress.begin(2, [TWO[0], {**TWO[0], "train": 100}])
    advance(progress, clock, "train", "maml (seed 0)", 0, 100, 100, 10.0)
    advance(progress, clock, "test", "maml (seed 0)", 0, 300, 300, 10.0)
    assert progress.fraction == pytest.approx(700 / 1100)
    advance(progress, clock, "train", "maml (seed 0)", 0, 5, 10, 10.0)
    assert progress.fraction == pytest.approx(750 / 1100)


# -- events ----------------------------------------------------------------------------------------


class Manager(pluggy.PluginManager):
    def __init__(self):
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)

    def emit(self, event, **facts):
        """With None for what no listener to progress looks at."""
        known = inspect.signature(getattr(hookspecs, event)).parameters
        return getattr(self.hook, event)(**{**dict.fromkeys(known), **facts})


def test_progress_comes_through_the_public_events():
    tape, clock, manager = Tape(), Clock(), Manager()
    listener = ProgressListener(tape, RunProgress(clock))
    manager.register(listener)
    manager.emit("run_started", run={}, cells=6, work=TWO)
    manager.emit("training_progress", training="maml (seed 0)", step=0, steps=2, metrics={})
    clock.now = 3.0
    metrics = {"loss": 0.512, "validation_accuracy": 0.831}
    manager.emit("training_progress", training="maml (seed 0)", step=2, steps=2, metrics=metrics)
    manager.emit("cell_finished", record={})
    assert tape.lines == ["train maml (seed 0): 2 in 0:00:03, loss 0.51, val 83.1 %"]
    assert listener.progress.cells_over == 1


def test_a_training_that_goes_on_says_from_where():
    tape = Tape()
    listener = ProgressListener(tape)
    listener.training_progress("maml (seed 0)", 180, 300, {})
    listener.training_progress("maml (seed 0)", 181, 300, {})
    assert tape.lines == ["train maml (seed 0): resuming at 180 of 300"]


def test_what_is_checked_no_more_does_not_go_on_from_somewhere():
    tape, clock = Tape(), Clock()
    listener = ProgressListener(tape, RunProgress(clock))
    listener.run_started(3, [{**TWO[0], "checked": 96}])
    for done in range(0, 300, 32):
        clock.now += 1.0
        listener.evaluation_progress("maml (seed 0)", done, 300)
    assert tape.lines == []


def test_a_tracker_of_a_stranger_hears_the_same():
    finished = []

    class Tracker:
        @hookimpl
        def cell_finished(self, record):
            finished.append(record["key"])

    ours = Manager()
    ours.register(Tracker())
    with showing_progress(ours, Console(file=io.StringIO())):
        ours.emit("cell_finished", record={"key": "abc"})
    assert finished == ["abc"]
    assert len(ours.get_plugins()) == 1, "nothing of ours stays"


# -- where there is no terminal --------------------------------------------------------------------


def test_a_line_now_and_then_tells_rate_and_time_left():
    clock, out = Clock(), io.StringIO()
    listener = ProgressListener(Lines(Console(file=out, width=80), clock), RunProgress(clock))
    for step in range(0, 301):
        clock.now = step / 10
        listener.training_progress("maml", step, 600, {"loss": 0.5})
    # 10 steps a second: after 15 and 30 seconds 450 and 300 of 600 are left.
    assert out.getvalue().splitlines() == [
        "train maml: 150/600, 10.0/s, 0:00:45 left, loss 0.50",
        "train maml: 300/600, 10.0/s, 0:00:30 left, loss 0.50",
    ]


def test_a_hundred_jobs_write_no_more_lines_than_a_log_can_bear():
    clock, out = Clock(), io.StringIO()
    listener = ProgressListener(Lines(Console(file=out, width=80), clock), RunProgress(clock))
    for second in range(61):
        clock.now = float(second)
        for job in range(100):
            listener.training_progress(f"maml (seed {job})", second, 1000, {})
    assert len(out.getvalue().splitlines()) < 50


@pytest.mark.parametrize(("force", "show"), [(False, True), (True, True), (False, False)])
def test_a_file_gets_no_bars_whatever_the_environment_asks_for(force, show, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1" if force else "")
    out, ours = io.StringIO(), Manager()
    with showing_progress(ours, Console(file=out, width=80), show=show):
        ours.emit("run_started", run={}, cells=6, work=TWO)
        ours.emit("training_progress", training="maml", step=0, steps=2, metrics={})
        ours.emit("training_progress", training="maml", step=2, steps=2, metrics={})
    assert re.sub(r"\x1b\[\d*m", "", out.getvalue()) == ("train maml: 2 in 0:00:00\n" if show else "")


# -- terminals -------------------------------------------------------------------------------------

SCRIPT = """
import time
from robustbench_meta.reporting.terminal.progress import showing_progress
from tests.jobs.test_progress import Manager
manager = Manager()
work = [{"training": f"maml[x] (seed {n})", "cells": 1, "train": 9, "test": 9, "checked": 0} for n in range(100)]
with showing_progress(manager):
    manager.emit("run_started", cells=100, work=work)
    for n in range(100):
        metrics = {"loss": 1.234, "validation_accuracy": 0.567}
        manager.emit("training_progress", training=f"maml[x] (seed {n})", step=0, steps=600, metrics=metrics)
    time.sleep(0.6)
    print("from a plugin")
print("END")
"""


def on_a_terminal(columns, rows, **environment):
    """All that the script writes to a terminal of that size."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=theirs, stderr=theirs, stdin=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(theirs)
    written, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        if not select.select([ours], [], [], 0.5)[0]:
            continue
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # it has ended
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    assert child.wait() == 0, written.decode()
    return written.decode()


def lines_of(written):
    """All lines that were ever on the screen, as they were drawn."""
    lines = re.split(r"\r|\n|\x1b\[2K|\x1b\[1A", written)
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in lines]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (160, 50)])
def test_bars_fit_the_terminal_and_leave_no_trace(columns, rows):
    written = on_a_terminal(columns, rows)
    lines = lines_of(written)
    assert max(map(len, lines)) <= columns
    assert len({line.split("━")[0] for line in lines if line.startswith("train maml[x] (seed")}) == 7
    assert {line.strip() for line in lines if "others" in line} == {"and 93 others running"}
    assert any(re.match(r"all .*0 %\s+0/100 cells .* so far\s+…", line) for line in lines)
    assert any(line.rstrip().endswith("loss 1.23 val 56.7%") for line in lines)
    assert "\x1b[?25h" in written, "the cursor is shown again"
    after = written[written.rindex("from a plugin") :]
    assert after.count("\x1b[1A") >= 8, "the bars are wiped"
    assert [line for line in lines_of(after) if line][-1] == "END"


def test_no_color_and_dumb_terminals():
    plain = on_a_terminal(80, 24, NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*(3\d|38|9\d)[;m]", plain), "a colour"
    dumb = on_a_terminal(80, 24, TERM="dumb")
    assert "\x1b" not in dumb
    assert dumb.replace("\r", "").splitlines() == ["from a plugin", "END"]


@pytest.mark.parametrize("width", [80, 160])
def test_long_names_keep_their_seeds(width):
    progress = RunProgress()
    for seed in range(3):
        progress.reach("train", f"adml:first_order=true,alpha=0.01,train_attack=pgd;steps=7 (seed {seed})", 1, 10)
    out = io.StringIO()
    Console(file=out, width=width).print(draw_progress(progress, width))
    assert [f"(seed {seed})" in line for seed, line in enumerate(out.getvalue().splitlines())] == [True] * 3


def test_bars_are_no_wider_than_is_of_use_and_say_that_checks_run():
    clock, progress, out = Clock(), None, io.StringIO()
    progress = RunProgress(clock)
    progress.begin(3, [{**TWO[0], "train": 0, "checked": 40}])
    progress.reach("test", "maml (seed 0)", 10, 300)
    Console(file=out, width=240).print(draw_progress(progress, 240))
    assert max(map(len, out.getvalue().rstrip().splitlines())) <= 110
    assert "with checks" in out.getvalue()
    progress.reach("test", "maml (seed 0)", 50, 300)
    out.seek(0)
    out.truncate()
    Console(file=out, width=80).print(draw_progress(progress, 80))
    assert "checks" not in out.getvalue()


# -- notebooks -------------------------------------------------------------------------------------


def test_a_notebook_shows_one_output_that_ends_with_what_was_done(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = SCRIPT.replace("range(100)", "range(2)").replace("maml[x]", "<b>maml</b>").replace("step=0,", "step=600,")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    shown = [output for output in book.cells[0].outputs if output.output_type == "display_data"]
    assert len(shown) == 1, json.dumps(book.cells[0].outputs)
    assert shown[0].data["text/plain"].splitlines()[0].startswith("train <b>maml</b> (seed 0): 600 in 0:00:00")
    assert "<b>" not in shown[0].data["text/html"]
    assert "&lt;b&gt;maml" in shown[0].data["text/html"]
