"""What comes from disk or network is never run: cells of CSV files, plugins that nobody asked for, hostile files."""

import csv
import io
import logging
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from robustbench_meta.errors import DataError, PluginError
from robustbench_meta.registry import discovery
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.csv_safety import harmless, harmless_frame

EXAMPLES = Path(__file__).parents[2] / "examples"

# -- cells ---------------------------------------------------------------------------------------------

NUMBERS = st.integers().map(str) | st.floats(allow_nan=False, allow_infinity=False).map(repr)
PIECES = [*"=+-@＝\t\r\n;,| \"'1.e\ufeff", "cmd|' /C calc'!A0", "A1"]
TEXTS = st.lists(st.sampled_from(PIECES) | NUMBERS, max_size=8).map("".join) | st.text(max_size=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=1+2", "'=1+2"),
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("+A1", "'+A1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t'=1"),
        ("\rx", "'\rx"),
        ('"=1', "\"'=1"),
        ("  =1", "  '=1"),
        ("x;=1;y", "x;'=1;y"),
        ("x\n=1", "x\n'=1"),
        ("＝1", "'＝1"),
        ("\ufeff=1", "\ufeff'=1"),
        ("-", "'-"),
        ("adml:outer=joint,alpha=-0.1", "adml:outer=joint,alpha=-0.1"),
        ("pgd:steps=40;eps=8/255", "pgd:steps=40;eps=8/255"),
        ("weak-attack; no-gradient", "weak-attack; no-gradient"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("[1, -2]", "[1, -2]"),
        ("'=1", "'=1"),
        ("-1\t+A1", "'-1\t'+A1"),
        ("x;-1,+A1", "x;'-1,'+A1"),
        ("-1, -2", "-1, -2"),
        ("", ""),
    ],
)
def test_what_spreadsheets_would_run_gets_an_apostrophe(text, expected):
    assert harmless(text) == expected


def cells(text):
    """What a spreadsheet may show as cells, whichever separator it takes, when this is written to a CSV."""
    file = io.StringIO()
    csv.writer(file).writerow([text])
    for separator in ",;\t|":
        for dialect in ({}, {"quoting": csv.QUOTE_NONE}):
            for row in csv.reader(file.getvalue().splitlines(), delimiter=separator, **dialect):
                yield from row


def runs(cell):
    """Whether a spreadsheet may run something for a cell: a formula with more in it than numbers and signs."""
    shown = cell.lstrip(' "\t\r\n\x0b\x0c\u00a0\ufeff')
    if shown.startswith(("+", "-", "＋", "－")):
        return re.search(r"[^\d\s.,;/()\[\]+\-'\"]", re.sub(r"\d[eE][+-]?\d", "", shown)) is not None
    return shown.startswith(("=", "@", "＝", "＠"))


def test_the_judge_of_cells_knows_formulas():
    assert all(map(runs, ["=1", '"=1', " +A1", "-2+cmd|' /C calc'!A0", "＠x", "-1\t+A1"]))
    assert not any(map(runs, ["-1", "x=1", "'=1", "+1e3", "8/255", "-1, -2"]))
    assert any(map(runs, cells("x;=1")))


@given(TEXTS)
def test_no_cell_of_a_harmless_text_runs(text):
    assert not [cell for cell in cells(harmless(text)) if runs(cell)]


@given(TEXTS)
def test_making_harmless_twice_is_once_and_only_adds_apostrophes(text):
    once = harmless(text)
    assert harmless(once) == once
    assert once.replace("'", "") == text.replace("'", "")


@given(NUMBERS | st.integers() | st.floats(allow_nan=False) | st.none() | st.booleans())
def test_numbers_stay(value):
    assert harmless(value) is value or harmless(value) == value
    assert type(harmless(value)) is type(value)


def test_a_table_of_harmless_cells_keeps_its_numbers():
    frame = pd.DataFrame(
        {"=name": ["=1", "maml", None], "n": [-1, 2, 3], "x": [-0.5, np.nan, 1.0], "b": [True, False, True]}
    )
    found = harmless_frame(frame)
    assert found.columns.tolist() == ["'=name", "n", "x", "b"]
    assert found["'=name"].tolist()[:2] == ["'=1", "maml"]
    assert found["'=name"].isna().tolist() == [False, False, True]
    pd.testing.assert_frame_equal(found[["n", "x", "b"]], frame[["n", "x", "b"]])
    assert frame["=name"][0] == "=1", "the table that was given has changed"


# -- plugins -------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "plugins").mkdir(mode=0o755)
    (tmp_path / "plugins" / "mine.py").write_text((EXAMPLES / "sign_noise.py").read_text())
    (tmp_path / "plugins" / "mine.py").chmod(0o644)
    monkeypatch.chdir(tmp_path)
    discovery._warn.cache_clear()
    return tmp_path / "plugins"


def test_plugins_of_the_working_folder_are_loaded_unless_told_otherwise(here):
    assert "sign-noise" in load_registry().names("attack")
    assert "sign-noise" not in load_registry(local=False).names("attack")


def test_a_local_plugin_that_is_not_wanted_is_not_even_imported(here):
    (here / "mine.py").write_text("raise SystemExit('it ran')")
    assert not [found.error for found in load_registry(local=False).found if found.error]
    assert "it ran" in str([found.error for found in load_registry(strict=False).found if found.error])


def test_a_folder_of_plugins_and_none_of_them_is_a_contradiction(here):
    with pytest.raises(PluginError, match=r"--plugins .*plugins and --no-local-plugins exclude each other"):
        load_registry(here, local=False)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no owners of files")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_plugins_that_everybody_may_write_are_warned_of_once(here, what, caplog):
    path = here if what == "folder" else here / "mine.py"
    with caplog.at_level(logging.WARNING):
        load_registry()
        assert caplog.messages == []
        path.chmod(0o777)
        load_registry()
        load_registry()
    (message,) = caplog.messages
    assert path.name in message
    assert "every user of this machine may write it" in message
    assert "--no-local-plugins" in message


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to give a file away")
def test_plugins_of_another_user_are_warned_of(here, caplog):
    os.chown(here / "mine.py", 12345, 12345)
    load_registry()
    assert "belongs to another user (number 12345)" in caplog.text


def test_an_empty_folder_that_everybody_may_write_is_no_matter(here, caplog):
    (here / "mine.py").unlink()
    here.chmod(0o777)
    load_registry()
    assert caplog.messages == []


# -- hostile files -------------------------------------------------------------------------------------

if sys.platform == "linux":
    from benchmarks import fuzz
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="fuzzing limits its processes as only Linux can")


@on_linux
@pytest.mark.parametrize("target", ["pickles", "zips", "images", "records", "suites"])
def test_a_little_fuzzing_finds_nothing(target):
    cases, crashes = fuzz.fuzz(target, seconds=2, start=7)
    assert cases >= 100
    assert crashes == []


def hang(content, folder):
    while len(content) > 2:
        pass


def eat(content, folder):
    return [bytes(2**28) for _ in range(len(content))]


def die(content, folder):
    if len(content) > 2:
        os._exit(3)


def run(content, folder):
    if len(content) > 2:
        exec("1")


def grumble(content, folder):
    raise DataError("two\nlines" if len(content) > 2 else "one line")


@on_linux
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda content, folder: 1 // (len(content) < 3), "ZeroDivisionError"),
        (hang, "hangs for 1 s"),
        (eat, "MemoryError"),
        (die, "the process died"),
        (run, "it executed"),
        (grumble, "a message that is empty, or has lines"),
    ],
    ids=["raises", "hangs", "eats memory", "dies", "executes", "message"],
)
def test_the_fuzzer_finds_what_is_bad(tmp_path, monkeypatch, bad, reason):
    target = fuzz.Target(bad, lambda: [b"a", b"ab"], st.binary(max_size=9))
    monkeypatch.setitem(fuzz.TARGETS, "bad", target)
    monkeypatch.setattr(fuzz, "SECONDS", 1 if bad is hang else 30)
    told = []
    cases, crashes = fuzz.fuzz("bad", seconds=0, crashes=tmp_path, told=told.append)
    assert cases >= 1
    assert [crash.reason.startswith(reason) for crash in crashes] == [True], crashes
    assert (tmp_path / "bad-0").read_bytes() == crashes[0].content
    assert told


@on_linux
def test_the_fuzzer_is_a_command(tmp_path):
    command = ["--minutes", "0", "--seed", "3", "--crashes", str(tmp_path), "--target"]
    done = CliRunner().invoke(fuzz.app, [*command, "zips"])
    assert done.exit_code == 0, done.output
    assert "cases in 0 minutes from seed 3, 0 crashes" in done.output
    wrong = CliRunner().invoke(fuzz.app, [*command, "nothing"])
    assert wrong.exit_code == 2
    assert all(name in wrong.output for name in fuzz.TARGETS)
