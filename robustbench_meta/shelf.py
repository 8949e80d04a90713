"""Where work keeps what it must not lose: named bytes, beside the records or sent to whoever keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from robustbench_meta.errors import StorageError
from robustbench_meta.files import cannot_write, write_atomically


class Shelf(Protocol):
    """Bytes by name, such as `checkpoints/KEY.safetensors`."""

    def read(self, name: str) -> bytes | None:
        """What is kept under that name; None if nothing is."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Keep it, instead of what was there.

        Raises:
            StorageError: it cannot be written; what was there is there still.
        """
        ...

    def remove(self, name: str) -> None:
        """Keep it no longer.

        Raises:
            StorageError: it cannot be removed.
        """
        ...

    def names(self, start: str) -> list[str]:
        """All names that begin so, in order; `start` has the whole name of a folder in it."""
        ...


class Folder:
    """A shelf in a folder of the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes | None:
        """See `Shelf.read`.

        Raises:
            StorageError: it is there and cannot be read.
        """
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"{self.root / name} cannot be read: {error.strerror or error}") from error

    def write(self, name: str, data: bytes) -> None:
        """See `Shelf.write`."""
        write_atomically(self.root / name, lambda part: _write(part, data))

    def remove(self, name: str) -> None:
        """See `Shelf.remove`."""
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.root / name, error) from error

    def names(self, start: str) -> list[str]:
        """See `Shelf.names`."""
        folder, _, begin = start.rpartition("/")
        paths = sorted((self.root / folder).glob("[!.]*"))
        return [f"{folder}/{path.name}" for path in paths if path.name.startswith(begin)]


class Sent:
    """A shelf of what was sent along with the work; what is written goes back to the sender, as events.

    Args:
        things: what was sent.
        hear: is told `kept(name, data)` and `dropped(name)`.
    """

    def __init__(self, things: Mapping[str, bytes], hear: Callable[..., Any]) -> None:
        self._things, self._hear = dict(things), hear

    def read(self, name: str) -> bytes | None:
        """See `Shelf.read`."""
        return self._things.get(name)

    def write(self, name: str, data: bytes) -> None:
        """See `Shelf.write`."""
        self._things[name] = data
        self._hear("kept", name=name, data=data)

    def remove(self, name: str) -> None:
        """See `Shelf.remove`."""
        self._things.pop(name, None)
        self._hear("dropped", name=name)

    def names(self, start: str) -> list[str]:
        """See `Shelf.names`."""
        return sorted(name for name in self._things if name.startswith(start))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
