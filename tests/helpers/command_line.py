"""Runs `bench` in this process, and says what it printed."""

import contextlib
import io
import os
import re
from typing import NamedTuple
from unittest import mock

from robustbench_meta.cli import main

SMALL = ("--profile", "smoke", "--meta-steps", "2", "--episodes", "4", "--device", "cpu")


class Result(NamedTuple):
    code: int
    out: str
    err: str


def bench(*arguments, width=80):
    """Run the command in this process; its output has its line breaks and frames taken out of sentences by `told`."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.dict(os.environ, COLUMNS=str(width)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def printed(*arguments, width=80):
    """The exit code, and all that is printed."""
    shown = bench(*arguments, width=width)
    return shown.code, shown.out + shown.err


def told(text):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def listing(folder):
    return sorted((str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*"))
