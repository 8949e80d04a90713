"""`bench plugins new`: what it writes works as it is, and nothing of the user's is touched."""

import contextlib
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from robustbench_meta.cli.new_plugin import EXAMPLES, write_plugin
from robustbench_meta.errors import BenchError
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.testing import verify
from tests.helpers.command_line import printed as bench

ROOT = Path(__file__).parents[2]
KINDS = ("learner", "attack", "dataset", "backbone")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """An empty folder in which one of each kind was begun, and what was printed."""
    folder = tmp_path_factory.mktemp("mine")
    with contextlib.chdir(folder):
        return folder, {kind: bench("plugins", "new", kind, f"own-{kind}.1") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_found_and_keeps_its_contract(begun, kind):
    found = load_registry(begun[0] / "plugins")
    cls = found.get(kind, f"own-{kind}.1")
    assert cls.__name__ == f"Own{kind.capitalize()}1"
    verify(cls, registry=found)


def test_tests_are_not_taken_for_plugins(begun):
    local = [found for found in load_registry(begun[0] / "plugins").found if found.origin.kind == "local"]
    assert [(found.brought, found.error) for found in local] == [
        ([f"{kind} own-{kind}.1"], None) for kind in sorted(KINDS)
    ]


def test_they_make_a_leaderboard_together(begun):
    with contextlib.chdir(begun[0]):
        what = "-l own-learner.1 -a own-attack.1 -d own-dataset.1 -b own-backbone.1:grid=4 --scenario adv/adv"
        code, shown = bench(*shlex.split(f"run --profile smoke --episodes 4 --no-checks --device cpu {what}"))
        assert code == 0, shown
        rows = pd.read_csv("results/leaderboard.csv")
    assert set(rows.learner) == {"own-learner.1"}
    assert set(rows.dataset) == {"own-dataset.1"}
    assert set(rows.support) == {"adv"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_commands_are_printed_whole(begun, kind):
    code, shown = begun[1][kind]
    assert code == 0, shown
    module = f"own_{kind}_1"
    assert [line.strip() for line in shown.split("Next:")[1].splitlines() if line.strip() and "#" not in line] == [
        f"bench list {kind}s own-{kind}.1",
        f"python -m pytest plugins/tests/test_{module}.py",
        f"bench run --profile smoke --{kind} own-{kind}.1",
    ]


def test_the_printed_commands_run_from_another_folder_of_plugins(tmp_path):
    with contextlib.chdir(tmp_path):
        _, shown = bench("plugins", "new", "backbone", "tiny", "--into", "my plugins")
        listed, tested, run = [line.strip() for line in shown.splitlines() if "  bench" in line or "pytest" in line]
        code, told = bench(*shlex.split(listed)[1:])
        assert code == 0
        assert "tiny" in told
        command = [sys.executable, *shlex.split(tested)[1:], "-p", "no:cacheprovider"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout
        code, told = bench(*shlex.split(run)[1:], "--dry-run")
        assert code == 0
        assert "tiny" in told


def test_what_is_written_is_formatted_as_ours(begun):
    files = sorted(begun[0].glob("plugins/**/*.py"))
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", *files],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    assert len(files) == 2 * len(KINDS)


@pytest.mark.parametrize(
    ("name", "module", "cls"),
    [
        ("my-attack", "my_attack", "MyAttack"),
        ("l2.bim-x", "l2_bim_x", "L2BimX"),
        ("lambda", "my_lambda", "Lambda"),
        ("3steps", "my_3steps", "My3steps"),
        ("tensor", "tensor", "MyTensor"),
        ("attack", "attack", "MyAttack"),
        ("true", "true", "MyTrue"),
        ("exception", "exception", "MyException"),
    ],
)
def test_names_for_python_are_made_of_the_name(tmp_path, name, module, cls):
    file, _ = write_plugin("attack", name, tmp_path, tuple)
    assert file == tmp_path / f"{module}.py"
    found = load_registry(tmp_path)
    assert found.get("attack", name).__name__ == cls


@pytest.mark.parametrize("name", ["My-Attack", "", "-x", "a b", "a/b", "../a", "a:b", "ä", 'a"b', "a\n"])
def test_what_cannot_be_a_name_is_refused(tmp_path, name):
    with pytest.raises(BenchError, match="cannot be the name of a plugin: expected lower-case letters"):
        write_plugin("attack", name, tmp_path, tuple)


def test_a_name_of_another_plugin_is_refused(tmp_path):
    with contextlib.chdir(tmp_path):
        code, shown = bench("plugins", "new", "attack", "pgd")
        assert (code, list(tmp_path.iterdir())) == (2, [])
        assert "the attack 'pgd' is there already: choose another name" in " ".join(shown.split())
        assert bench("plugins", "new", "learner", "pgd")[0] == 0, "of another kind it is free"


@pytest.mark.parametrize("there", ["x_y.py", "tests/test_x_y.py", "x_y/__init__.py"])
def test_nothing_is_overwritten(tmp_path, there):
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine = 1\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BenchError, match="is there already, and is left as it is"):
        write_plugin("attack", "x-y", tmp_path, tuple)
    assert sorted(tmp_path.rglob("*")) == before
    assert path.read_text() == "mine = 1\n"


def test_a_dangling_link_is_not_followed(tmp_path):
    (tmp_path / "x.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(BenchError, match="is there already"):
        write_plugin("attack", "x", tmp_path, tuple)
    assert not (tmp_path / "elsewhere.py").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("new", "atack", "x"), "unknown kind of plugin 'atack': did you mean 'attack'?"),
        (("new", "tracker", "x"), "unknown kind of plugin 'tracker'"),
        (("new", "attack", "x", "--into", "a-file"), "--into a-file: that is a file; expected a folder"),
        (("new", "attack", "x", "--into", ROOT / "plugins" / "attacks"), "that is the folder of built-in plugins"),
        (("--no-local-plugins", "new", "attack", "x"), "are for the list of plugins; a new one goes --into DIR"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, arguments, told):
    (tmp_path / "a-file").touch()
    with contextlib.chdir(tmp_path):
        code, shown = bench("plugins", *arguments)
    assert (code, told in " ".join(shown.split())) == (2, True), shown
    assert not (tmp_path / "plugins").exists()


def test_there_is_an_example_of_each_kind():
    assert tuple(EXAMPLES) == KINDS
    for name in EXAMPLES.values():
        assert (ROOT / "examples" / f"{name.replace('-', '_')}.py").is_file()
