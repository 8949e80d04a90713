"""What scripts and shells get of the commands: JSON, silence, and names to complete."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pandas as pd
import pytest

from robustbench_meta import load_results
from robustbench_meta.cli import completion
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.frames import failures_in
from tests.helpers.command_line import SMALL, bench, told

RUN = ("run", *SMALL, "-l", "protonet", "-a", "none", "-a", "fgsm")


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """The events of one run, and its folder."""
    folder = tmp_path_factory.mktemp("streamed")
    done = bench(*RUN, "--json", "--results", folder)
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()], folder


def strictly(text):
    """JSON as the standard has it: no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def as_csv(rows, path):
    """Rows of JSON beside those of a CSV, by its own columns, empty for null."""
    with path.open(encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [list(row) for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        for column, value in row.items():
            if isinstance(value, float | int):
                assert float(wanted[column]) == value, column
            else:
                assert wanted[column] == (value or ""), column


# -- JSON ------------------------------------------------------------------------------------------


def test_the_stream_of_a_run_is_in_order_and_ends_with_the_rows_of_the_csv(streamed):
    events, folder = streamed
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert kinds.count("cell_finished") == 2
    assert {event["format"] for event in events} == {1}
    times = [event["seconds"] for event in events]
    assert times == sorted(times)
    # 2 meta-steps of 4 tasks; 4 episodes, each adapted to once and once attacked; all are checked.
    share = {"training": "protonet (seed 0)", "cells": 2, "train": 8, "test": 8, "checked": 8}
    assert events[0]["work"] == [share]
    steps = [event["step"] for event in events if event["event"] == "training_progress"]
    pairs = [event["done"] for event in events if event["event"] == "evaluation_progress"]
    assert (steps[0], steps[-1], pairs[0], pairs[-1]) == (0, 2, 0, 8)
    last = events[-1]
    assert (last["finished"], last["skipped"], last["failed"], last["exit_code"]) == (2, 0, 0, 0)
    as_csv(last["leaderboard"], folder / "leaderboard.csv")


def test_the_leaderboard_as_json_has_the_numbers_of_the_csv(streamed):
    _, folder = streamed
    shown = bench("leaderboard", folder, "--json")
    assert (shown.code, shown.err) == (0, "")
    told_ = strictly(shown.out)
    as_csv(told_["leaderboard"], folder / "leaderboard.csv")
    frame = pd.read_csv(folder / "leaderboard.csv")
    assert any(math.isnan(value) for value in frame["black_box_accuracy"])
    assert told_["leaderboard"][0]["black_box_accuracy"] is None


def test_a_rehearsal_as_json_tells_what_is_done(streamed):
    _, folder = streamed
    shown = bench(*RUN, "-a", "pgd", "--json", "--dry-run", "--results", folder)
    planned = strictly(shown.out)
    assert {cell["attack"]: cell["state"] for cell in planned["cells"]} == {
        "none": "done", "fgsm": "done", "pgd": "to do",
    }  # fmt: skip


def test_compare_as_json(streamed, tmp_path):
    _, folder = streamed
    shutil.copytree(folder, tmp_path / "r")
    assert bench(*RUN, "-l", "maml", "-q", "--results", tmp_path / "r").code == 0
    [*comparisons] = strictly(bench("compare", tmp_path / "r", "--json").out)["comparisons"]
    frame = pd.read_csv(tmp_path / "r" / "leaderboard.csv")
    under = frame[frame["attack"] == "fgsm"].set_index("learner")["robust_accuracy"]
    [found] = [each for pair in comparisons for each in pair["columns"] if each["column"] == "fgsm"]
    assert (comparisons[0]["first"], comparisons[0]["second"]) == ("maml", "protonet")
    assert found["difference"] == pytest.approx(under["maml"] - under["protonet"], abs=2e-6)
    assert found["first_accuracy"] == pytest.approx(under["maml"], abs=2e-6)


@pytest.mark.parametrize(
    ("command", "field"),
    [("list attacks fgsm", "plugins"), ("list suites", "suites"), ("plugins", "plugins"), ("data list", "datasets")],
)
def test_lists_as_json(command, field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTBENCH_META_DATA", str(tmp_path))
    shown = bench(*command.split(), "--json")
    assert (shown.code, shown.err) == (0, "")
    assert strictly(shown.out)[field]


def test_what_a_plugin_prints_is_not_among_the_json(tmp_path):
    (tmp_path / "loud.py").write_text(
        "from robustbench_meta import hookimpl\nprint('hello')\n"
        "@hookimpl\ndef cell_finished(record):\n    print('a cell')\n"
    )
    done = bench(*RUN, "--json", "--plugins", tmp_path, "--results", tmp_path / "r")
    events = [strictly(line) for line in done.out.splitlines()]
    assert events[-1]["event"] == "finished"
    assert done.err.split("\n")[:2] == ["hello", "a cell"]
    assert strictly(bench("plugins", "--json", "--plugins", tmp_path).out)["plugins"][-1]["error"] is None


def test_errors_are_told_on_stderr_with_the_same_exit_code(tmp_path):
    failed = bench("run", "-l", "mamll", "--json", "--results", tmp_path)
    assert failed.code == 2
    assert "unknown learner 'mamll'" in failed.err
    [last] = map(strictly, failed.out.splitlines())
    assert (last["event"], last["exit_code"]) == ("error", 2)
    assert last["message"] in told(failed.err)
    none = bench("leaderboard", "nowhere", "--json")
    assert (none.code, none.out) == (2, "")
    both = bench("compare", tmp_path, "--json", "--plot", "a.pdf")
    assert both.code == 2
    assert "--json and --plot exclude each other" in both.err


BROKEN = '''
from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack

class Broken(Attack):
    """It raises."""
    name = "broken"
    steps: int = 1
    def perturb(self, model, x, y, threat, random):
        raise RuntimeError("out of ideas")

@hookimpl
def register_attacks(register):
    register(Broken)
'''


def test_failures_and_silence(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    given = ("run", *SMALL, "-l", "protonet", "--plugins", tmp_path, "--results", tmp_path / "r")
    quiet = bench(*given, "-a", "none", "-q")
    assert quiet == (0, "", "")
    assert (tmp_path / "r" / "leaderboard.csv").is_file()
    failed = bench(*given, "-a", "broken", "-q")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.startswith("failed: protonet, broken")
    assert "out of ideas" in failed.err
    events = [strictly(line) for line in bench(*given, "-a", "broken", "--retry-failed", "--json").out.splitlines()]
    [cell] = [event for event in events if event["event"] == "cell_failed"]
    assert "out of ideas" in cell["reason"]
    assert (events[-1]["failed"], events[-1]["exit_code"]) == (1, 1)
    [failure] = events[-1]["failures"]
    assert failure == {name: cell[name] for name in failure if name != "before"} | {"before": False}
    assert (failure["attack"], failure["learner"], failure["eps"]) == ("broken", "protonet", "0.1")
    assert not {"training_progress", "evaluation_progress"} & {
        strictly(line)["event"] for line in bench(*given, "-a", "fgsm", "--json", "-q").out.splitlines()
    }


def test_a_cell_that_failed_is_called_as_one_that_did_not_and_joins_by_its_hash(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    given = ("run", *SMALL, "-l", "protonet", "--plugins", tmp_path, "--results", tmp_path / "r", "--eps", "8/255")
    attacks = ("-a", "fgsm", "-a", "broken:steps=10", "-a", "broken:steps=40")
    done = bench(*given, *attacks, "--json")
    events = [strictly(line) for line in done.out.splitlines()]
    [finished] = [event for event in events if event["event"] == "cell_finished"]
    failed = [event for event in events if event["event"] == "cell_failed"]
    assert {event["attack"] for event in failed} == {"broken:steps=10", "broken:steps=40"}
    for event in failed:
        assert set(finished) < set(event)
        for name in ("learner", "eps", "support", "query", "seed"):
            assert event[name] == finished[name], name
    assert {event["eps"] for event in failed} == {"8/255"}
    notes = {path.stem for path in (tmp_path / "r" / "failures").glob("*.json")}
    assert {event["spec_hash"] for event in failed} == notes
    loaded = load_results(tmp_path / "r").failed.drop(columns="before").to_dict("records")
    assert sorted(map(str, loaded)) == sorted(str({name: event[name] for name in loaded[0]}) for event in failed)
    shown = told(bench(*given, *attacks, "--retry-failed").err)
    for steps, why in ((10, "attack 'broken' failed"), (40, "for the same reason")):
        assert f"failed: broken:steps={steps} eps=8/255 clean/adv on protonet (seed 0): {why}" in shown


@pytest.mark.parametrize("labels", [7, "x", {}, {"learner": "maml", "seed": "x"}])
def test_a_damaged_note_of_a_failure_is_left_out(tmp_path, labels):
    (tmp_path / "failures").mkdir()
    note = {"key": "0" * 64, "reason": "no luck", "labels": labels, "spec": {}}
    (tmp_path / "failures" / "a.json").write_text(json.dumps(note))
    assert failures_in(tmp_path).empty


def test_an_interrupted_stream_says_so(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", "from robustbench_meta.cli import main; main()", "run", "--profile", "smoke", "-l",
         "protonet", "--meta-steps", "100000", "--json", "--jobs", "1", "--results", str(tmp_path / "r")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in child.stdout:
        if strictly(line)["event"] == "training_progress" and strictly(line)["step"] > 0:
            child.send_signal(signal.SIGINT)
            break
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert (strictly(out.splitlines()[-1])["event"], strictly(out.splitlines()[-1])["exit_code"]) == (
        "interrupted", 130,
    )  # fmt: skip


# -- completion ------------------------------------------------------------------------------------


def completed(*words):
    """What bash is given for the last word."""
    asked = {
        "_BENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("bench", *words)),
        "COMP_CWORD": str(len(words)),
    }
    with mock.patch.dict(os.environ, asked):
        done = bench()
    assert done.err == ""
    return done.out.split()


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
    """The cache after a command has loaded all plugins."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTBENCH_META_CACHE", str(cache))
        completion.remember(load_registry(local=False))
    return cache


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["run", "--learner", "ad"], "adml"), (["run", "-a", "pg"], "pgd"), (["run", "-d", "gl"], "glyphs"),
        (["run", "--profile", "q"], "quick"), (["run", "--scenario", "adv/"], "adv/adv"), (["ru"], "run"),
        (["run", "--track", "ten"], "tensorboard"), (["run", "--executor", "ra"], "ray"),
        (["run", "--precision", "b"], "bf16"), (["plugins", "new", "back"], "backbone"), (["plot", "sc"], "scenarios"),
        (["plot", "--format", "s"], "svg"), (["export", "--format", "la"], "latex"), (["list", "att"], "attacks"),
        (["list", "attacks", "fg"], "fgsm"), (["run", "--meta"], "--meta-steps"), (["run", "mi"], "mine.toml"),
        (["run", "-a", "torchatt"], "torchattacks-fgsm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_words_are_completed(words, some, tmp_path, monkeypatch, remembered):
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(remembered))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("")
    assert some in completed(*words)


def test_names_are_those_that_the_last_command_saw(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert completed("run", "-a", "") == [], "no command has loaded plugins yet"
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "broken.py").write_text(BROKEN)
    completion.remember(load_registry())
    assert completed("run", "-a", "bro") == ["broken"]
    (tmp_path / "names.json").write_text("[1")
    assert completed("run", "-a", "bro") == []
    (tmp_path / "names.json").unlink()
    (tmp_path / "names.json").mkdir()
    completion.remember(load_registry())


def test_completion_imports_nothing_heavy_and_is_quick(tmp_path):
    code = (
        "import sys, time\nfrom robustbench_meta.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('HEAVY', *({'torch', 'numpy', 'pandas', 'torchattacks'} & set(sys.modules)), time.process_time())"
    )
    environment = {**os.environ, "_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "bench run -l ", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *_, mark, seconds = done.stdout.split()
    assert mark == "HEAVY"
    assert float(seconds) < 1.0, "it takes a quarter of a second where nothing else runs"


def test_bash_takes_the_script(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    (tmp_path / "bench").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from robustbench_meta.cli import main; main()' \"$@\"\n"
    )
    (tmp_path / "bench").chmod(0o755)
    script = (
        'eval "$(bench --show-completion bash)"; COMP_WORDS=(bench run --profile sm); COMP_CWORD=3; '
        "_bench_completion bench; echo ${COMPREPLY[@]}"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    began = time.monotonic()
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("smoke\n", ""), time.monotonic() - began
