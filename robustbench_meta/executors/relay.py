"""What Ray runs on a node: starts the process that does the work there, and passes messages on, unread.

The work has a process of its own: there, SIGTERM can end it in good order, its death is told from the node's, and
processes can be forked. This module is sent to the nodes by value and needs nothing but Python and Ray, so that it
runs also where robustbench_meta is missing, and says so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

_BATCH_SECONDS = 0.05
"""How long messages are waited for that go with the first one."""
_MOST_AT_ONCE = 2**26
"""The bytes of messages that are passed on together, unless one is longer."""
_ENDS_IN = 5.0
"""The seconds in which a process that has closed its pipe is expected to end."""


class Relay:
    """One worker of a run, as the cluster sees it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # for as long as the child lives

    def about(self, distributions: Sequence[str]) -> tuple[str, str, dict[str, str]]:
        """The node's number and address, and what is installed there."""
        import ray  # noqa: PLC0415  # sent by value: imports are made where it runs

        found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
        for name in distributions:
            try:
                found[name] = importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed"
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # of Ray
        return ray.get_runtime_context().get_node_id(), address, found

    def begin(self, entry: str, *messages: Any) -> None:
        """Start the process.

        Args:
            entry: `module:function`, called there with the number of the file of its pipe.
            messages: bytes or arrays, the first that it is sent.
        """
        module, _, function = entry.partition(":")
        self._pipe, theirs = multiprocessing.Pipe()
        code = f"from {module} import {function}; {function}({theirs.fileno()})"
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE, stdout=self._errors, stderr=self._errors,
            )  # fmt: skip
        try:
            for message in messages:
                self._pipe.send_bytes(memoryview(message).cast("B"))
        except OSError:
            return  # it is gone: `hear` tells

    def hear(self, seconds: float) -> tuple[list[bytes], int | None, str]:
        """Messages of the process, waited for so long; its exit code once it is gone, and what it said last."""
        assert self._pipe is not None
        assert self._child is not None
        messages: list[bytes] = []
        try:
            while self._pipe.poll(_BATCH_SECONDS if messages else seconds):
                messages.append(self._pipe.recv_bytes())
                if sum(map(len, messages)) > _MOST_AT_ONCE:
                    break
        except (EOFError, OSError):
            return messages, self._buried(), self._said()
        return messages, None, ""

    def send(self, message: bytes) -> None:
        """Pass a message to the process."""
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(message)
        except OSError:
            return  # it is gone: `hear` tells

    def terminate(self) -> None:
        """Tell the process to keep what is under way, and end."""
        if self._child is not None:
            self._child.terminate()

    def kill(self) -> None:
        """End the process at once."""
        if self._child is not None:
            self._child.kill()

    def _buried(self) -> int:
        assert self._child is not None
        try:
            return self._child.wait(_ENDS_IN)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-4000:].decode(errors="replace").strip()
