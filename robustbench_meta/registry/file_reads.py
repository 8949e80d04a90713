"""Tells which files a plugin opens while it works: what is not named by an option identifies no result."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from robustbench_meta.contracts import Plugin
from robustbench_meta.errors import is_library

_CODE = {".py", ".pyc", ".so", ".pth"}
_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr")
_PACKAGES = {"site-packages", "dist-packages"}
"""What is in them is identified by its distribution's version."""
_heard: dict[int, list[str]] = {}
"""What is opened for reading, by the thread that opens it."""


@contextmanager
def files_read() -> Iterator[list[Path]]:
    """Note which files this thread reads inside; the list, filled at the end, leaves out code and libraries' files.

    What is opened without Python, such as by `safetensors.safe_open`, is not seen.
    """
    _hook()
    thread = threading.get_ident()
    before, _heard[thread] = _heard.get(thread), []
    found: list[Path] = []
    try:
        yield found
    finally:
        opened = _heard.pop(thread)
        if before is not None:
            _heard[thread] = before
            before += opened
        found += [path for path in dict.fromkeys(map(Path, opened)) if _is_data(path)]


def unnamed(plugin: Plugin, read: list[Path]) -> list[Path]:
    """Those of the files that no option of the plugin names."""
    named = {Path(value).resolve() for _, value in plugin if isinstance(value, Path)}
    return [path for path in read if path.resolve() not in named]


def _is_data(path: Path) -> bool:
    if path.suffix in _CODE or any(path.is_relative_to(folder) for folder in _SYSTEM) or is_library(str(path)):
        return False
    return _PACKAGES.isdisjoint(path.parts) and path.is_file()


@cache
def _hook() -> None:
    """Listen, for as long as the process lives: such a hook cannot be taken away."""

    def on_open(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not _heard:
            return
        names = _heard.get(threading.get_ident())
        path, mode, flags = arguments
        if names is None or not isinstance(path, (str, bytes, os.PathLike)):
            return
        if "r" in mode if isinstance(mode, str) else not flags & (os.O_WRONLY | os.O_CREAT):
            names.append(os.fsdecode(path))

    sys.addaudithook(on_open)
