"""Plugins of strangers: found wherever they are, and nobody else's problem when they are broken."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from robustbench_meta import hookimpl, hookspecs
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.registry.import_graph import imports_of, source_in
from robustbench_meta.registry.registry import KINDS, CollisionError, Origin, Registry, load_registry
from tests.helpers.command_line import printed

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMOKE = ("run", "--profile", "smoke", "--meta-steps", "2", "--episodes", "4", "--device", "cpu")

ATTACK = '''
from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack

class Mine(Attack):
    """{about}"""
    name = "{name}"

    def perturb(self, model, x, y, threat, random):
        return x

@hookimpl
def register_attacks(register):
    register(Mine)
'''


def attack(name, about="It does nothing."):
    return ATTACK.format(name=name, about=about)


def put(folder, files=None, **modules):
    """Write Python files: by path without `.py`, or by name."""
    for name, text in {**(files or {}), **modules}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def locals_of(registry):
    return {Path(found.origin.where).name: found for found in registry.found if found.origin.kind == "local"}


bench = partial(printed, width=300)


# -- where plugins are found -----------------------------------------------------------------------


def test_a_file_and_a_package_are_found_in_a_folder(tmp_path):
    package = "from .names import NAME\n" + attack("two").replace('name = "two"', "name = NAME")
    put(tmp_path, {"one": attack("one"), "two/__init__": package, "two/names": "NAME = 'two'"})
    registry = load_registry(tmp_path)
    assert {name: found.brought for name, found in locals_of(registry).items()} == {
        "one.py": ["attack one"],
        "two": ["attack two"],
    }
    assert registry.origin("attack", "two").where == str(tmp_path / "two")


def test_what_is_no_plugin_is_left_alone(tmp_path):
    put(tmp_path, {"_draft": "1/0", "notes/draft": "1/0", "__init__": "1/0"})
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".hidden.py").write_text("1/0")
    assert locals_of(load_registry(tmp_path)) == {}


def test_the_folder_is_plugins_unless_another_is_named(tmp_path, monkeypatch):
    put(tmp_path / "plugins", one=attack("one"))
    put(tmp_path / "elsewhere", two=attack("two"))
    monkeypatch.chdir(tmp_path)
    assert list(locals_of(load_registry())) == ["one.py"]
    assert list(locals_of(load_registry(Path("elsewhere")))) == ["two.py"]
    assert locals_of(load_registry(local=False)) == {}
    with pytest.raises(PluginError, match="--plugins nowhere: there is no such folder"):
        load_registry(Path("nowhere"))


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout."""
    copy = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "plugins", copy / "plugins", ignore=ignore)
    for theirs in set((copy / "plugins").glob("*.py")) - {copy / "plugins" / "__init__.py"}:
        theirs.unlink()  # what whoever runs the tests has dropped into the checkout
    shutil.copytree(ROOT / "robustbench_meta", copy / "robustbench_meta", ignore=ignore)
    put(copy / "plugins", dropped=attack("dropped"))
    return copy


def python(folder, *arguments, path=""):
    """The output of Python in a folder, whose package is imported, or (as when a wheel is installed) another one."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("running", [True, False], ids=["the running checkout", "another checkout"])
def test_what_is_dropped_into_a_checkouts_plugins_is_found_once(checkout, running):
    code = (
        "import site; site.main()\nfrom robustbench_meta.registry.registry import load_registry\n"
        "for found in load_registry().found: print(found.origin.kind, found.origin.where, found.brought, found.error)"
    )
    shown = python(checkout, "-S", "-c", code, path=checkout if running else ROOT)
    assert [line for line in shown.splitlines() if not line.startswith("built-in")] == [
        f"local {checkout / 'plugins' / 'dropped.py'} ['attack dropped'] None"
    ]
    assert shown.count("'attack fgsm'") == 1
    assert not [line for line in shown.splitlines() if not line.endswith(" None")]


def test_a_checkout_runs_its_own_built_in_plugins_not_those_that_are_installed(checkout):
    fgsm = checkout / "plugins" / "attacks" / "fgsm.py"
    fgsm.write_text(fgsm.read_text().replace('source: ClassVar[str] = "', 'source: ClassVar[str] = "edited: '))
    code = (
        "import robustbench_meta.registry.registry as registry\n"
        "loaded = registry.load_registry(local=False)\n"
        "import robustbench_meta.plugins as plugins\n"
        "print(loaded.get('attack', 'fgsm').source, registry.__file__, plugins.__file__)"
    )
    (checkout / "show.py").write_text(code)
    shown = python(checkout, "show.py")
    assert shown.startswith("edited: ")
    assert shown.split()[-2:] == [
        str(checkout / "robustbench_meta" / "registry" / "registry.py"),
        str(checkout / "plugins" / "__init__.py"),
    ]


PLUGINS = [
    "learner own",
    *("learner maml", "learner adml", "learner aq", "learner protonet", "attack none", "attack fgsm", "attack cw"),
    *("dataset toy", "backbone conv4", "backbone linear"),
]
EDITS = {
    "plugins/learners/maml.py": {"learner maml", "learner adml", "learner own"},
    "plugins/learners/adml.py": {"learner adml"},
    "plugins/learners/another.py": set(),
    "plugins/attacks/fgsm.py": {"attack fgsm"},
    "plugins/attacks/pgd.py": set(),
    "plugins/attacks/none.py": {"attack none"},
    "plugins/attacks/torchattacks/victim_module.py": {"attack cw"},
    "plugins/backbones/conv4.py": {"backbone conv4"},
    "robustbench_meta/engine/engine.py": {"training"},
    "robustbench_meta/evaluation/evaluator.py": {"evaluation"},
    "robustbench_meta/cli/show.py": set(),
}
"""Which of these plugins, and of the suite's own code for training and evaluation, a file is part of."""


def test_an_edit_is_another_identity_for_what_needs_that_module_only(checkout):
    put(checkout / "plugins", own="from robustbench_meta.plugins.learners.maml import MAML\n" + attack("x").replace(
        "contracts import Attack", "plugins.learners.maml import MAML as Attack"
    ).replace("attacks", "learners").replace('"x"', '"own"'))  # fmt: skip
    code = f"""
import json, sys
sys.path.insert(0, ".")
from robustbench_meta.registry.registry import core_code, load_registry

def identities():
    loaded, stages = load_registry(), ["training", "evaluation"]
    core_code.cache_clear()
    found = {{name: loaded.origin(*name.split()).identity for name in {PLUGINS}}}
    return found | {{name: core_code(name) for name in stages}}

for name in {list(EDITS)}:
    before = identities()
    with open(name, "a") as file:
        file.write("# edited\\n")
    after = identities()
    print(json.dumps([name, sorted(each for each in before if before[each] != after[each])]))
"""
    found = dict(map(json.loads, python(checkout, "-c", code).splitlines()))
    assert {name: set(changed) for name, changed in found.items()} == EDITS


def test_torchattacks_counts_for_the_attacks_that_run_it_only(registry):
    identities = {name: registry.origin("attack", name).identity for name in registry.names("attack")}
    with_it = {name for name, identity in identities.items() if "torchattacks==" in identity}
    assert {"cw", "deepfool", "torchattacks-pgd"} <= with_it
    assert not {"fgsm", "pgd", "pgdl2", "none"} & with_it
    assert all("torchattacks" in registry.origin("attack", name).where for name in with_it)


def test_a_built_in_plugin_needs_at_least_what_python_imports_for_it():
    code = """
import importlib, json, sys
from robustbench_meta.registry.discovery import _built_in_modules

found = {}
for name, _ in list(_built_in_modules()):
    for each in [each for each in sys.modules if each.startswith("robustbench_meta.plugins.")]:
        del sys.modules[each]
    importlib.import_module(name)
    found[name] = [each for each in sys.modules if each.startswith("robustbench_meta.plugins")]
print(json.dumps(found))
"""
    imported = json.loads(python(ROOT, "-c", code))
    assert len(imported) > 10
    for name, modules in imported.items():
        assert set(modules) <= set(
            imports_of(name, partial(source_in, [ROOT / "plugins"], below="robustbench_meta.plugins")).code
        ), name


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import os, kit.one", {"kit", "kit.one"}),
        ("from . import one", {"kit", "kit.one"}),
        ("from .one import name", {"kit", "kit.one"}),
        ("from .deep import part", {"kit", "kit.deep", "kit.deep.part"}),
        ("from .deep.part import name as other", {"kit", "kit.deep", "kit.deep.part"}),
        ("from kit.deep import name", {"kit", "kit.deep"}),
        ("import kit.deep.up", {"kit", "kit.deep", "kit.deep.up", "kit.one"}),
        ("def later():\n    from .one import name\n    return name", {"kit", "kit.one"}),
        ("try:\n    from .one import name\nexcept ImportError:\n    pass", {"kit", "kit.one"}),
        ("from . import chain", {"kit", "kit.chain", "kit.one"}),
        ("from .main import later", {"kit"}),
        ("from .... import one\nfrom .nowhere import name\nimport kitten", {"kit"}),
        ("from .one import name\n1 +", {"kit"}),
        ("x = 'from .one import name'  # import kit.one", {"kit"}),
    ],
)
def test_what_a_module_needs_is_read_from_its_import_statements(tmp_path, code, needed):
    put(tmp_path, {
        "main": code, "one": "name = 1", "chain": "from . import one\nfrom .main import nothing",
        "__init__": "", "deep/__init__": "", "deep/part": "name = 1", "deep/up": "from ..one import name",
    })  # fmt: skip
    found = imports_of("kit.main", partial(source_in, [tmp_path / "none", tmp_path], below="kit"))
    assert set(found.code) == needed | {"kit.main"}
    assert found.code["kit.main"] == code.encode()
    assert found.others - {"os", "kitten"} == set()
    assert ("os" in code) == ("os" in found.others)


@pytest.mark.parametrize(
    ("dataset", "option", "typed", "value"),
    [("image-folder", "path", "2024/11", "2024/11"), ("image-folder", "csv", "1/2", "1/2")],
)
def test_a_ratio_is_read_only_where_a_number_is_wanted(registry, dataset, option, typed, value):
    assert getattr(registry.make("dataset", dataset, {option: typed}), option) == value
    assert registry.make("learner", "maml", {"alpha": "2/5"}).alpha == 0.4
    assert registry.make("learner", "adml", {"train_eps": "8/255"}).train_eps == 8 / 255
    assert registry.make("attack", "pgd", {"alpha": "2/255"}).alpha == 2 / 255


def test_options_that_do_not_go_together_are_shown_as_typed(registry):
    with pytest.raises(BenchError) as raised:
        registry.make("attack", "pgd", {"restarts": "3", "random_start": "false"})
    assert str(raised.value) == (
        "invalid attack 'pgd:restarts=3,random_start=false': restarts without random_start would all be the same one"
    )


def distribution(folder, name, module, files, version="1.0"):
    """Lay out an installed distribution with an entry point of ours, as pip does; `folder` is to be on sys.path."""
    put(folder, files)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[robustbench_meta]\nmine = {module}\n")
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Distributions laid out here count as installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name, module in sys.modules.items() if str(site) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_an_installed_distribution_is_found(installed):
    distribution(installed, "stranger", "stranger", {"stranger": attack("strange")})
    registry = load_registry(local=False)
    assert registry.origin("attack", "strange") == Origin(
        "installed", "stranger 1.0 (stranger)", "stranger 1.0 stranger"
    )


def test_a_distribution_that_names_a_module_twice_is_loaded_once(installed):
    distribution(installed, "stranger", "stranger", {"stranger": attack("strange")})
    entry_points = installed / "stranger-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text(entry_points.read_text() + "again = stranger\n")
    assert [found.error for found in load_registry(local=False).found if found.origin.kind == "installed"] == [None]


def test_an_editable_distribution_has_another_identity_when_its_code_changes(installed, tmp_path, monkeypatch):
    source = put(tmp_path / "source", {
        "pkg/__init__": "", "pkg/attacks": "from helper import x\n" + attack("strange"), "helper": "x = 1",
        "pkg/other": "",
    })  # fmt: skip
    monkeypatch.syspath_prepend(source)
    distribution(installed, "stranger", "pkg.attacks", {})

    def identity():
        return load_registry(local=False).origin("attack", "strange").identity

    first = identity()
    assert first.startswith("stranger 1.0 pkg.attacks sha256:")
    put(source, {"pkg/other": "x = 2"})
    assert identity() == first, "it imports nothing of that"
    put(source, helper="x = 2")
    assert identity() != first
    for name in ("pkg", "pkg.attacks", "helper"):
        sys.modules.pop(name, None)


HELPED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent / "lib"))
{imports}
""" + ATTACK.replace("{about}", "Of a stranger.").replace("{name}", "helped").replace(
    "        return x\n",
    "        {lazy}\n        return x\n\n    @staticmethod\n    def factor():\n        {lazy}\n        return FACTOR\n",
)


@pytest.mark.parametrize(
    ("imports", "lazy"),
    [
        ("from one_helper import FACTOR", "pass"),
        ("", "from one_helper import FACTOR"),
        ("from two_helper import FACTOR", "pass"),
        ("from kit_helper.deep import FACTOR", "pass"),
    ],
    ids=["import", "import in a function", "helper of a helper", "package"],
)
@pytest.mark.parametrize("whole", [True, False], ids=["package", "file"])
def test_an_edited_helper_of_a_plugin_is_another_plugin(tmp_path, monkeypatch, imports, lazy, whole):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("one_helper", "two_helper", "kit_helper", "kit_helper.deep"):
        sys.modules.pop(name, None)
    place = tmp_path / "mine" if whole else tmp_path
    helper = {"one_helper": "FACTOR = 1", "two_helper": "from one_helper import FACTOR", "kit_helper/__init__": "",
              "kit_helper/deep": "from one_helper import FACTOR", "never_helper": "1 / 0"}  # fmt: skip
    put(place / "lib", helper)
    put(place, {"__init__" if whole else "mine": HELPED.format(imports=imports, lazy=lazy)})
    found = [load_registry(tmp_path) for _ in range(2)]
    put(place / "lib", one_helper="FACTOR = 2  # edited")
    found.append(load_registry(tmp_path))
    assert [each.get("attack", "helped").factor() for each in found[1:]] == [1, 2] or lazy != "pass"
    first, again, edited = (each.origin("attack", "helped").identity for each in found)
    assert first == again != edited
    put(place / "lib", never_helper="2 / 0")
    assert whole or load_registry(tmp_path).origin("attack", "helped").identity == edited


READING = '''
import torch
from pydantic import Field
from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone, File
from robustbench_meta.plugins.learners.maml import MAML

class Reader(MAML):
    """It begins with weights that a file scales."""
    name = "reader"
    weights: {option} | None = Field(None, description="a file with a tensor")

    def init(self, weights, feature_shape):
        scale = torch.load(self.weights) if self.weights else torch.tensor(1.0)
        return {{name: weight * scale for name, weight in weights.items()}}

@hookimpl
def register_learners(register):
    register(Reader)
'''


def test_a_file_that_an_option_names_identifies_results_by_its_content(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    put(tmp_path / "plugins", reader=READING.format(option="File"))
    torch.save(torch.tensor(1.0), "w.pt")
    command = [*SMOKE, "--learner", "reader:weights=w.pt", "--attack", "none", "--dataset", "toy"]
    assert "1 cell done, 0 skipped" in bench(*command)[1]
    assert "0 cells done, 1 skipped" in bench(*command)[1]
    torch.save(torch.tensor(0.0), "w.pt")
    code, shown = bench(*command)
    assert "1 cell done, 0 skipped" in shown
    assert "which no option" not in shown
    torch.save(torch.tensor(1.0), "w.pt")
    assert "0 cells done, 1 skipped" in bench(*command)[1]
    code, shown = bench(*SMOKE, "--learner", "reader:weights=nowhere.pt", "--dataset", "toy")
    assert code == 2
    assert "invalid weights='nowhere.pt' of learner 'reader': there is no such file" in shown


def test_a_file_that_no_option_names_is_told_of(tmp_path, monkeypatch, caplog):
    import torch

    monkeypatch.chdir(tmp_path)
    put(tmp_path / "plugins", reader=READING.format(option="str"))
    torch.save(torch.tensor(1.0), "hidden.pt")
    bench(*SMOKE, "--learner", "reader:weights=hidden.pt", "--attack", "none", "--dataset", "toy")
    told = {each.message for each in caplog.records if "no option" in each.message}
    assert len(told) == 1
    assert told.pop().startswith("'reader' read hidden.pt, which no option of type File names: ")


def test_an_installed_distribution_runs_through_the_grid(tmp_path):
    """pip installs it, and nothing of the project is touched: `bench list` shows it and `bench run` runs it."""
    source = tmp_path / "source"
    put(source, sign_noise=(EXAMPLES / "sign_noise.py").read_text())
    put(source, pixel_centroid=(EXAMPLES / "pixel_centroid.py").read_text())
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "bench-stranger"\nversion = "0.3"\n'
        '[project.entry-points.robustbench_meta]\nnoise = "sign_noise"\ncentroid = "pixel_centroid"\n'
        '[tool.setuptools]\npy-modules = ["sign_noise", "pixel_centroid"]\n'
    )
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", tmp_path / "site", source], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "300"}

    what = ["--learner", "pixel-centroid", "--attack", "sign-noise:tries=2", "--scenario", "clean/adv"]
    code = (
        "from robustbench_meta.cli import main\n"
        f"for command in {[['list'], ['plugins'], [*SMOKE, *what]]!r}:\n"
        "    try: main(command)\n    except SystemExit as stop: assert not stop.code, (command, stop.code)\n"
        "    print('THE NEXT')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    listed, plugins, _ = done.stdout.split("THE NEXT\n", 2)
    assert re.search("^sign-noise ", listed, re.MULTILINE)
    assert "bench-stranger 0.3 (sign_noise)" in plugins
    assert re.search(r"^pixel-centroid .*  installed: bench-stranger 0.3 \(pixel_centroid\)", listed, re.MULTILINE)
    rows = pd.read_csv(tmp_path / "results" / "leaderboard.csv")
    assert list(zip(rows["learner"], rows["attack"], strict=True)) == [("pixel-centroid", "sign-noise:tries=2")]


# -- examples --------------------------------------------------------------------------------------


def test_the_examples_run_through_the_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "plugins", **{path.stem: path.read_text() for path in EXAMPLES.glob("*.py")})
    put(tmp_path / "plugins", broken="def broken(:\n")
    plugins = ("--learner", "pixel-centroid", "--learner", "maml", "--attack", "sign-noise", "--attack", "none")
    code, shown = bench(*SMOKE, *plugins, "--dataset", "gratings", "--backbone", "pooled-linear:grid=4")
    assert code == 0, shown
    rows = pd.read_csv(tmp_path / "results" / "leaderboard.csv")
    assert len(rows) == 4
    assert set(rows["dataset"]) == {"gratings"}
    assert set(rows["backbone"]) == {"pooled-linear:grid=4"}
    log = (tmp_path / "cells.log").read_text().splitlines()
    assert len(log) == 4
    assert any(line.startswith("pixel-centroid sign-noise eps=0.1 clean/adv: ") for line in log)


# -- broken plugins --------------------------------------------------------------------------------

NOT_ABSTRACT = "    def perturb(self, model, x, y, threat, random):\n        return x\n"
BROKEN = {
    "syntax_error": ("x = 1\ndef (:\n", r"^syntax error in line 2: "),
    "import_error": ("import nowhere_to_be_found", r"^ModuleNotFoundError: No module named .*\(line 1\)$"),
    "raises": ("x = 1\n\n1 / 0\n", r"^ZeroDivisionError: division by zero \(line 3\)$"),
    "exits": ("raise SystemExit(3)", r"^SystemExit: 3"),
    "no_hooks": ("x = 1", r"^it implements no hook of robustbench_meta; there is: register_learners, "),
    "unmarked": (attack("unmarked").replace("@hookimpl", ""), r"mark register_attacks with @hookimpl$"),
    "unknown_hook": (
        attack("unknown-hook").replace("register_attacks", "register_attack"),
        r"^unknown hook 'register_attack': did you mean 'register_attacks'",
    ),
    "wrong_arguments": (
        attack("wrong-arguments").replace("(register):", "(registry, register):"),
        r"^its hook is register_attacks\(registry, register\); expected register_attacks\(register\), or fewer$",
    ),
    "raises_in_hook": (
        attack("raises-in-hook") + "    raise RuntimeError('on\\nsecond thought')\n",
        r"^RuntimeError: on second thought \(line \d+\)$",
    ),
    "exits_in_hook": (attack("exits-in-hook") + "    raise SystemExit\n", r"^SystemExit: no message"),
    "abstract": (attack("abstract").replace(NOT_ABSTRACT, ""), r"^attack Mine does not define perturb$"),
    "bad_name": (attack("Bad Name"), r"^attack Mine has the name 'Bad Name'; expected "),
    "no_name": (attack("x").replace('name = "x"', ""), r"^attack Mine has the name None; expected "),
    "instance": (
        attack("instance").replace("register(Mine)", "register(Mine())"),
        r"^register_attacks: invalid .*: expected a subclass of Attack$",
    ),
    "wrong_kind": (
        attack("wrong-kind").replace("register_attacks", "register_learners"),
        r"^register_learners: invalid .*Mine.*: expected a subclass of Learner$",
    ),
    "twice": (attack("twice") + "    register(Mine)\n", r"^it registers two classes as the attack 'twice'$"),
    "not_text": ("x = '\0'", r"null bytes"),
}


@pytest.fixture(scope="module")
def clean():
    return load_registry(local=False)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_costs_its_own_line_only(name, tmp_path, clean):
    text, reason = BROKEN[name]
    put(tmp_path, **{name: text, "zz_sound": attack("sound")})
    registry = load_registry(tmp_path)
    found = locals_of(registry)
    assert found["zz_sound.py"].error is None
    assert found[f"{name}.py"].brought == []
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found[f"{name}.py"].error)
    assert "\n" not in found[f"{name}.py"].error
    for kind in KINDS:
        assert set(registry.names(kind)) - set(clean.names(kind)) == ({"sound"} if kind == "attack" else set())
    assert len(registry.manager.get_plugins()) == len(clean.manager.get_plugins()) + 1, "its events are not called"


def test_all_broken_plugins_at_once_are_told_by_bench_plugins(tmp_path):
    put(tmp_path, {name: text for name, (text, _) in BROKEN.items()})
    put(tmp_path, {"package/__init__": "from . import part", "package/part": "\n1 +\n"})
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    code, shown = bench("plugins", "--plugins", tmp_path)
    assert code == 0
    assert f"{len(BROKEN) + 2} failed" in shown
    for name in BROKEN:
        assert f"{tmp_path / name}.py" in shown
    assert f"syntax error in line 2 of {tmp_path / 'package' / 'part.py'}" in shown
    assert "FileNotFoundError: [Errno 2] No such file" in shown
    (tmp_path / "none").mkdir()
    listed = bench("list", "attacks", "--plugins", tmp_path)[1]
    assert listed == bench("list", "attacks", "--plugins", tmp_path / "none")[1]


def test_an_installed_plugin_that_breaks_costs_its_own_line_only(installed):
    distribution(installed, "stranger", "stranger", {"stranger": "import nowhere_to_be_found"})
    (found,) = [found for found in load_registry(local=False).found if found.origin.kind == "installed"]
    assert found.origin.where == "stranger 1.0 (stranger)"
    assert found.error.startswith("ModuleNotFoundError: No module named 'nowhere_to_be_found'")


def test_a_broken_package_leaves_no_module_behind(tmp_path):
    put(tmp_path, {"pkg/__init__": "from . import part\n1 / 0", "pkg/part": ""})
    load_registry(tmp_path)
    assert not [name for name in sys.modules if name.startswith("robustbench_meta_local_") and "pkg" in name]


def test_an_unknown_name_hints_at_plugins_that_failed(tmp_path):
    put(tmp_path, mine="1 / 0")
    with pytest.raises(BenchError, match=r"1 plugin\(s\) failed to load: see `bench plugins`"):
        load_registry(tmp_path).get("attack", "mine")


# -- two plugins with one name ---------------------------------------------------------------------


def test_two_plugins_with_one_name_are_an_error_that_names_both(tmp_path):
    put(tmp_path, a=attack("mine"), b=attack("mine"))
    with pytest.raises(CollisionError) as raised:
        load_registry(tmp_path)
    assert str(raised.value) == (
        f"two plugins bring the attack 'mine': local {tmp_path / 'a.py'} and local {tmp_path / 'b.py'}; "
        "rename or remove one of them"
    )


def test_a_built_in_name_is_taken(tmp_path):
    put(tmp_path, mine=attack("fgsm"))
    with pytest.raises(CollisionError, match=r"built-in robustbench_meta\.plugins\.attacks\.fgsm and local .*mine\.py"):
        load_registry(tmp_path)


def test_one_name_for_a_learner_and_an_attack_is_no_collision(tmp_path):
    put(tmp_path, mine=attack("maml"))
    assert load_registry(tmp_path).origin("attack", "maml").kind == "local"


def test_bench_plugins_shows_a_collision_that_stops_the_rest(tmp_path):
    put(tmp_path, mine=attack("fgsm"))
    for command in (["list"], [*SMOKE, "--results", tmp_path / "results"]):
        code, shown = bench(*command, "--plugins", tmp_path)
        assert code == 2
        assert "two plugins bring the attack 'fgsm'" in shown
    assert not (tmp_path / "results").exists()
    code, shown = bench("plugins", "--plugins", tmp_path)
    assert code == 0
    assert "failed: two plugins bring the attack 'fgsm'" in shown
    assert ", 1 failed" in shown


def test_the_first_of_two_stays_when_that_is_asked_for(tmp_path):
    put(tmp_path, a=attack("mine", "The first."), b=attack("mine", "The second."))
    registry = load_registry(tmp_path, strict=False)
    assert registry.get("attack", "mine").summary() == "The first."
    assert locals_of(registry)["b.py"].brought == []


# -- identity: edited plugins are other plugins -----------------------------------------------------


def identity(folder, name="mine"):
    return load_registry(folder).origin("attack", name).identity


@pytest.mark.parametrize(
    ("gone", "new"),
    [(None, {"mine/__init__": attack("mine") + "# edited\n"}), ("mine/part", {"mine/part": "x = 2"}),
     (None, {"mine/other": ""}), ("mine/part", {"mine/deep/part": "x = 1"}), ("mine/last", {})],
    ids=["a file edited", "a module changed", "a module more", "a module moved", "a module less"],
)  # fmt: skip
def test_an_edited_package_is_another_plugin_and_the_same_one_elsewhere_is_not(tmp_path, gone, new):
    package = {"mine/__init__": attack("mine"), "mine/part": "x = 1", "mine/last": ""}
    put(tmp_path, package)
    first = identity(tmp_path)
    assert first == identity(tmp_path) == identity(put(tmp_path / "elsewhere", package))
    if gone:
        (tmp_path / f"{gone}.py").unlink()
    put(tmp_path, new)
    assert identity(tmp_path) != first


def test_an_edited_package_is_imported_afresh(tmp_path):
    package = {"mine/__init__": "from .part import register_attacks\n"}
    put(tmp_path, {**package, "mine/part": attack("mine", "Before.")})
    assert load_registry(tmp_path).get("attack", "mine").summary() == "Before."
    put(tmp_path, {**package, "mine/part": attack("mine", "After, in a longer line.")})
    assert load_registry(tmp_path).get("attack", "mine").summary() == "After, in a longer line."


def test_an_edited_plugin_gives_new_cells(tmp_path):
    command = [*SMOKE, "-l", "pixel-centroid", "-a", "mine", "--plugins", tmp_path, "--results", tmp_path / "results"]
    put(tmp_path, mine=attack("mine"), centroid=(EXAMPLES / "pixel_centroid.py").read_text())
    assert "1 cell done, 0 skipped" in bench(*command)[1]
    assert "0 cells done, 1 skipped" in bench(*command)[1]
    put(tmp_path, mine=attack("mine", "Edited."))
    assert "1 cell done, 0 skipped" in bench(*command)[1]


# -- events ----------------------------------------------------------------------------------------


class Tracker:
    """Hears, and raises if it shall."""

    def __init__(self, error=None):
        self.events, self.error = [], error

    @hookimpl
    def cell_failed(self, cell, reason):
        self.events.append((cell, reason))
        if self.error is not None:
            raise self.error


def tracked(*trackers):
    registry = Registry()
    for number, tracker in enumerate(trackers):
        assert registry.add(tracker, Origin("local", f"tracker{number}.py", "")).error is None
    return registry


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1)], ids=["raises", "exits"])
def test_a_tracker_that_breaks_is_warned_about_once_and_stops_nobody(error, caplog):
    trackers = Tracker(), Tracker(error), Tracker()
    registry = tracked(*trackers)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            registry.emit("cell_failed", cell={"number": number}, labels={}, training="maml (seed 0)", reason="none")
    assert [len(tracker.events) for tracker in trackers] == [3, 3, 3]
    (warning,) = caplog.messages
    assert "local: tracker1.py" in warning
    assert "cell_failed" in warning
    assert str(error) in warning


def test_interrupting_a_tracker_interrupts_the_run():
    with pytest.raises(KeyboardInterrupt):
        tracked(Tracker(KeyboardInterrupt())).emit("cell_failed", cell={}, labels={}, training="", reason="")


BROKEN_TRACKER = """
from robustbench_meta import hookimpl

@hookimpl
def {event}():
    raise RuntimeError("no network")
"""
EVENTS = [name for name in vars(hookspecs) if name.startswith(("run_", "training_", "evaluation_", "cell_"))]


def test_a_run_survives_trackers_that_break_in_every_event(tmp_path):
    assert len(EVENTS) == 6
    for event in EVENTS:
        put(tmp_path, **{event: BROKEN_TRACKER.format(event=event)})
    code, shown = bench(
        *SMOKE, "-l", "protonet", "-a", "none", "--plugins", tmp_path, "--results", tmp_path / "results"
    )
    assert code == 0, shown
    assert "1 cell done" in shown


# -- the built-in plugins --------------------------------------------------------------------------


def test_every_built_in_plugin_is_found_once_and_works(registry):
    errors = {found.origin.where: found.error for found in registry.found if found.error}
    assert errors == {}
    where = [found.origin.where for found in registry.found if found.origin.kind == "built-in"]
    assert len(where) == len(set(where))
    sources = {
        f"robustbench_meta.plugins.{path.relative_to(ROOT / 'plugins').with_suffix('').as_posix()}".replace(
            "/", "."
        ).removesuffix(".__init__")
        for path in (ROOT / "plugins").glob("*/**/*.py")
        if "@hookimpl" in path.read_text()
    }
    assert set(where) == sources


def test_no_built_in_plugin_has_a_door_of_its_own(registry):
    """The package imports none of them: what they bring comes through the hooks alone."""
    assert all(found.brought for found in registry.found if found.origin.kind == "built-in")
    for path in (ROOT / "robustbench_meta").rglob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) .*\bplugins\b.*$", path.read_text(), re.MULTILINE)
        assert not [line for line in imported if not re.search(r"(options|robustbench_meta\.cli) import", line)], (
            f"{path}: {imported}"
        )


def test_registries_are_independent(registry, tmp_path):
    put(tmp_path, mine=attack("mine"))
    assert "mine" in load_registry(tmp_path).names("attack")
    assert "mine" not in registry.names("attack")
