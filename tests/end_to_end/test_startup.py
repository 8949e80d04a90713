"""What is imported when: nothing heavy for a help or a typing error, and torchattacks for its own attacks only."""

import re
import subprocess
import sys

import pytest

from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.plugins.attacks.torchattacks import BRIDGED
from robustbench_meta.registry.discovery import FOLDERS
from robustbench_meta.registry.registry import KINDS, CollisionError, load_registry
from tests.helpers.command_line import bench, told

HEAVY = {"torch", "pandas", "torchattacks", "scipy", "matplotlib", "numpy"}
LOOKED_FOR = HEAVY | {"pydantic"}

LATE = """
from robustbench_meta import hookimpl

def late():
    {body}

@hookimpl
def register_attacks(register):
    register.later({name}, late)
"""
MINE = '''
    from robustbench_meta.contracts import Attack

    class Mine(Attack):
        """It does nothing, late."""
        name = "late"

        def perturb(self, model, x, y, threat, random):
            return x

    return Mine
'''


def imported_by(*commands):
    """By command, in this order in one process of its own: which of the modules that are looked for are there then."""
    code = (
        "import sys\nfrom robustbench_meta.cli import main\n"
        f"for command in {commands!r}:\n"
        "    try: main(command.split())\n    except SystemExit: pass\n"
        f"    print('HEAVY', command, *({LOOKED_FOR!r} & set(sys.modules)), sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [line.split("|")[1:] for line in done.stdout.splitlines() if line.startswith("HEAVY|")]
    assert [command for command, *_ in told] == list(commands)
    return {command: set(imported) for command, *imported in told}


def late(folder, body=MINE, name="'late'", file="late"):
    (folder / f"{file}.py").write_text(LATE.format(body=body, name=name))
    return folder


def test_files_of_the_working_folder_are_not_taken_for_libraries(tmp_path):
    """As `bench` does: `python -m` puts the working folder in front of all."""
    for name in ("torch", "select", "rich"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken for a library')")
    command = [sys.executable, "-m", "robustbench_meta", "list", "learners"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "maml" in done.stdout


# -- commands --------------------------------------------------------------------------------------


LIGHTER = ("", "--help", "--version", "run --help", "list --help")
LIGHT = (
    "plugins --help", "plugins new --help",
    "plugins new atack x", "plugins new attack X", "leaderboard --help", "compare --help",
    "plot --help", "export --help", "plot curvs", "plot --width x", "export --format x", "compare --plot x.jpg",
    "report --help", "report nowhere", "report --out x.pdf",
    "data --help", "data list --help", "data add --help", "data download --help",
    "run --nonsense", "run --way x", "run --way 1", "run --profile quikc", "run --eps much", "run --scenario up",
    "run -l :::", "run qick", "run nowhere.toml", "run quick --way 1",
    "lst", "plugins --nonsense", "leaderboard nowhere", "compare nowhere",
    "data download nothing",
)  # fmt: skip


def test_help_and_typing_errors_import_nothing_heavy():
    imported = imported_by(*LIGHTER, *LIGHT)
    assert {command: modules for command, modules in imported.items() if modules & HEAVY} == {}
    assert {command: imported[command] for command in LIGHTER if imported[command]} == {}


def test_torchattacks_is_imported_for_its_own_attacks_only():
    others, own = ("list attacks fgsm", "plugins", "run --attack fgsm --dry-run"), "run --attack bim --dry-run"
    imported = imported_by(*others, own)
    for command in others:
        assert "torch" in imported[command]
        assert not {"torchattacks", "matplotlib"} & imported[command], command
    assert "torchattacks" in imported[own]


# -- register.later --------------------------------------------------------------------------------


def test_names_are_known_before_anything_is_loaded(tmp_path):
    registry = load_registry(late(tmp_path, "raise AssertionError('loaded')"))
    assert "late" in registry.names("attack")
    assert registry.origin("attack", "late").kind == "local"
    assert registry.found[-1].brought == ["attack late"]
    assert set(BRIDGED) <= set(registry.names("attack"))
    with pytest.raises(BenchError, match="unknown attack 'latte': did you mean 'late'"):
        registry.get("attack", "latte")
    with pytest.raises(BenchError, match="did you mean 'deepfool'"):
        registry.get("attack", "deepfol")


def test_a_class_is_made_once_when_it_is_first_wanted(tmp_path):
    registry = load_registry(late(tmp_path))
    assert registry.get("attack", "late") is registry.get("attack", "late")
    assert registry.make("attack", "late", {}).name == "late"
    with pytest.raises(BenchError, match="option"):
        registry.make("attack", "late", {"nonsense": "1"})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError('no disk')", r"OSError: no disk \(line 5\)$"),
        ("raise SystemExit('done')", "SystemExit: done"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("return 7", "register_attacks: invalid 7: expected a subclass of Attack"),
        (MINE.replace('"late"', '"Mine!"'), "attack Mine has the name 'Mine!'"),
        (MINE.replace('"late"', '"other"'), "the class that is loaded has the name 'other'"),
    ],
)
def test_what_cannot_be_loaded_is_told_when_it_is_wanted_and_costs_nobody_else(tmp_path, body, reason):
    registry = load_registry(late(tmp_path, body))
    with pytest.raises(PluginError, match=f"attack 'late' of local .*late.py cannot be loaded: .*{reason}"):
        registry.get("attack", "late")
    assert registry.get("attack", "fgsm").name == "fgsm"


def test_bench_list_shows_the_others_and_why_one_failed(tmp_path):
    late(tmp_path, "raise OSError('no disk')")
    shown = told(bench("list", "attacks", "--plugins", tmp_path).out)
    assert re.search(r"late \? \? failed: attack 'late' of local .* cannot be loaded: OSError: no disk", shown)
    assert all(name in shown for name in BRIDGED)


@pytest.mark.parametrize(
    ("name", "load", "reason"),
    [
        ("'Late'", "late", "register.later: invalid name 'Late': expected lower-case letters"),
        ("None", "late", "register.later: invalid name None"),
        ("'late'", "'later'", "register.later: invalid 'later' for 'late': expected a function"),
    ],
)
def test_what_is_wrong_with_the_call_is_told_at_once(tmp_path, name, load, reason):
    text = LATE.format(body=MINE, name=name).replace(", late)", f", {load})")
    (tmp_path / "late.py").write_text(text)
    assert reason in load_registry(tmp_path).found[-1].error


def test_names_collide_before_anything_is_loaded(tmp_path):
    late(tmp_path, "raise AssertionError('loaded')", name="'bim'")
    with pytest.raises(CollisionError, match=r"two plugins bring the attack 'bim': built-in .*torchattacks and local"):
        load_registry(tmp_path)
    registry = load_registry(tmp_path, strict=False)
    assert registry.origin("attack", "bim").kind == "built-in"
    assert "two plugins bring the attack 'bim'" in registry.found[-1].error


def test_one_plugin_cannot_bring_a_name_twice(tmp_path):
    late(tmp_path)
    with (tmp_path / "late.py").open("a") as file:
        file.write("    register(late())\n")
    found = load_registry(tmp_path).found[-1]
    assert found.error == "it registers two classes as the attack 'late'"
    assert found.brought == []


def test_the_built_in_folders_are_one_a_kind():
    assert {f"{kind}s" for kind in KINDS} == set(FOLDERS)
