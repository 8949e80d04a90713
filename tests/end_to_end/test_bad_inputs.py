"""Every row of bad_inputs/table.md: the command exits with that code and that message, and leaves no file."""

import contextlib
import importlib.util
import io
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from robustbench_meta.cli import main
from tests.end_to_end.bad_inputs.world import make_world

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "tests" / "end_to_end" / "bad_inputs" / "table.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?P<wrong>.+?) \| `(?P<typed>.+?)` \| (?P<code>\d) \| (?P<told>.*?) ?\|$", re.MULTILINE)
VARIABLES = dict(re.findall(r'^([A-Z]+)="(.*)"$', PAGE, re.MULTILINE))
SHELL = re.compile(r"[<>|]|\$'|^(OMP_NUM_THREADS|HOME)=")
"""What a process of its own is needed for."""


class Row(NamedTuple):
    """One line of a table."""

    wrong: str
    typed: str
    code: int
    told: str

    @property
    def message(self):
        """What is told, without its marks; None: nothing."""
        found = re.fullmatch(r"(`+) ?(.*?) ?\1", self.told)
        return found[2] if found else None

    @property
    def words(self):
        """What is typed, variables filled in."""
        return filled(self.typed)


class Told(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def filled(text):
    """With the page's variables in it."""
    while found := re.search(r"\$([A-Z]+)\b", text):
        text = text.replace(found[0], VARIABLES[found[1]])
    return text


def rows():
    return [
        Row(found["wrong"], found["typed"].replace(r"\|", "|"), int(found["code"]), found["told"].replace(r"\|", "|"))
        for found in ROW.finditer(PAGE)
    ]


def prose(text):
    """Without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def split(line):
    """The variables before a command, and its arguments."""
    environment, words = {}, shlex.split(line)
    while words[0] != "bench":
        name, _, environment[name] = words.pop(0).partition("=")
    return environment, words[1:]


def here(line, environment):
    """Run the command in this process; warnings go to stderr, as they do outside of pytest."""
    own, arguments = split(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    handler = logging.StreamHandler(err)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with (
            mock.patch.dict(os.environ, {**environment, **own}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main(arguments)
            except SystemExit as end:
                code = int(end.code or 0)
    finally:
        logging.getLogger().removeHandler(handler)
    return Told(code, out.getvalue(), err.getvalue())


def outside(line, environment):
    """Run the command in a shell."""
    bench = '"$PYTHON" -c "from robustbench_meta.cli import main; main()" "$@"'
    done = subprocess.run(
        ["bash", "-c", f"bench() {{ {bench}; }}\n{line}"], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **environment},
    )  # fmt: skip
    return Told(done.returncode, done.stdout, done.stderr)


def run(row, environment):
    return (outside if SHELL.search(row.words) else here)(row.words, environment)


def files(folder):
    """By their path: when each was changed; what Python compiles plugins to does not count."""
    found, folders = {}, [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and entry.name != "__pycache__":
                    folders.append(entry.path)
                elif entry.is_file():
                    found[entry.path[len(str(folder)) + 1 :]] = entry.stat(follow_symlinks=False).st_mtime_ns
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder with all that is broken, never run in."""
    root = tmp_path_factory.mktemp("bad inputs")
    done = here(filled(f"bench run -l maml -a fgsm $SMALL --results {shlex.quote(str(root / 'finished'))}"), {})
    assert done.code == 0, done.err
    make_world(root / "whole", root / "finished")
    return root / "whole"


@pytest.fixture(scope="module")
def copies(whole):
    """Gives a copy of it; a new one if the last has been changed."""
    place = whole.parent / "copy"
    known = {}

    def copy():
        now = files(place) if known else {}
        if not known or any(now.get(path) != state for path, state in known.items()):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(whole, place)
            known.clear()
            known.update(files(place))
        for path in set(map(str, place.iterdir())) - {str(place / each.name) for each in whole.iterdir()}:
            shutil.rmtree(path)
        return place

    return copy


@pytest.fixture
def place(copies, monkeypatch):
    folder = copies()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def environment(place):
    return {"COLUMNS": "80", "ROBUSTBENCH_META_DATA": str(place / "data")}


@pytest.fixture
def disk(place):
    """A disk of 8 KB, where this user may make one."""
    (place / "full").mkdir()
    size = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place / "full")]
    try:
        subprocess.run(size, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        (place / "full").rmdir()
        pytest.skip("no small disk can be mounted here")
    yield
    subprocess.run(["umount", str(place / "full")], check=True)
    (place / "full").rmdir()


def meet(need, request):
    """Skip unless this machine has what a row needs."""
    import torch

    if need == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    if need == "Linux" and not sys.platform.startswith("linux"):
        pytest.skip("it is told otherwise on other systems")
    if need == "ray" and importlib.util.find_spec(need) is None:
        pytest.skip(f"{need} is not installed")
    if need == "a disk of 8 KB":
        request.getfixturevalue("disk")


def pattern(message):
    """Of a message, in which … stands for anything."""
    return ".*?".join(re.escape(part.strip()) if part.strip() else "" for part in re.split("(?<=.)…|^…", message))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.typed)
def test_what_is_typed_ends_as_the_page_says(row, place, environment, request):
    need = re.search(r"\*\((.+)\)\*", row.wrong)
    if need is not None:
        meet(need[1], request)
    before = files(place)
    done = run(row, environment)
    out, err = prose(done.out), prose(done.err)
    assert done.code == row.code, (out, err)
    assert "Traceback" not in out + err
    if row.message is None:
        assert "Error" not in err
    elif row.code == 2:
        _, *messages = re.split(r"\bError:? ", err)
        assert len(messages) == 1, err
        assert re.fullmatch(pattern(row.message), messages[0]), err
    else:
        found = [len(re.findall(pattern(row.message), text)) for text in (out, err)]
        assert max(found) == 1, (out, err)
    if row.code == 2:
        new = {path for path, changed in files(place).items() if before.get(path) != changed}
        assert {path for path in new if "/damaged/" not in path and not path.startswith("full/")} == set()
        assert "leaderboard" not in out
    else:
        new = {path.split(os.sep)[0] for path in set(files(place)) - set(before)}
        assert new <= {"results", "damaged-record", "damaged-checkpoint"}
    assert not (place / "executed").exists(), "a pickle was executed"


def test_every_row_of_the_page_is_run():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and "bench" in line]
    assert len(rows()) == len(lines) >= 60
    assert len({row.typed for row in rows()}) == len(rows())


@pytest.mark.parametrize("typed", ["bench run --eps 1/0", "bench data add birds page.zip", "bench compare a b c d"])
def test_debug_adds_the_traceback(typed, environment):
    [row] = [row for row in rows() if row.typed == typed]
    done = here(f"{row.words} --debug", environment)
    assert done.code == row.code
    assert "Traceback (most recent call last)" in done.err
    assert re.search(rf"Error: {pattern(row.message)}$", prose(done.err))
