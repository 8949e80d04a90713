"""A results folder: records, checkpoints, unfinished work and failures; one atomic, checked file each."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustbench_meta.engine.training_snapshots import state_name
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.experiment.checkpoints import check_checkpoint, checkpoint_name
from robustbench_meta.results.records import SCHEMA, DamagedError, pack, read_record, record_text, unpack
from robustbench_meta.runtime.atomic_files import (
    FULL,
    cannot_write,
    read_bytes,
    remove,
    remove_stale_parts,
    write_atomically,
    write_text,
)
from robustbench_meta.runtime.locks import Locks, training_lock

__all__ = ["SCHEMA", "Store", "is_done", "is_trained", "pack", "read_record", "unpack"]

_log = logging.getLogger(__name__)
_FOLDERS = ("records", "checkpoints", "progress", "failures")


class Store:
    """A results folder, and the leaderboards derived from it.

    Args:
        root: the folder.
        write: False to look only; then nothing is made, moved or checked to be writable.

    Raises:
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, root: Path, *, write: bool = True) -> None:
        self.root, self._writes = root, write
        self.locks = Locks(root / ".locks")
        self._warned: set[Path] = set()
        self._whole: dict[str, tuple[int, int]] = {}
        """The time and size of records that were read and found whole."""
        if write:
            self._make()

    def _make(self) -> None:
        try:
            for part in ("", *_FOLDERS):
                (self.root / part).mkdir(parents=True, exist_ok=True)
                remove_stale_parts(self.root / part)
            for part in ("records", "checkpoints"):
                with tempfile.TemporaryFile(dir=self.root / part):
                    pass
        except OSError as error:
            advice = "free some space" if error.errno in FULL else "choose a folder that you may write"
            a_file = isinstance(error, (FileExistsError, NotADirectoryError))
            why = "it is a file, or below one" if a_file else error.strerror or str(error)
            raise StorageError(f"--results {self.root}: cannot write there ({why}); {advice}") from error

    def has(self, key: str) -> bool:
        """Whether that cell's record is there, and whole; a damaged one is set aside.

        Raises:
            StorageError: it cannot be read, or another version of the format.
        """
        path = self._record(key)
        if not path.is_file():
            return False
        seen = path.stat()
        if self._whole.get(key) == (seen.st_mtime_ns, seen.st_size):  # read before
            return True
        if self._read(path) is None:
            return False
        self._whole[key] = seen.st_mtime_ns, seen.st_size
        return True

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write one cell's record; it has failed no longer, if it had."""
        text, key = record_text(record), record["key"]
        write_atomically(self._record(key), lambda part: write_text(part, text))
        self.forget_failure(key)

    def record(self, key: str) -> dict[str, Any] | None:
        """A cell's record; None if there is none that is whole."""
        path = self._record(key)
        return self._read(path) if path.is_file() else None

    def records(self) -> list[dict[str, Any]]:
        """All records that are whole, in the order of their keys; the others are warned of."""
        found = []
        for path in sorted((self.root / "records").glob("[!.]*.json")):
            try:
                record = self._read(path)
            except StorageError as error:
                self._warn_once(path, f"{error}; it is left out")
                continue
            if record is not None:
                found.append(record)
        return found

    def has_checkpoint(self, key: str) -> bool:
        """Whether a training's checkpoint is there, and whole; a damaged one is set aside."""
        data = read_bytes(self.root / checkpoint_name(key))
        if data is None:
            return False
        try:
            check_checkpoint(data, key)
        except BenchError as error:
            self._set_aside(self.root / checkpoint_name(key), f"checkpoint {self.root / checkpoint_name(key)}: {error}")
            return False
        return True

    def write_failure(self, key: str, failure: Mapping[str, Any]) -> None:
        """Note that a cell failed, and why."""
        text = json.dumps({"key": key, **failure}, indent=1, sort_keys=True)
        write_atomically(self._failure(key), lambda part: write_text(part, text))

    def failure(self, key: str) -> str | None:
        """Why a cell failed when it was last tried; None if it did not, or was not."""
        return self._told(key, "reason")

    def traceback(self, key: str) -> str | None:
        """That of the error that made a cell fail when it was last tried; None if there is none."""
        return self._told(key, "traceback") or None

    def _told(self, key: str, what: str) -> str | None:
        try:
            told = json.loads(self._failure(key).read_text(encoding="utf-8"))
            return str(told[what]) if told["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None  # a damaged note is none: the cell is tried again

    def forget_failure(self, key: str) -> None:
        """The cell is to be tried again, or has not failed this time."""
        remove(self._failure(key))

    def over(self) -> set[str]:
        """The keys of all cells that have a record or a failure, by the names of the files."""
        names = (name for part in ("records", "failures") for name in os.listdir(self.root / part))
        return {name.removesuffix(".json") for name in names if not name.startswith(".")}

    def parts(self, training: str) -> list[Path]:
        """The partial results of a training's evaluation."""
        return sorted((self.root / "progress").glob(f"{training}.*-*.safetensors"))

    def forget(self, cells: Iterable[str], trainings: Iterable[str]) -> None:
        """Remove all that is kept of these cells and trainings, but for what another run is at work on.

        Raises:
            StorageError: it cannot be removed.
        """
        for key in cells:
            remove(self._record(key))
            self.forget_failure(key)
        for key in trainings:
            with self.locks.tried(training_lock(key)) as free:
                for path in (self.root / checkpoint_name(key), self.root / state_name(key)) if free else ():
                    remove(path)
            for path in self.parts(key):
                remove(path)

    def _record(self, key: str) -> Path:
        return self.root / "records" / f"{key}.json"

    def _failure(self, key: str) -> Path:
        return self.root / "failures" / f"{key}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return read_record(path)
        except DamagedError as error:
            self._set_aside(path, str(error))
            return None

    def _set_aside(self, path: Path, what: str) -> None:
        """Move a damaged file out of the way, and say so; where nothing is written, leave it and say so once."""
        if not self._writes:
            self._warn_once(path, f"{what}: it is left out; if its cell is asked for, it is computed again")
            return
        place = self.root / "damaged" / f"{time.strftime('%Y%m%d-%H%M%S')}-{path.name}"
        try:
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
        except FileNotFoundError:
            return  # another process has set it aside
        except OSError as error:
            raise cannot_write(place, error) from error
        _log.warning("%s: it was set aside as %s, and is computed again if it is asked for", what, place)

    def _warn_once(self, path: Path, message: str) -> None:
        if path not in self._warned:
            self._warned.add(path)
            _log.warning("%s", message)


def is_done(root: Path, key: str) -> bool:
    """Whether a results folder holds that cell, whole; touches nothing."""
    path = root / "records" / f"{key}.json"
    try:
        return path.is_file() and bool(read_record(path))
    except BenchError:
        return False


def is_trained(root: Path, key: str) -> bool:
    """Whether a results folder holds that training's checkpoint; touches nothing, and does not look inside."""
    return (root / checkpoint_name(key)).is_file()
