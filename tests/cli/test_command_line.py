"""The command line as its user meets it: what is printed where, exit codes, and what is left on disk."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from robustbench_meta import __version__
from robustbench_meta.experiment.profiles import PROFILES
from robustbench_meta.experiment.run_options import run_options
from tests.helpers.command_line import SMALL, bench, listing, told


@pytest.mark.parametrize("words", [["--help"], ["list", "attacks"], ["leaderboard", "nowhere"]])
def test_a_screen_of_no_columns_is_one_of_unknown_size(words):
    """COLUMNS=0, as serial consoles and containers have it, printed nothing at all."""
    shown, usual = bench(*words, width=0), bench(*words, width=80)
    assert (shown.code, told(shown.out + shown.err)) == (usual.code, told(usual.out + usual.err))
    assert shown.out + shown.err


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize(
    "command", [[], ["run"], ["list"], ["plugins"], ["leaderboard"], ["data"], ["data", "add"]], ids=str
)
def test_help_fits_the_terminal(command, width):
    shown = bench(*command, "--help", width=width)
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= width
    assert f"Usage: bench {' '.join(command)}".strip() in told(shown.out)


def test_run_help_shows_every_option_and_the_profiles():
    shown = told(bench("run", "--help", width=200).out)
    for name, (_, _, option) in run_options().items():
        assert f"--{name.replace('_', '-')} " in shown
        assert option.help in shown
    for name, profile in PROFILES.items():
        assert f"{name} {profile.meta_steps:,} × {profile.tasks_per_step} {profile.episodes}" in shown


def test_the_checkouts_cli_is_the_installed_command():
    script = Path(__file__).parents[2] / "cli.py"
    done = subprocess.run([sys.executable, script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"robustbench_meta {__version__}\n"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["run", "--learner", "mamll"], ["rnu"], ["leaderboard", "nowhere"]], ids=str)
def test_an_error_is_not_on_stdout(arguments, tmp_path, monkeypatch):
    """What each message is: `bad_inputs/table.md`."""
    monkeypatch.chdir(tmp_path)
    result = bench(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error" in result.err


def test_cuda_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = bench("run", "--device", "cuda", "--results", tmp_path / "r")
    assert (result.code, listing(tmp_path)) == (2, [])
    assert "--device cuda:" in result.err
    assert "use --device cpu" in told(result.err)


def test_a_results_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    result = bench("run", *SMALL, "--results", tmp_path / "file")
    assert result.code == 2
    assert "cannot write there" in told(result.err)
    assert (tmp_path / "file").read_text() == "mine"


def test_debug_before_the_command_adds_the_traceback():
    result = bench("--debug", "run", "--eps", "8/0")
    assert result.code == 2
    assert "Traceback" in result.err
    assert "Error: eps '8/0' divides by zero" in result.err


def failing(monkeypatch, error):
    def build_grid(*_):
        raise error

    monkeypatch.setattr("robustbench_meta.jobs.runner.build_grids", build_grid)


def test_a_bug_says_that_it_is_one(monkeypatch):
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    result = bench("run")
    assert result.code == 1
    assert "this is a bug: ZeroDivisionError: division by zero; run again with --debug" in told(result.err)
    assert "Traceback" not in result.err


def test_a_full_disk_is_told_with_the_file(monkeypatch):
    failing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/records/x.json"))
    result = bench("run")
    assert result.code == 2
    assert "Error: results/records/x.json: No space left on device" in told(result.err)


def test_interrupting_says_what_is_kept(monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    result = bench("run", "--results", "elsewhere")
    assert result.code == 130
    assert "Finished and unfinished work is saved in elsewhere" in told(result.err)
    assert "rerun the same command to resume" in told(result.err)


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--help"], ["data", "list"]], ids=" ".join)
def test_a_closed_pipe_is_silent(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from robustbench_meta.cli import main; main()", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""


# -- list and plugins ------------------------------------------------------------------------------


def test_list_shows_name_line_options_and_source():
    shown = bench("list", "learners", "--long")
    adml = told(shown.out.partition("\nadml")[2].partition("\nanil")[0])
    assert "Adapt on clean and on attacked support" in adml
    assert "outer=joint" in adml
    assert "crossed=true" in adml
    assert "arXiv 1806.03316" in adml
    assert max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize("width", [80, 160])
def test_list_attacks_has_a_line_for_each_and_those_of_torchattacks_come_last(width):
    shown = bench("list", "attacks", width=width).out
    head, columns, *lines = shown.rstrip().splitlines()[:-1]
    assert columns.split() == ["name", "norm", "sees", "source"]
    assert head == f"ATTACKS ({len(lines)})"
    assert len(lines) > 40
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert len(rows) == len(lines)
    assert rows["fgsm"][:3] == ["linf", "white-box", "Goodfellow"]
    assert (rows["pgdl2"][:2], rows["square"][:2]) == (["l2", "white-box"], ["linf", "black-box"])
    assert (rows["noise"][:2], rows["none"][:2]) == (["linf", "nothing"], ["–", "–"])
    names = list(rows)
    assert max(map(names.index, ("auto", "fgsm", "pgd", "square"))) < min(map(names.index, ("bim", "cw", "vanila")))
    assert max(map(len, shown.splitlines())) <= width


def test_list_attacks_of_one_norm_and_with_options():
    lines = bench("list", "attacks", "--norm", "l2").out.rstrip().splitlines()[2:-1]
    assert {line.split()[1] for line in lines if line} == {"l2"}
    assert {"pgdl2", "autol2", "cw"} <= {line.split()[0] for line in lines if line}
    long = bench("list", "attacks", "--norm", "l2", "--long").out
    assert "steps=" in long
    assert "\npgdl2 " in long
    assert "\npgd " not in long


def test_list_without_a_kind_shows_all_four():
    shown = bench("list").out
    for heading in ("LEARNERS (", "ATTACKS (", "DATASETS (", "BACKBONES ("):
        assert heading in shown


def test_list_explains_the_options_of_one():
    shown = bench("list", "learner", "maml")
    assert shown.code == 0
    assert re.search(r"^first_order\s+false\s+do not differentiate", shown.out, re.MULTILINE)


GOOD = '''
from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML

class Mine(MAML):
    """A learner of my own."""
    name = "mine"

@hookimpl
def register_learners(register):
    register(Mine)
'''


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "plugins"
    path.mkdir()
    (path / "mine.py").write_text(GOOD)
    (path / "broken.py").write_text("def (:\n")
    return path


def test_plugins_tells_what_failed_and_why(folder):
    shown = bench("plugins", "--plugins", folder, width=200)
    assert shown.code == 0
    assert f"{folder / 'mine.py'}  local" in shown.out
    assert "learner mine" in shown.out
    assert re.search(r"broken\.py.*\n\s+failed: syntax error in line 1", shown.out)
    assert ", 1 failed" in shown.out


def test_a_local_plugin_is_listed_with_its_file(folder):
    shown = bench("list", "learners", "--plugins", folder, width=200).out
    assert re.search(
        rf"^mine\s+A learner of my own.*  local: {re.escape(str(folder / 'mine.py'))}\s*$", shown, re.MULTILINE
    )


# -- run -------------------------------------------------------------------------------------------

GRID = (*SMALL, "-l", "maml", "-l", "protonet", "-a", "none", "-a", "fgsm", "-a", "bim:steps=2", "--eps", "8/255")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    results = tmp_path_factory.mktemp("run") / "results"
    return results, bench("run", *GRID, "--results", results)


def test_a_run_shows_what_it_is_its_table_and_where_the_csv_is(ran):
    results, shown = ran
    assert shown.code == 0, shown.err
    text = told(shown.out)
    assert "glyphs, 5-way 1-shot, 3 query images a class" in text
    assert "2 meta-steps of 4 tasks, 4 test episodes (profile smoke)" in text
    assert "L∞ ε = 8/255 · clean support, attacked query · inductive" in text
    assert "6 cells done, 0 skipped (done before), 0 failed" in text
    assert str(results / "leaderboard.csv") in "".join(shown.out.split())
    assert "more attacks on the first 4 episodes" in text
    assert re.search(r"checks: [\d,]+ of [\d,]+ ms a task", text)
    assert f"next: bench report {results}" in "".join(shown.out.splitlines()).replace("reportbench", "report bench")
    assert f"bench compare {results}" in "".join(shown.out.splitlines())
    assert "\x1b" not in shown.out + shown.err, "no control codes where there is no terminal"


def test_the_table_shows_the_csvs_numbers(ran):
    results, shown = ran
    csv = pd.read_csv(results / "leaderboard.csv", dtype={"eps": str})
    assert len(csv) == 6
    for _, row in csv[csv["attack"] != "none"].iterrows():
        assert row["eps"] == "8/255"
        (line,) = [line for line in shown.out.splitlines() if re.match(rf"\d +{row['learner']} ", line)]
        assert f"{100 * row['robust_accuracy']:.1f}" in line


def test_the_same_run_again_does_nothing(ran):
    results, _ = ran
    before = (results / "leaderboard.csv").read_bytes()
    again = bench("run", *GRID, "--results", results)
    assert again.code == 0
    assert "0 cells done, 6 skipped (done before), 0 failed" in told(again.out)
    assert (results / "leaderboard.csv").read_bytes() == before


def test_a_dry_run_writes_nothing_not_even_the_folder(tmp_path):
    shown = bench("run", *GRID, "--results", tmp_path / "results", "--dry-run")
    assert shown.code == 0
    assert listing(tmp_path) == []
    assert shown.out.count("to do") == 6 + 1
    assert "4 meta-steps" in told(shown.out), "2 learners × 2 meta-steps"
    assert "side by side" not in told(shown.out), "too short to pay"
    shown = bench("run", *GRID, "--results", tmp_path / "results", "--dry-run", "--jobs", "4")
    assert "2 learners side by side (--jobs)" in told(shown.out)


def test_a_dry_run_tells_what_is_done(ran):
    results, _ = ran
    before = listing(results)
    shown = bench("run", *GRID, "-a", "bim:steps=3", "--results", results, "--dry-run")
    assert listing(results) == before
    assert "6 done already" in told(shown.out)
    assert "2 cells to do" in told(shown.out)


def test_the_leaderboard_is_rebuilt_from_the_records(ran):
    results, _ = ran
    csv = results / "leaderboard.csv"
    before = csv.read_bytes()
    csv.unlink()
    shown = bench("leaderboard", results)
    assert shown.code == 0
    assert csv.read_bytes() == before
    assert "L∞ ε = 8/255" in shown.out


FAILING = '''
from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack
from robustbench_meta.plugins.learners.maml import MAML

class Failing(Attack):
    """It cannot."""
    name = "failing"

    def perturb(self, model, x, y, threat, random):
        raise ValueError("out of ideas")

class Stuck(MAML):
    """It cannot either."""
    name = "stuck"

    def adapt(self, model, state, support, **settings):
        if support.x.shape[0] == 5:
            raise KeyError("no way")

@hookimpl
def register_attacks(register):
    register(Failing)

@hookimpl
def register_learners(register):
    register(Stuck)
'''


def test_a_failed_cell_is_told_and_costs_no_other(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    attacks = ("-a", "fgsm", "-a", "failing")
    shown = bench("run", *SMALL, "-l", "protonet", *attacks, "--plugins", tmp_path, "--results", tmp_path / "r")
    assert shown.code == 1
    text = told(shown.out)
    line = FAILING.splitlines().index('        raise ValueError("out of ideas")') + 1
    reason = f"attack 'failing' failed: ValueError: out of ideas (line {line} of failing.py)"
    assert f"failed: failing eps=0.1 clean/adv on protonet (seed 0): {reason}" in told(shown.err)
    assert (shown.out + shown.err).count("out of ideas") == 1
    assert "Traceback" not in shown.out + shown.err
    assert "1 cell done, 0 skipped (done before), 1 failed" in text
    assert "fgsm" in text


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "after it"])
def test_debug_shows_where_a_cell_failed_also_when_it_failed_before(tmp_path, before):
    (tmp_path / "failing.py").write_text(FAILING)
    grid = ["run", *SMALL, "-l", "stuck", "-l", "protonet", "-a", "none", "-a", "failing"]
    grid += ["--plugins", tmp_path, "--results", tmp_path / "r"]
    lines = [
        f'File "{tmp_path / "failing.py"}", line {FAILING.splitlines().index(each) + 1}'
        for each in ('        raise ValueError("out of ideas")', '            raise KeyError("no way")')
    ]
    assert "Traceback" not in bench(*grid).err
    for options in [[], ["--retry-failed"], ["--quiet"], ["--json"]]:
        shown = bench(*(["--debug", *grid] if before else [*grid, "--debug"]), *options)
        assert shown.code == 1
        assert [shown.err.count(line) for line in lines] == [1, 1], "once, though two cells of stuck failed"
    notes = [path.read_text() for path in (tmp_path / "r" / "failures").glob("*.json")]
    assert len(notes) == 3
    assert all("failing.py" in note and "Traceback" in note for note in notes)


# -- documentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["run", "leaderboard", "compare", "list", "plugins", "doctor", "data list", "data add", "data download"],
)
def test_every_option_is_documented(command):
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", bench(*command.split(), "--help", width=160).out)) - {"--help"}
    assert options
    assert [option for option in options if f"{option}`" not in page and f"{option} " not in page] == []
    for name, profile in PROFILES.items():
        row = f"| `{name}` | {profile.meta_steps:,} × {profile.tasks_per_step} | {profile.episodes} |"
        assert f"{row} {profile.backbone['width']} | {profile.way}, {profile.shot}, {profile.query} |" in page
