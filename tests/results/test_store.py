"""A results folder keeps what is whole, sets aside what is damaged, and leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_meta.engine.training_snapshots import state_name
from robustbench_meta.errors import StorageError
from robustbench_meta.experiment.checkpoints import Trained, checkpoint_bytes, checkpoint_name
from robustbench_meta.results.records import record_text
from robustbench_meta.results.store import Store, is_done, is_trained
from robustbench_meta.runtime import atomic_files
from robustbench_meta.runtime.atomic_files import write_atomically, write_bytes
from robustbench_meta.runtime.digest import digest_of
from tests.helpers.records import record

RECORD, OTHER = record(np.eye(4, 6, dtype=bool)), record(np.eye(4, 6, dtype=bool), attack="fgsm")
KEY = str(RECORD["key"])
ABOUT = {"seed": 0}
TRAINING = digest_of(ABOUT)
CHECKPOINT = checkpoint_bytes(Trained({"w": torch.arange(3.0)}), ABOUT)
AGAIN = "then rerun the same command to resume"


def part_of(training: str, episodes: str) -> str:
    return f"progress/{training}.{episodes}.how.which.safetensors"


@pytest.fixture
def store(tmp_path):
    """A results folder with two records and a checkpoint."""
    store = Store(tmp_path / "results")
    store.write_record(RECORD)
    store.write_record(OTHER)
    write_bytes(store.root / checkpoint_name(TRAINING), CHECKPOINT)
    return store


def tree(root: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    """Change one character of the record's answers, or the last byte of a checkpoint."""
    data = path.read_bytes()
    where = data.index(b'"bits": "') + 9 if path.suffix == ".json" else len(data) - 1
    path.write_bytes(data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :])


def test_what_is_whole_is_there(store):
    assert store.has(KEY)
    assert store.has_checkpoint(TRAINING)
    assert [each["key"] for each in store.records()] == sorted([KEY, str(OTHER["key"])])
    assert is_done(store.root, KEY)
    assert is_trained(store.root, TRAINING)
    assert not store.has("0" * 16)
    assert not store.has_checkpoint("0" * 16)
    assert not is_done(store.root, "0" * 16)
    assert not is_trained(store.root, "0" * 16)
    assert not (store.root / "damaged").exists()


def test_a_folder_that_is_only_looked_at_is_not_made(tmp_path):
    store = Store(tmp_path / "none", write=False)
    assert (store.records(), store.has(KEY), store.has_checkpoint(TRAINING), store.failure(KEY)) == (
        [],
        False,
        False,
        None,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["record", "checkpoint"])
def test_a_damaged_file_is_set_aside_with_one_message_and_can_be_made_again(what, store, caplog):
    name = f"records/{KEY}.json" if what == "record" else checkpoint_name(TRAINING)
    path = store.root / name
    damage(path)
    content = path.read_bytes()
    there = store.has if what == "record" else store.has_checkpoint
    key = KEY if what == "record" else TRAINING
    with caplog.at_level(logging.WARNING):
        assert not there(key)
        assert not there(key)
    [place] = (store.root / "damaged").iterdir()
    assert place.read_bytes() == content
    assert not path.exists()
    [message] = caplog.messages
    assert f"{what} {path}" in message
    assert "its checksum does not fit its content" in message
    assert message.endswith(f"it was set aside as {place}, and is computed again if it is asked for")
    assert len(store.records()) == (1 if what == "record" else 2)
    if what == "record":
        store.write_record(RECORD)
    else:
        write_bytes(store.root / name, CHECKPOINT)
    assert there(key)


def test_records_sets_aside_what_is_damaged_and_gives_the_rest(store, caplog):
    damage(store.root / "records" / f"{KEY}.json")
    (store.root / "records" / "half.json").write_text(record_text(OTHER)[:100])
    with caplog.at_level(logging.WARNING):
        assert [each["key"] for each in store.records()] == [OTHER["key"]]
    assert len(caplog.messages) == 2
    assert {path.name.split("-")[-1] for path in (store.root / "damaged").iterdir()} == {f"{KEY}.json", "half.json"}


def test_where_nothing_is_written_a_damaged_file_stays_and_is_told_of_once(store, caplog):
    damage(store.root / "records" / f"{KEY}.json")
    damage(store.root / checkpoint_name(TRAINING))
    before, looking = tree(store.root), Store(store.root, write=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(looking.records()) == 1
            assert not looking.has(KEY)
            assert not looking.has_checkpoint(TRAINING)
            assert not is_done(store.root, KEY)
    assert tree(store.root) == before
    assert len(caplog.messages) == 2
    assert all("it is left out; if its cell is asked for, it is computed again" in each for each in caplog.messages)


def test_the_checkpoint_of_another_training_is_set_aside(store, caplog):
    write_bytes(store.root / checkpoint_name("0" * 16), CHECKPOINT)
    assert not store.has_checkpoint("0" * 16)
    assert "it is of another training than its name says" in caplog.text


def test_the_record_of_a_newer_version_is_never_moved(store, caplog):
    path = store.root / "records" / f"{KEY}.json"
    path.write_text(json.dumps({**RECORD, "schema": 4}))
    with caplog.at_level(logging.WARNING):
        assert len(store.records()) == len(store.records()) == 1
    assert caplog.messages == [
        f"record {path} has schema 4, of another version; this one knows 3: use that version, or another "
        "--results; it is left out"
    ]
    with pytest.raises(StorageError, match="of another version"):
        store.has(KEY)
    assert path.is_file()


def test_a_record_that_cannot_be_read_just_now_is_not_taken_for_damaged(store, monkeypatch, caplog):
    def failing(self: Path, *_: object, **__: object) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = tree(store.root)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", failing)
        assert store.records() == []
        with pytest.raises(StorageError, match=r"cannot (be read|read .*): Input/output error"):
            store.has(KEY)
    assert tree(store.root) == before
    assert len(store.records()) == 2
    assert len(caplog.messages) == 2


def test_a_record_that_another_process_has_set_aside_in_the_meantime_is_simply_not_there(store, monkeypatch, caplog):
    path = store.root / "records" / f"{KEY}.json"
    damage(path)
    replace = Path.replace

    def late(self: Path, target: Path) -> Path:
        self.unlink()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    assert not store.has(KEY)
    assert caplog.messages == []


def test_failures_are_told_until_the_cell_is_done_or_forgotten(store):
    assert store.failure("a") is None
    store.write_failure("a", {"reason": "out of memory: é ☃", "attempts": 2})
    store.write_failure(KEY, {"reason": "it hung"})
    assert Store(store.root).failure("a") == "out of memory: é ☃"
    assert json.loads((store.root / "failures" / "a.json").read_text())["attempts"] == 2
    store.write_record(RECORD)
    assert store.failure(KEY) is None
    assert store.failure("a") is not None
    store.forget_failure("a")
    store.forget_failure("a")
    assert store.failure("a") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"key": "b", "reason": "x"}', '{"key": "a"}', "[" * 10**5])
def test_a_damaged_note_of_a_failure_is_none(text, store):
    (store.root / "failures" / "a.json").write_text(text)
    assert store.failure("a") is None


def test_forgetting_removes_all_of_these_cells_and_trainings_and_nothing_else(store):
    mine = [checkpoint_name(TRAINING), state_name(TRAINING), part_of(TRAINING, "0-8"), part_of(TRAINING, "8-16")]
    others = [checkpoint_name("x"), state_name("x"), part_of("x", "0-8"), state_name(TRAINING + "x")]
    for name in mine[1:] + others:
        write_bytes(store.root / name, b"bytes")
    store.write_failure(KEY, {"reason": "it hung"})
    store.write_failure("other", {"reason": "it hung"})
    before = set(tree(store.root))
    store.forget([KEY, "unknown"], [TRAINING, "unheard"])
    assert before - set(tree(store.root)) == {*mine, f"records/{KEY}.json", f"failures/{KEY}.json"}


@pytest.mark.parametrize("folder", ["", "records", "checkpoints", "progress", "failures"])
def test_temporary_files_of_killed_processes_are_removed_after_an_hour(folder, store):
    ages = {"old": 3700.0, "young": 3500.0, "new": 0.0}
    parts = {name: store.root / folder / f".{name}.json.abc.part" for name in ages}
    visible = store.root / folder / "mine.part"
    for name, part in [*parts.items(), ("old", visible)]:
        part.write_text("half")
        os.utime(part, (time.time() - ages[name],) * 2)
    Store(store.root, write=False)
    assert all(part.exists() for part in parts.values())
    Store(store.root)
    assert {name: part.exists() for name, part in parts.items()} == {"old": False, "young": True, "new": True}
    assert visible.exists()
    assert len(store.records()) == 2


FAULTS = [
    (errno.ENOSPC, "free some space"),
    (errno.EDQUOT, "free some space"),
    (errno.EIO, "see to it that this folder can be written, or choose another"),
    (errno.EROFS, "see to it that this folder can be written, or choose another"),
]


@pytest.mark.parametrize(("number", "advice"), FAULTS, ids=str)
@pytest.mark.parametrize("where", ["mkstemp", "write_text", "fsync", "chmod", "replace"])
def test_an_error_in_the_middle_of_a_write_leaves_what_was_there_and_nothing_else(
    where, number, advice, store, monkeypatch
):
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    before = tree(store.root)
    owner = {"mkstemp": atomic_files.tempfile, "fsync": os}.get(where, Path)
    with monkeypatch.context() as patched:
        patched.setattr(owner, where, failing)
        with pytest.raises(StorageError) as caught:
            store.write_record({**RECORD, "device": "another"})
    path = store.root / "records" / f"{KEY}.json"
    assert str(caught.value) == f"cannot write {path}: {os.strerror(number)}; {advice}, {AGAIN}"
    assert tree(store.root) == before
    assert store.has(KEY)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_other_errors_in_the_middle_of_a_write_leave_nothing_behind_either(error, tmp_path):
    def failing(part: Path) -> None:
        part.write_text("half")
        raise error

    (tmp_path / "file").write_text("before")
    with pytest.raises(error):
        write_atomically(tmp_path / "file", failing)
    assert tree(tmp_path) == {"file": b"before"}


def test_a_write_is_on_the_disk_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomically(tmp_path / "new" / "file", lambda part: atomic_files.write_text(part, "é"))
    assert done == ["file", "rename", "folder"]
    assert (tmp_path / "new" / "file").read_bytes() == "é\n".encode()


def test_a_folder_that_cannot_be_made_is_refused_in_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(StorageError) as caught:
            Store(root)
        assert str(caught.value).startswith(f"--results {root}: cannot write there (")
        assert str(caught.value).endswith("); choose a folder that you may write")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_in_one_message(store):
    (store.root / "records").chmod(0o500)
    try:
        with pytest.raises(StorageError, match=r"--results .*: cannot write there \(Permission denied\); choose"):
            Store(store.root)
        with pytest.raises(StorageError, match="Permission denied; see to it that this folder can be written"):
            store.write_record(RECORD)
        assert len(Store(store.root, write=False).records()) == 2
    finally:
        (store.root / "records").chmod(0o700)


@pytest.mark.parametrize(("number", "advice"), [
    (errno.EACCES, "choose a folder that you may write"), (errno.EROFS, "choose a folder that you may write"),
    (errno.ENOSPC, "free some space"),
])  # fmt: skip
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(number, advice, store, monkeypatch):
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("robustbench_meta.results.store.tempfile.TemporaryFile", failing)
    with pytest.raises(StorageError) as caught:
        Store(store.root)
    assert str(caught.value) == f"--results {store.root}: cannot write there ({os.strerror(number)}); {advice}"
