"""Being told to stop, and telling where the work is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from robustbench_meta.stopping import Stop, Stopped
from robustbench_meta.whereabouts import Whereabouts

BOTH = [signal.SIGINT, signal.SIGTERM]


def test_nobody_has_told_it_to_stop_at_first():
    stop = Stop()
    stop.check()
    with stop.at_once(), stop.shielded():
        stop.check()
    assert not stop
    assert stop.signal is None


def test_told_once_work_comes_to_its_next_step():
    stop = Stop()
    stop.ask(signal.SIGINT)
    assert stop
    assert stop.signal == signal.SIGINT
    for _ in range(2):
        with pytest.raises(Stopped):
            stop.check()


def test_told_twice_all_work_ends_at_once():
    stop = Stop()
    stop.ask()
    with pytest.raises(KeyboardInterrupt):
        stop.ask()
    with pytest.raises(KeyboardInterrupt), stop.shielded():
        stop.ask()
    assert stop.signal == signal.SIGTERM, "the first one counts"


def test_work_that_ends_at_once_does_and_does_not_begin_again():
    stop, seen = Stop(), []
    with pytest.raises(Stopped), stop.at_once():  # noqa: PT012  # what comes after is the point
        stop.ask()
        seen.append("after")
    with pytest.raises(Stopped), stop.at_once():
        seen.append("again")
    assert seen == []


def test_shielded_work_goes_on_to_its_end_but_not_beyond():
    stop, seen = Stop(), []
    with pytest.raises(Stopped), stop.at_once():  # noqa: PT012  # what comes after is the point
        with stop.shielded():
            with stop.shielded():
                stop.ask()
            seen.append("inside")
        seen.append("beyond")
    assert seen == ["inside"]


def test_a_shield_without_work_that_ends_at_once_stops_nothing():
    stop = Stop()
    with stop.shielded():
        stop.ask()
    assert stop


def test_after_the_work_that_ends_at_once_being_told_raises_nothing():
    stop = Stop()
    with stop.at_once():
        pass
    with pytest.raises(ValueError, match="mine"), stop.at_once(), stop.shielded():
        raise ValueError("mine")
    stop.ask()
    assert stop


def test_no_plugin_catches_it():
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize("number", BOTH)
def test_signals_are_heard_inside_and_their_handlers_are_as_before_outside(number):
    before, told, stop = [signal.getsignal(each) for each in BOTH], [], Stop()
    with stop.listening(lambda: told.append("once")) as same:
        assert same is stop
        signal.raise_signal(number)
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert told == ["once"]
    assert [signal.getsignal(each) for each in BOTH] == before


def test_handlers_are_as_before_when_the_work_inside_fails():
    before = [signal.getsignal(each) for each in BOTH]
    with pytest.raises(Stopped), Stop().listening() as stop, stop.at_once():
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(each) for each in BOTH] == before


def test_a_listener_inside_another_hears_alone():
    outer, inner = Stop(), Stop()
    with outer.listening(), inner.listening():
        signal.raise_signal(signal.SIGTERM)
    assert inner
    assert not outer


def test_a_handler_that_was_not_set_by_python_gives_way_to_the_default(monkeypatch):
    before, real = signal.getsignal(signal.SIGTERM), signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: real(number, handler) and None)
    with Stop().listening(signals=(signal.SIGTERM,)):
        pass
    monkeypatch.undo()
    assert real(signal.SIGTERM, before) == signal.SIG_DFL


def test_only_the_signals_asked_for_are_heard():
    before = signal.getsignal(signal.SIGINT)
    with Stop().listening(signals=(signal.SIGTERM,)):
        assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_listens():
    before, seen = [signal.getsignal(each) for each in BOTH], []

    def work() -> None:
        with Stop().listening() as stop:
            seen.append(([signal.getsignal(each) for each in BOTH], bool(stop)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


WORK = textwrap.dedent("""
    import sys, time
    from robustbench_meta.stopping import Stop, Stopped
    stop = Stop()
    with stop.listening(lambda: print("told", flush=True)):
        try:
            if sys.argv[1] == "steps":
                print("ready", flush=True)
                while True:
                    time.sleep(0.01)
                    stop.check()
            elif sys.argv[1] == "at once":
                with stop.at_once():
                    print("ready", flush=True)
                    time.sleep(60)
            else:
                print("ready", flush=True)
                time.sleep(60)
        except Stopped:
            print("stopped by", stop.signal, flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
""")


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("work", ["steps", "at once", "deaf"])
def test_a_process_that_gets_a_signal_ends_as_its_work_may(work, number):
    with subprocess.Popen([sys.executable, "-c", WORK, work], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "told\n"
        if work == "deaf":  # neither steps nor work that may end at once: only a second signal ends it
            process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(30) == 0
    assert rest == ("interrupted\n" if work == "deaf" else f"stopped by {int(number)}\n")


def forked(work) -> int:
    """A process that does this and then ends, without cleaning up; its number."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def until(true) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_where_processes_are_is_seen_from_outside():
    where = Whereabouts(3, ["a", "b"])
    assert where.under_way() == {}
    began = time.monotonic()
    children = []
    for portion, cell in enumerate(["b", "b", "a"]):

        def work(portion: int = portion, cell: str = cell) -> None:
            with where.at(portion, "a" if cell == "b" else "b"):
                time.sleep(0.1)
            with where.at(portion, cell):
                time.sleep(60)

        children.append(forked(work))
    until(lambda: [where.cell(portion) for portion in range(3)] == ["b", "b", "a"])
    time.sleep(0.2)
    found, longest = where.under_way(), time.monotonic() - began
    assert found["a"] >= 0.3, "0.2 s there now, and 2 × 0.1 s that two others spent"
    assert found["a"] <= 3 * longest
    assert found["b"] >= 0.5, "twice 0.2 s there now, and 0.1 s that another spent"
    assert found["b"] <= 3 * longest
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)
    assert where.cell(0) == "b", "a dead process stays where it was"
    before = where.under_way()["b"]
    time.sleep(0.05)
    assert where.under_way()["b"] >= before + 2 * 0.05
    where.leave(0)
    assert where.cell(0) is None
    assert set(where.under_way()) == {"a", "b"}
    for child in children[1:]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for portion in (1, 2):
        where.leave(portion)
    assert where.under_way() == {}


def test_seconds_add_up_over_portions_and_visits():
    where = Whereabouts(2, ["a", "b"])
    for portion in (0, 1, 1):
        with where.at(portion, "a"):
            time.sleep(0.05)
    with where.at(0, "a"):
        spent = where.under_way()["a"]
    assert 0.15 <= spent < 5
    with where.at(0, "b"):
        assert where.under_way()["b"] < 0.05
    assert where.under_way() == {}


def test_a_process_that_fails_leaves_its_cell():
    where = Whereabouts(1, ["a"])
    with pytest.raises(ValueError, match="mine"), where.at(0, "a"):
        raise ValueError("mine")
    assert where.cell(0) is None


def test_only_the_process_itself_hears_of_its_own_moves():
    where, moves = Whereabouts(2, ["a"]), []
    where.moved = lambda: moves.append(where.cell(0))
    read, write = os.pipe()

    def work() -> None:
        with where.at(1, "a"):
            pass
        os.write(write, bytes([len(moves)]))

    os.waitpid(forked(work), 0)
    assert os.read(read, 1) == b"\0", "nothing was heard in the child"
    assert moves == []
    with where.at(0, "a"):
        assert moves == ["a"]
    assert moves == ["a", None]
    os.close(read)
    os.close(write)
