"""`bench doctor`: right about what is there, clear about what is not, and never the one to fall over."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robustbench_meta
from robustbench_meta import __version__
from robustbench_meta.cli import doctor
from robustbench_meta.cli.doctor import cpu_limit, examine, memory_left
from robustbench_meta.engine.preflight import meta_gradient_error
from tests.helpers.command_line import bench, listing

BROKEN = "raise RuntimeError('\\x1b[31m no good')\n"


def findings(folder, **given):
    return {(found.about, found.state): found for found in examine(folder, **given)}


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """An empty place, in which no plugin, data or result of this machine's user is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTBENCH_META_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_sound_machine_is_sound_and_nothing_is_left_behind(clean):
    found = findings(clean / "new" / "results")
    assert not [each for each in found if each[1] == "wrong"]
    assert found["torch", "ok"].seen.startswith(torch.__version__)
    where = Path(robustbench_meta.__file__).resolve().parent
    assert found["version", "ok"].seen.startswith(f"robustbench_meta {__version__} at {where};")
    assert found["data", "note"].mend == "bench data download omniglot"
    assert listing(clean) == []


@pytest.mark.parametrize("width", [80, 160])
def test_each_line_is_a_state_what_was_seen_and_what_to_do(clean, width):
    shown = bench("doctor", width=width)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= width
    assert {line[:5].strip() for line in lines} <= {"ok", "note", "wrong", ""}
    assert re.search(r"^note   data +omniglot: missing → bench data download omniglot", shown.out, re.MULTILINE)


def test_json_has_the_same_findings(clean):
    told = json.loads(bench("doctor", "--json").out)
    assert told["healthy"] is True
    assert {each["about"] for each in told["findings"]} == {about for about, _ in findings(clean / "results")}


def test_a_broken_plugin_is_a_note_and_two_of_one_name_end_runs(clean):
    folder = clean / "mine"
    folder.mkdir()
    (folder / "broken.py").write_text(BROKEN)
    found = findings(clean / "r", plugins=folder)
    assert "RuntimeError" in found["plugins", "note"].seen
    assert found["plugins", "note"].seen.isprintable()
    source = Path(robustbench_meta.__file__).parents[1] / "plugins" / "attacks" / "fgsm.py"
    if not source.is_file():
        pytest.skip("not a checkout")
    text = source.read_text(encoding="utf-8").replace("from .", "from robustbench_meta.plugins.attacks.")
    (folder / "broken.py").write_text(text)
    shown = bench("doctor", "--plugins", folder)
    assert shown.code == 1
    assert "two plugins bring the attack 'fgsm'" in " ".join(shown.out.split())
    assert bench("run", "--plugins", folder).code == 2, "that is why it is wrong"


def test_results_that_cannot_be_written(clean):
    (clean / "file").write_text("mine")
    found = findings(clean / "file" / "results")["results", "wrong"]
    assert "is a file" in found.seen
    assert found.mend == "name another folder: --results DIR"
    assert bench("doctor", clean / "file").code == 1


def test_data_that_are_damaged(clean):
    (clean / "data" / "omniglot").mkdir(parents=True)
    for name in ("images_background.zip", "images_evaluation.zip"):
        (clean / "data" / "omniglot" / name).write_bytes(b"no zip")
    assert "omniglot: damaged" in findings(clean / "r")["data", "note"].seen


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_folders_of_which_nothing_may_be_seen(clean):
    """As another user than root, who may see everything."""
    for name in ("data", "cache", "results", "plugins"):
        (clean / name).mkdir()
        (clean / name).chmod(0)
    become = "import os\nos.setgid(65534)\nos.setuid(65534)\n" if os.geteuid() == 0 else ""
    clean.chmod(0o755)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom robustbench_meta.engine import preflight\n"
        "from robustbench_meta.registry import registry\n"
        "from robustbench_meta.cli import doctor\n"
        "import robustbench_meta.experiment.data_library, robustbench_meta.data.array_cache, filelock\n"
        f"{become}os.environ.pop('HOME', None)\n"
        "for found in doctor.examine(Path('results')): print(found.state, found.about, found.seen, found.mend)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=clean)
    for name in ("data", "cache", "results", "plugins"):
        (clean / name).chmod(0o755)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    states = {about: state for state, about, _ in lines}
    assert states["results"] == "wrong"
    assert states["cache"] == "note"
    assert set(states) >= {"torch", "cores", "memory", "gradients", "plugins", "data", "extras"}, "all were looked at"


def test_one_check_that_breaks_costs_no_other(clean, monkeypatch):
    def broken():
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "memory_left", broken)
    found = findings(clean / "r")
    assert found["memory", "wrong"].seen == "could not be looked at: ZeroDivisionError: by zero"
    assert ("results", "ok") in found


# -- what it rests on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000"}, 1.5), ({"cpu.max": "max 100000"}, None), ({"cpu.max": "?"}, None), ({}, None),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_a_containers_cores(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit


def test_memory_is_what_the_container_leaves(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000 kB\n")
    assert memory_left(tmp_path, tmp_path / "meminfo") == 8_192_000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert memory_left(tmp_path, tmp_path / "meminfo") == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_left(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("needed", "told"),
    [
        ("torch>=2.8", None), ("torch<2", "torch {} is installed; needed: torch<2"),
        ("no-such-thing>=1", "no-such-thing is not installed; needed: no-such-thing>=1"),
        ("no-such-thing>=1 ; python_version < '3'", None), ("no-such-thing ; extra == 'ray'", None),
        ("no-such-thing ; python_version >= '3'", "no-such-thing is not installed; needed: no-such-thing"),
        ("torch[opt]==0 ; extra == 'x'", None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_declared_and_lacks(clean, monkeypatch, needed, told):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [needed])
    found = findings(clean / "r").get(("packages", "wrong"))
    installed = importlib.metadata.version("torch")
    assert (found and found.seen) == (told and told.format(installed))


def test_extras_are_installed_in_one_step_and_mlflow_in_another(clean, monkeypatch):
    version = importlib.metadata.version
    gone = {"ray", "mlflow-skinny"}

    def known(name):
        if name in gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "tensorboard" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", known)
    found = findings(clean / "r")["extras", "ok"]
    assert found.seen.startswith("tensorboard 1.0; not installed: ray, mlflow-skinny")
    steps = "python -m pip install 'robustbench_meta[ray]' && python -m pip install mlflow-skinny"
    assert found.mend == steps, "pip finds no versions that go together"


def test_threads_beyond_the_cores_are_told(clean, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    monkeypatch.setattr(doctor, "cpu_limit", lambda: None)
    assert findings(clean / "r")["cores", "note"].mend.startswith("export OMP_NUM_THREADS=")


def test_gradients_that_are_wrong_are_seen(clean, monkeypatch):
    assert meta_gradient_error() < 1e-12
    derive = torch.func.grad

    def first_order(function, *args):
        made = derive(function, *args)
        return lambda *given: made(*given).detach() if function.__name__ == "loss" else made(*given)

    monkeypatch.setattr(torch.func, "grad", first_order)
    assert meta_gradient_error() > 0.01
    assert ("gradients", "wrong") in findings(clean / "r")
