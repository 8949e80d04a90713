"""Being told to stop, and telling where the work is."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from robustbench_meta.runtime.interrupts import Stop, Stopped

BOTH = [signal.SIGINT, signal.SIGTERM]


def test_asked_once_work_comes_to_its_next_step_asked_twice_all_of_it_ends_at_once():
    stop = Stop()
    with stop.at_once(), stop.shielded():
        stop.check()
    assert (bool(stop), stop.signal) == (False, None)
    stop.ask(signal.SIGINT)
    assert (bool(stop), stop.signal) == (True, signal.SIGINT)
    for _ in range(2):
        with pytest.raises(Stopped):
            stop.check()
    with pytest.raises(KeyboardInterrupt):
        stop.ask()
    with pytest.raises(KeyboardInterrupt), stop.shielded():
        stop.ask()
    assert stop.signal == signal.SIGINT, "the first one counts"
    assert not issubclass(Stopped, Exception), "no plugin catches it"


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
    before, ours, real = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: real(number, handler) and None)
    with Stop().listening(signals=(signal.SIGTERM,)):
        assert signal.getsignal(signal.SIGINT) is ours, "only the signals asked for are heard"
    monkeypatch.undo()
    assert real(signal.SIGTERM, before) == signal.SIG_DFL


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
    from robustbench_meta.runtime.interrupts import Stop, Stopped
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


@pytest.mark.parametrize(
    ("work", "number"), [("steps", signal.SIGINT), ("at once", signal.SIGTERM), ("deaf", signal.SIGINT)]
)
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
