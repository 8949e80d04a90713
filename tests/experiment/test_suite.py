"""Suite files: what they say is what is typed, mistakes are told with their place, saving loses nothing."""

from __future__ import annotations

import inspect
import itertools
import re
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_meta.cli import main
from robustbench_meta.cli.run import run as run_command
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.attack_grid import split_eps
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.experiment.suite import (
    KEYS,
    Suite,
    SuitePart,
    find_suite,
    parse_suite,
    save_suite,
    shipped,
    suite_text,
)
from robustbench_meta.hookspecs import hookimpl
from robustbench_meta.jobs import runner
from robustbench_meta.options import SCENARIOS
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.store import Store

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TOY = {"profile": "smoke", "dataset": "toy", "checks": False}
TWO = b"""
profile = "smoke"
dataset = "toy"
checks = false
attack = ["none", "fgsm"]
learner = "maml"

[[parts]]
about = "one shot"

[[parts]]
about = "two shots, and another learner on one"
shot = 2

[[parts]]
learner = ["maml", "adml:first_order=true"]
seed = [0, 1]
"""


def specs(content, name="x.toml"):
    return [part.spec() for part in parse_suite(content, name).parts]


def keys(registry, *runs):
    return [[cell.key for cell in grid.cells] for grid in runner.build_grids(runs, registry, None)]


# -- the same as what is typed ---------------------------------------------------------------------


def test_the_keys_are_the_options_of_the_command():
    options = {
        name.lstrip("-") for parameter in inspect.signature(run_command).parameters.values()
        for name in re.findall(r"--[a-z-]+", str(parameter.annotation)) or [parameter.name.replace("_", "-")]
    } - {"suite", "no-checks"}  # fmt: skip
    assert set(KEYS) <= options
    assert set(KEYS.values()) == set(RunSpec.model_fields) - {"device", "compile", "chunk"}


def test_a_suite_makes_the_cells_of_the_typed_command(registry):
    content = b"""
profile = "smoke"
dataset = "toy"
way = 2
learner = ["maml", "adml:outer=sequential"]
attack = ["none", "pgd:steps=2"]
eps = [0.001, "1/255"]
scenario = ["clean/adv", "adv/adv"]
seed = [3, 4]
checks = false
"""
    typed = RunSpec.read(
        profile="smoke", dataset="toy", way=2, learners=("maml", "adml:outer=sequential"),
        attacks=("none", "pgd:steps=2"), eps=("0.001", "1/255"), scenarios=("clean/adv", "adv/adv"), seeds=(3, 4),
        checks=False,
    )  # fmt: skip
    assert specs(content) == [typed]
    assert keys(registry, *specs(content)) == keys(registry, typed)


def test_parts_are_defaults_with_what_a_part_says_in_their_place():
    base = {"profile": "smoke", "dataset": "toy", "checks": False, "attacks": ("none", "fgsm"), "learners": ("maml",)}
    assert specs(TWO) == [
        RunSpec.read(**base),
        RunSpec.read(**base, shot=2),
        RunSpec.read(**{**base, "learners": ("maml", "adml:first_order=true"), "seeds": (0, 1)}),
    ]
    assert parse_suite(TWO, "x.toml").parts[0].about == "one shot"


def test_what_is_typed_beside_a_suite_takes_the_place_in_every_part():
    suite = parse_suite(TWO, "x.toml").overridden({"learners": ("aq",), "shot": 3, "seeds": (0,)})
    assert [(part.spec().learners, part.spec().shot) for part in suite.parts] == [(("aq",), 3)]  # all three are equal
    with pytest.raises(BenchError, match=r"^invalid --way 1: "):
        parse_suite(TWO, "x.toml").overridden({"way": 1})


# -- a run of several parts ------------------------------------------------------------------------


class Ear:
    """Hears the events of a run."""

    def __init__(self):
        self.started, self.finished, self.trained = [], [], set()

    @hookimpl
    def run_started(self, run, cells, work, trainings):
        self.started.append((run, cells, work, {each["title"] for each in trainings.values()}))

    @hookimpl
    def training_progress(self, training, step, steps):
        if step == steps:
            self.trained.add(training)

    @hookimpl
    def run_finished(self, finished, failed):
        self.finished.append((finished, failed))


def test_the_parts_are_one_run_that_trains_nothing_twice(tmp_path):
    registry, ear = load_registry(None, local=False), Ear()
    registry.manager.register(ear)
    runs = specs(TWO)
    alone = [set(each) for run in runs for each in keys(registry, run)]
    wanted = set().union(*alone)
    assert len(wanted) < sum(map(len, alone))  # the first and the third share cells
    grids = runner.build_grids(runs, registry, None)
    assert sorted(cell.key for grid in grids for cell in grid.cells) == sorted(wanted)
    assert len({id(grid.splits) for grid in grids}) == 1
    summary = runner.run(grids, registry, Store(tmp_path), CPU)
    assert (summary.finished, summary.skipped, summary.failed) == (len(wanted), 0, [])
    assert {record["key"] for record in Store(tmp_path).records()} == wanted
    [(about, cells, work, titles)] = ear.started
    assert (cells, ear.finished) == (len(wanted), [(len(wanted), 0)])
    assert about["learners"] == ["maml", "adml:first_order=true"]
    assert (about["dataset"], about["shot"], len(about["parts"])) == ("toy", None, 3)
    assert {share["training"] for share in work if share["train"]} == ear.trained == titles
    assert len(ear.trained) == len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 5
    assert sum(share["cells"] for share in work) == cells

    policy = runner.Policy(fresh=True)
    again = runner.run(runner.build_grids(runs, registry, None), registry, Store(tmp_path), CPU, policy)
    assert (again.finished, again.skipped) == (len(wanted), 0)  # no part forgets what another has just made


def test_a_part_that_cannot_run_is_told_with_its_place(registry):
    content = b'profile = "smoke"\ndataset = "toy"\n\n[[parts]]\nshot = 1\n\n[[parts]]\nlearner = "protonet"\n'
    suite = parse_suite(content, "x.toml")
    with pytest.raises(BenchError, match=r"^x\.toml: parts\[1\]\.learner: learner 'protonet' cannot run here"):
        expand(suite, registry)


def expand(suite, registry):
    return runner.build_grids(
        [part.spec() for part in suite.parts], registry, None, [part.placed for part in suite.parts]
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('attack = ["none",\n "fgsm",\n "pdg"]\n', "attack[2]: unknown attack 'pdg': did you mean"),
        ('attack = ["none", "fgsm", "pgd:stepz=3"]\n', "attack[2]: unknown option 'stepz' of attack 'pgd'"),
        ('[[parts]]\nattack = ["none", "pdg"]\n', "parts[0].attack[1]: unknown attack 'pdg'"),
        ('attack = ["none", "pdg"]\n[[parts]]\nshot = 1\n', "attack[1]: unknown attack 'pdg'"),
        ('attack = ["none", "fgsm:eps=-1"]\n[[parts]]\nshot = 1\n', "attack[1]: eps '-1' is negative"),
        ('learner = ["maml", "aq:train_attack=pgdd"]\n', "learner[1]: unknown attack 'pgdd'"),
        ('learner = "admll"\n', "learner: unknown learner 'admll'"),
        ('dataset = "omniglott"\n', "dataset: unknown dataset 'omniglott'"),
        ('backbone = "conv4:width=x"\n', "backbone: "),
        ('eps = [0.1, 3]\n', "eps[1]: invalid eps 3 for attack 'fgsm'"),
        ('dataset = "toy"\nway = 3\n', "way: --way 3: the data set 'toy' gives 2-way tasks only"),
        ('shot = 500\n', "shot: glyphs"),
        ('way = 9000\n', "way: glyphs"),
        ('surrogate = "mml"\nscenario = "clean/transfer"\n', "surrogate: unknown learner 'mml'"),
        ('surrogate = "maml"\n\n[[parts]]\nscenario = "clean/transfer"\n[[parts]]\nscenario = "clean/adv"\n',
         "surrogate: is for the scenario clean/transfer: add --scenario clean/transfer (or not to parts[1])"),
        ('eps = 0.1\nattack = ["fgsm",\n "pgdl2"]\n', "eps: --eps 0.1 would go to attacks of several norms"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value)[:40],
)  # fmt: skip
def test_a_mistake_in_what_is_named_is_told_with_its_place(registry, content, told):
    with pytest.raises(BenchError) as found:
        expand(parse_suite(content.encode(), "x.toml"), registry)
    assert str(found.value).startswith(f"x.toml: {told}")


def test_what_was_typed_is_not_told_as_the_files(registry):
    suite = parse_suite(b'learner = "maml"\nattack = "fgsm"\n', "x.toml")
    for typed in ({"learners": ("mml",)}, {"attacks": ("none", "pdg")}, {"way": 9000}):
        with pytest.raises(BenchError) as found:
            expand(suite.overridden(typed), registry)
        assert "x.toml" not in str(found.value)


def test_the_command_runs_shows_saves_and_refuses_to_overwrite(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("two.toml").write_bytes(TWO)
    main_ok("run", "two.toml", "--dry-run")
    shown = capsys.readouterr().out
    assert re.search(r"^part 2$", shown, re.MULTILINE)
    assert re.search(r"^ *10  cells to do *$", shown, re.MULTILINE)  # 2 + 2 + 8, of which two are in two parts
    assert re.search(r"^ *5  learners to meta-train *$", shown, re.MULTILINE)
    assert not Path("results").exists()
    typed = ["run", "-l", "maml", "-a", "none", "--dataset", "toy", "--profile", "smoke", "--no-checks"]
    main_ok(*typed, "--save", "mine.toml", "--dry-run")
    assert "Nothing but mine.toml was written." in capsys.readouterr().out
    assert tomllib.loads(Path("mine.toml").read_text()) == {
        "learner": "maml", "attack": "none", "dataset": "toy", "profile": "smoke", "checks": False
    }  # fmt: skip
    main_ok("run", "mine.toml", "--quiet")
    main_ok(*typed, "--save", "mine.toml")
    assert "0 cells done, 1 skipped" in capsys.readouterr().out
    before = Path("mine.toml").read_bytes()
    with pytest.raises(SystemExit) as end:
        main([*typed, "--way", "2", "--save", "mine.toml", "--dry-run"])
    assert end.value.code == 2
    assert "is there already, and says something else" in " ".join(capsys.readouterr().err.split())
    assert Path("mine.toml").read_bytes() == before


def main_ok(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert not end.value.code


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "x.toml says nothing"),
        (b"# nothing\n\n", "x.toml says nothing"),
        (b'learner = "maml"\nep = 0.1\n', "x.toml: ep: unknown key 'ep': did you mean 'eps'?"),
        (b'learners = ["maml"]\n', "x.toml: learners: unknown key 'learners': did you mean 'learner'?"),
        (b"meta_steps = 3\n", "x.toml: meta_steps: unknown key 'meta_steps': did you mean 'meta-steps'?"),
        (b"zzz = 3\n", "x.toml: zzz: unknown key 'zzz'; there is: about, attack, backbone"),
        (b'"a\\u0000b" = 3\n', "x.toml: a\ufffdb: unknown key 'a\ufffdb'; there is"),
        (b'way = 5\ndevice = "cuda"\n', "x.toml: device: invalid 'cuda': a suite says what is measured"),
        (b"[defaults]\nway = 5\n", "x.toml: defaults: unknown key 'defaults'; there is"),
        (b'way = "5"\n', "x.toml: way: invalid '5': expected a valid integer"),
        (b"way = 5.0\n", "x.toml: way: invalid 5.0: expected a valid integer"),
        (b"way = true\n", "x.toml: way: invalid True: expected a valid integer"),
        (b"way = [5]\n", "x.toml: way: invalid [5]: expected a valid integer"),
        (b"way = 1\n", "x.toml: way: invalid 1: expected 2 or more"),
        (b"way = 0xffffffffffffffffff\n", "x.toml: way: invalid 4722366482869645213695: "),
        (b"way = 2020-01-02\n", "x.toml: way: invalid datetime.date(2020, 1, 2): expected a valid integer"),
        (b"checks = 1\n", "x.toml: checks: invalid 1: expected a valid boolean"),
        (b"learner = []\n", "x.toml: learner: invalid []: expected at least one"),
        (b'learner = ["maml", 3]\n', "x.toml: learner[1]: invalid 3: expected a valid string"),
        (b"learner = 3\n", "x.toml: learner: invalid 3: expected a valid string"),
        (b'backbone = ""\n', "x.toml: backbone: invalid '': expected text"),
        (b'learner = "\\u001b[2J"\n', "x.toml: learner: invalid "),
        (b'learner = ["maml:x"]\n', "x.toml: learner: 'x' in 'maml:x' has no value"),
        (b'eps = [0.1, "x"]\n', "x.toml: eps[1]: eps 'x' is not a number"),
        (b"eps = nan\n", "x.toml: eps: eps 'nan' is not a number"),
        (b'profile = "qick"\n', "x.toml: profile: unknown profile 'qick': did you mean 'quick'?"),
        (b'scenario = "adv"\n', "x.toml: scenario: unknown scenario (support/query) 'adv'"),
        (b'precision = "fp64"\n', "x.toml: precision: invalid 'fp64': expected 'float32'"),
        (b"seed = [0, 1, -2]\n", "x.toml: seed[2]: invalid -2"),
        (b'way = 5\nsurrogate = "maml"\n', "x.toml: surrogate: is for the scenario clean/transfer"),
        (b"way = 5\n[[parts]]\nshot = 1\n[[parts]]\nshot = 0\n", "x.toml: parts[1].shot: invalid 0"),
        (b"way = 1\n[[parts]]\nshot = 1\n", "x.toml: way: invalid 1"),
        (b"[[parts]]\nshot = 1\n[[parts]]\nshott = 1\n", "x.toml: parts[1].shott: unknown key 'shott': did you mean"),
        (b"[[parts]]\nshot = 1\n[[parts]]\neps = ['x']\n", "x.toml: parts[1].eps: eps 'x' is not a number"),
        (b"[parts]\nshot = 1\n", "x.toml: parts: invalid {'shot': 1}: expected a valid list"),
        (b"[[parts]]\n[[parts.parts]]\n", "x.toml: parts[0].parts: unknown key 'parts'"),
        (b"about = 3\n", "x.toml: about: invalid 3: expected a valid string"),
        (b"way = 5\nshot =\n", "x.toml: invalid TOML: Invalid value (at line 2, column 7)"),
        (b"way = 5\nway = 5\n", "x.toml: invalid TOML: Cannot overwrite a value (at line 2, column 8)"),
        (b"way = " + b"9" * 5000, "x.toml: invalid TOML: Exceeds the limit"),
        (b"way = " + b"[" * 9000, "x.toml: invalid TOML: "),
        (b"way = 5\n# \xe9\n", "x.toml: invalid UTF-8 in line 2"),
        (b"#" * 70_000, "x.toml is larger than 64 KiB"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else re.sub(r"\W+", " ", value)[:50],
)
def test_a_mistake_is_told_with_its_place(content, told):
    with pytest.raises(BenchError) as found:
        parse_suite(content, "x.toml")
    assert str(found.value).startswith(told)
    assert str(found.value).isprintable()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.mkdir(), "is a folder or device"),
        (lambda path: None, "(No such file or directory)"),
        (lambda path: path.symlink_to("/dev/zero"), "is a folder or device"),
    ],
)
def test_what_is_no_file_is_told(tmp_path, make, told):
    make(tmp_path / "x.toml")
    with pytest.raises(BenchError, match=re.escape(told)):
        find_suite(str(tmp_path / "x.toml"))


def test_a_name_without_an_ending_is_that_of_a_shipped_suite():
    with pytest.raises(BenchError, match="unknown suite 'qick': did you mean 'quick'"):
        find_suite("qick")


# -- saving ----------------------------------------------------------------------------------------

NAMES = st.sampled_from(["maml", "adml:first_order=true", "aq:train_attack=pgd:steps=7;alpha=0.02", "mäml", 'a"b\\c'])
WITHOUT_TRANSFER = sorted({*SCENARIOS} - {"clean/transfer"})
GIVEN = st.fixed_dictionaries({}, optional={
    "learners": st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    "attacks": st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    "eps": st.lists(st.sampled_from(["0.1", "8/255", "0:0.3:7", "1e-3", "0"]), min_size=1, max_size=3).map(tuple),
    "scenarios": st.lists(st.sampled_from(WITHOUT_TRANSFER), min_size=1, max_size=3).map(tuple),
    "seeds": st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3).map(tuple),
    "dataset": NAMES, "backbone": NAMES, "profile": st.sampled_from(["smoke", "quick", "paper"]),
    "way": st.integers(2, 10_000), "shot": st.integers(1, 10_000), "meta_steps": st.integers(0, 10**9),
    "episodes": st.integers(2, 10**6), "checks": st.booleans(), "precision": st.sampled_from(["float32", "bf16"]),
})  # fmt: skip


@given(st.lists(GIVEN, min_size=1, max_size=4), st.sampled_from(["", 'A "suite"']))
def test_saving_and_reading_gives_the_same_specs(given, about):
    suite = Suite(tuple(map(SuitePart, given)), about=about).overridden({"device": "cpu", "compile": "off"})
    read = parse_suite(suite_text(suite).encode(), "x.toml")
    where = {"device": "cpu", "compile": "off"}
    assert [part.spec().model_copy(update=where) for part in read.parts] == [part.spec() for part in suite.parts]
    assert read.about == about
    assert suite_text(parse_suite(suite_text(read).encode(), "y.toml")) == suite_text(read)


@pytest.mark.parametrize("text", ["maml\x1b", "maml\ud800", "maml\n"])
def test_what_no_suite_can_say_is_not_saved(tmp_path, text):
    with pytest.raises(BenchError, match=r"cannot be said in a suite|is not UTF-8"):
        save_suite(Suite().overridden({"learners": (text,)}), tmp_path / "x.toml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [b"", b"way = 7\n", b"\xff", b"no TOML"])
def test_another_file_is_never_overwritten(tmp_path, there):
    path = tmp_path / "x.toml"
    path.write_bytes(there)
    with pytest.raises(BenchError, match="says something else"):
        save_suite(Suite(), path)
    assert path.read_bytes() == there
    with pytest.raises(BenchError, match=r"ends in \.toml"):
        save_suite(Suite(), tmp_path / "x.txt")


# -- the shipped ones ------------------------------------------------------------------------------


def test_the_shipped_suites_are_read_and_told():
    assert set(shipped()) == {path.stem for path in (ROOT / "suites").glob("*.toml")} >= {"quick", "omniglot"}
    for name in shipped():
        assert find_suite(name).about


def test_the_shipped_suites_name_plugins_and_options_that_there_are(registry):
    for part in itertools.chain(*(find_suite(name).parts for name in shipped())):
        spec = part.spec()
        for kind in ("learner", "attack"):
            for choice in spec.choices(kind):
                registry.make(kind, choice.name, split_eps(choice)[0].options if kind == "attack" else choice.options)
        for kind, text in (("dataset", spec.dataset), ("backbone", spec.backbone or "conv4")):
            [choice] = RunSpec(learners=(text,)).choices("learner")
            registry.make(kind, choice.name, choice.options)


def test_the_quick_suite_has_the_cells_that_its_words_say(registry):
    """Three learners × (no attack + 2 attacks × 2 eps)."""
    [grid] = runner.build_grids([part.spec() for part in find_suite("quick").parts], registry, None)
    assert len(grid.cells) == 3 * (1 + 2 * 2)
    assert len(grid.trainings) == 3
