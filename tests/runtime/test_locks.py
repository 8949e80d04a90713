"""Several processes in one results folder: who has a lock, and who gets it when its holder is no more."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustbench_meta.errors import StorageError
from robustbench_meta.runtime import locks
from robustbench_meta.runtime.locks import LEASE, Locks

SECONDS = 1.5
"""Of a lease, here."""
HOLDER = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from robustbench_meta.runtime import locks
    locks.LEASE_SECONDS = float(sys.argv[2])
    locks = locks.Locks(Path(sys.argv[1]))
    for line in sys.stdin:
        order, _, name = line.strip().partition(" ")
        if order == "take":
            print(locks.take(name), flush=True)
        elif order == "fork":
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            print(child, flush=True)
        else:
            print(getattr(locks, order)(*[name][: bool(name)]), flush=True)
""")
COUNTER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from robustbench_meta.runtime import locks
    locks.LEASE_SECONDS = 30.0
    locks, path = locks.Locks(Path(sys.argv[1])), Path(sys.argv[2])
    for _ in range(int(sys.argv[3])):
        with locks.alone("counter"):
            count = int(path.read_text())
            path.write_text("")
            path.write_text(str(count + 1))
""")


@pytest.fixture(params=["system", "lease"])
def kind(request, monkeypatch):
    """Locks of both kinds; leases are short ones."""
    locks._hard_locks.cache_clear()
    monkeypatch.delenv(LEASE, raising=False)
    if request.param == "lease":
        monkeypatch.setenv(LEASE, "lease")
    monkeypatch.setattr(locks, "LEASE_SECONDS", SECONDS)
    yield request.param
    locks._hard_locks.cache_clear()


leases = pytest.mark.parametrize("kind", ["lease"], indirect=True)
system = pytest.mark.parametrize("kind", ["system"], indirect=True)


class Other:
    """Another process with locks in the same folder, that does what it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, order: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def another(folder: Path) -> Iterator[Other]:
    command = [sys.executable, "-c", HOLDER, str(folder), str(SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Other(process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def seconds_until(true, limit: float = 20.0) -> float:
    """How long it takes until that holds."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < limit
        time.sleep(0.02)
    return time.monotonic() - began


def test_only_one_process_has_a_lock_at_a_time(kind, tmp_path):
    locks = Locks(tmp_path / ".locks")
    with another(tmp_path / ".locks") as other:
        assert locks.take("a")
        assert other("take a") == "False"
        assert other("take b") == "True"
        assert not locks.take("b")
        locks.give_back("a")
        assert other("take a") == "True"
        assert not locks.take("a")
        assert other("give_back_all") == "None"
        assert locks.take("a")
        assert locks.take("b")
        locks.give_back_all()
        assert other("take a") == "True"


def test_holders_in_one_process_exclude_each_other_and_themselves(kind, tmp_path):
    one, other = Locks(tmp_path / ".locks"), Locks(tmp_path / ".locks")
    assert [one.take(name) for name in "aab"] == [True, False, True]
    assert not other.take("a")
    one.give_back("a")
    with pytest.raises(KeyError):
        one.give_back("a")
    assert other.take("a")
    other.give_back_all()


@pytest.mark.parametrize("forked", [False, True], ids=["alone", "with forked children that live"])
def test_a_lock_is_free_when_its_holder_was_killed(kind, forked, tmp_path):
    locks = Locks(tmp_path / ".locks")
    with another(tmp_path / ".locks") as other:
        assert other("take a") == "True"
        child = int(other("fork ")) if forked else None
        try:
            assert not locks.take("a")
            other.kill()
            assert seconds_until(lambda: locks.take("a")) < (1.0 if kind == "system" else SECONDS + 5.0)
        finally:
            if child is not None:
                os.kill(child, signal.SIGKILL)
    locks.give_back("a")


@leases
def test_a_lease_lives_as_long_as_its_holder_does(kind, tmp_path):
    with another(tmp_path / ".locks") as other:
        assert other("take a") == "True"
        locks, ends = Locks(tmp_path / ".locks"), time.monotonic() + 2.5 * SECONDS
        while time.monotonic() < ends:
            assert not locks.take("a")
            time.sleep(0.1)


@leases
def test_a_lease_that_nobody_renews_is_seen_to_expire_by_who_asks_now_and_then(kind, tmp_path):
    locks = Locks(tmp_path / ".locks")
    with another(tmp_path / ".locks") as other:
        assert other("take a") == "True"
        assert not locks.take("a")
        other.process.send_signal(signal.SIGSTOP)  # it lives, and is silent: as on a machine that nobody reaches
        time.sleep(SECONDS / 2)
        assert not locks.take("a"), "not long enough"
        assert seconds_until(lambda: locks.take("a")) < 2 * SECONDS
        other.process.send_signal(signal.SIGCONT)
        assert other("give_back a") == "None", "who lost it may still give it back"
        assert other("take a") == "False", "but it is the other's now"
        locks.give_back("a")
        assert other("take a") == "True"


@leases
def test_a_lease_of_another_length_is_a_clear_error(kind, tmp_path, monkeypatch):
    with another(tmp_path / ".locks") as other:
        assert other("take a") == "True"
        monkeypatch.setattr(locks, "LEASE_SECONDS", 2 * SECONDS)
        with pytest.raises(StorageError, match="another version of this program is at work"):
            Locks(tmp_path / ".locks").take("a")


def test_waiting_for_a_lock_ends_when_it_is_given_back(kind, tmp_path):
    locks = Locks(tmp_path / ".locks")
    with another(tmp_path / ".locks") as other:
        assert other("take a") == "True"
        assert other.process.stdin is not None
        began = time.monotonic()
        code = "import time; time.sleep(0.4); print('give_back a', flush=True)"
        with subprocess.Popen([sys.executable, "-c", code], stdout=other.process.stdin), locks.alone("a"):
            assert time.monotonic() - began >= 0.4


def test_an_error_inside_gives_the_lock_back_and_is_not_taken_for_one_of_the_lock(kind, tmp_path):
    locks, other = Locks(tmp_path / ".locks"), Locks(tmp_path / ".locks")
    for _ in range(2):
        with pytest.raises(PermissionError, match="mine"), locks.alone("a"):
            raise PermissionError("mine")
    assert other.take("a")
    other.give_back("a")


def test_no_count_is_lost_among_processes_that_take_turns(kind, tmp_path):
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", COUNTER, str(tmp_path / ".locks"), str(tmp_path / "count"), "8"]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "24"


def test_files_left_over_do_no_harm_and_hardly_any_are_left(kind, tmp_path):
    folder = tmp_path / ".locks"
    locks = Locks(folder)
    for _ in range(2):
        with locks.alone("a"), locks.alone("b"):
            assert {path.name for path in folder.iterdir()} >= (
                {"a.lock", "b.lock"} if kind == "system" else {"a.lease", "b.lease"}
            )
    left = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert left == ({"a.lock": 0, "b.lock": 0} if kind == "system" else {})
    for name in ("c.lock", "c.lease"):
        (folder / name).write_text("left over, of whoever")
        os.utime(folder / name, (0, 0))
    assert seconds_until(lambda: locks.take("c")) < 5.0
    locks.give_back("c")


def without_flock(number: int):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@system
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_on_file_systems_without_locks_there_are_leases_and_one_warning(number, kind, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", without_flock(number))
    one, other = Locks(tmp_path / ".locks"), Locks(tmp_path / ".locks")
    with caplog.at_level(logging.WARNING):
        assert one.take("a")
        assert not other.take("a")
        assert other.take("b")
        one.give_back("a")
        assert other.take("a")
        other.give_back_all()
    assert caplog.messages == [
        f"{tmp_path}: its file system has no locks ({os.strerror(number)}): several runs in it tell by leases who "
        "does what"
    ]
    assert list((tmp_path / ".locks").iterdir()) == []


@system
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_an_error_of_the_disk_is_not_taken_for_a_file_system_without_locks(number, kind, tmp_path, monkeypatch):
    locks = Locks(tmp_path / ".locks")
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", without_flock(number))
        with pytest.raises(StorageError, match=rf"cannot write .*a\.lock: {os.strerror(number)}"):
            locks.take("a")
    assert locks.take("a"), "it is over"
    locks.give_back("a")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_lock_file_that_cannot_be_made_is_a_clear_error(kind, number, tmp_path, monkeypatch):
    locks = Locks(tmp_path / ".locks")
    assert locks.take("b")
    before = os.open

    def opened(path: object, flags: int, *more: object, **named: object) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return before(path, flags, *more, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        with pytest.raises(StorageError, match=f"cannot write .*: {os.strerror(number)}"):
            locks.take("a")
    assert locks.take("a")
    locks.give_back_all()


def test_a_folder_that_cannot_be_made_is_a_clear_error(kind, tmp_path):
    (tmp_path / ".locks").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write .*a\.lock"):
        Locks(tmp_path / ".locks").take("a")


@pytest.mark.parametrize("told", [False, True], ids=["", "after_fork"])
def test_a_forked_child_releases_nothing_of_its_parent(kind, told, tmp_path):
    locks = Locks(tmp_path / ".locks")
    assert locks.take("a")
    child = os.fork()
    if child == 0:
        wrong = False
        if told:
            locks.after_fork()
            wrong = locks.take("a") or not locks.take("b")
        else:
            locks.give_back_all()
        os._exit(int(wrong))
    assert os.waitpid(child, 0)[1] == 0
    with another(tmp_path / ".locks") as other:
        assert other("take a") == "False"
        assert other("take b") == "True" or kind == "lease", "it ended with its holder"
        locks.give_back("a")
        assert other("take a") == "True"
