"""What is shipped: the wheel holds the package and nothing else, the sdist all that is needed to work on it.

That an installed wheel runs from an empty folder is checked by `.ci/run`, for it takes minutes.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import setuptools
import yaml

from robustbench_meta import __version__

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETTINGS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
SHIPPED = ("robustbench_meta", "plugins", "suites", "examples", "results/published")
LEFT_OUT = {".git", ".venv", "build", "dist", "__pycache__"}


def tree(folder):
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def as_installed(path):
    """Where a source file is in the wheel."""
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "suites":
        return f"robustbench_meta/shipped_suites/{relative.name}"
    if relative.parts[0] == "results":
        return f"robustbench_meta/{relative.relative_to('results')}"
    return f"robustbench_meta/{relative}" if relative.parts[0] in {"plugins", "examples"} else str(relative)


def test_every_package_is_found(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    packages = {
        ".".join(Path(as_installed(path)).parent.parts)
        for folder in SHIPPED
        for path in tree(folder)
        if path.suffix == ".py" or folder in {"suites", "results/published"}
    }
    assert sorted(given["packages"]) == sorted(packages)


def test_every_data_file_is_declared():
    for path in [path for folder in SHIPPED for path in tree(folder)]:
        if path.suffix != ".py":
            installed = Path(as_installed(path))
            patterns = SETTINGS["package-data"].get(".".join(installed.parent.parts), [])
            assert any(fnmatch(installed.name, pattern) for pattern in patterns), f"{path} would not be installed"


def left_out(folder, names):
    if Path(folder) == ROOT / "results":  # runs land there
        return set(names) - {"README.md", "published"}
    return {name for name in names if name in LEFT_OUT or "egg-info" in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files of the wheel and of the sdist, built by the declared backend from a copy of the sources."""
    work = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, work / "src", ignore=left_out)
    code = (
        "from setuptools import build_meta\n"
        f"build_meta.build_wheel({str(work)!r})\n"
        f"build_meta.build_sdist({str(work)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=work / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = work.glob("*.whl"), work.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    return in_wheel, in_sdist


def test_the_wheel_holds_one_top_level_module(built):
    tops = {name.partition("/")[0] for name in built[0]}
    assert tops == {"robustbench_meta", f"robustbench_meta-{__version__}.dist-info"}


def test_the_wheel_holds_each_source_file_once(built):
    shipped = {name for name in built[0] if name.startswith("robustbench_meta/")}
    assert shipped == {as_installed(path) for folder in SHIPPED for path in tree(folder)}


def test_the_wheel_brings_the_command_and_the_licence(built):
    info = f"robustbench_meta-{__version__}.dist-info"
    assert b"bench = robustbench_meta.cli:main" in built[0][f"{info}/entry_points.txt"]
    assert built[0][f"{info}/licenses/LICENSE"].startswith(b"MIT License")
    assert b"License-Expression: MIT" in built[0][f"{info}/METADATA"]


def test_the_description_has_no_link_that_an_index_cannot_follow(built):
    told = built[0][f"robustbench_meta-{__version__}.dist-info/METADATA"].decode()
    links = re.findall(r"\]\(([^)\s]+)\)", told)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    plain = re.sub(r"\]\([^)\s]+\)", "]", told).replace("[", "").replace("]", "")
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        assert re.sub(r"\]\([^)\s]+\)", "]", line).replace("[", "").replace("]", "") in plain


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"], citation["cff-version"]) == (__version__, "MIT", "1.2.0")
    assert citation["authors"] == PROJECT["authors"]


def test_the_sdist_holds_the_sources(built):
    folders = (*SHIPPED, "tests", "docs", "benchmarks", ".ci", "results/published")
    top = "pyproject.toml setup.py cli.py Makefile mkdocs.yml constraints.txt constraints-audit.txt "
    top += "constraints-docs.txt README.md CHANGELOG.md CONTRIBUTING.md CITATION.cff LICENSE"
    files = [path.relative_to(ROOT).as_posix() for folder in folders for path in tree(folder)]
    assert {*files, *top.split()} <= built[1]


# -- make ------------------------------------------------------------------------------------------


def make(*arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_passes_arguments_to_the_command(tmp_path):
    shown = make("--dry-run", "run", f"VENV={tmp_path}/venv", "ARGS=--profile smoke")
    assert shown.stdout.splitlines()[-1] == f"{tmp_path}/venv/bin/bench run --profile smoke"


@needs_make
def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    refused = make("run", f"VENV={tmp_path}/venv", f"PYTHON={old}")
    assert refused.returncode != 0
    assert f"none of these is Python 3.11 or newer with venv and pip (on Debian: apt install python3-venv): {old}" in (
        refused.stderr
    )
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_help_names_the_targets():
    shown = make("help").stdout
    for target in ("run", "test", "docs", "audit", "constraints", "wheel", "clean"):
        assert f"make {target} " in shown
