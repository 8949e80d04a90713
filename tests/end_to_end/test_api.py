"""The Python API: the command line's numbers, as tidy frames; own classes and own models stand beside ours."""

import contextlib
import doctest
import functools
import importlib
import inspect
import json
import linecache
import logging
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import robustbench_meta as rbm
from robustbench_meta import api, hookimpl
from robustbench_meta.cli.run import run as run_command
from robustbench_meta.contracts import Attack, Learner
from robustbench_meta.errors import PluginError
from robustbench_meta.experiment.checkpoints import weights_of
from robustbench_meta.experiment.profiles import PROFILES
from robustbench_meta.experiment.python_arguments import eps_text, several
from robustbench_meta.experiment.run_options import ARGUMENTS, run_options
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.plugins.attacks.fgsm import FGSM
from robustbench_meta.plugins.backbones.conv4 import Conv4
from robustbench_meta.plugins.learners.maml import MAML
from robustbench_meta.registry.in_memory import GivenPlugins, class_digest
from robustbench_meta.reporting.results import Results
from robustbench_meta.results import frames
from robustbench_meta.results.leaderboard import COLUMNS
from robustbench_meta.results.reproduce import command_for
from robustbench_meta.results.store import Store

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
TINY = {"profile": "smoke", "meta_steps": 2, "episodes": 4, "device": "cpu", "checks": False, "local_plugins": False}
TASK = {name: value for name, value in TINY.items() if name != "meta_steps"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api") / "results"


@pytest.fixture(scope="module")
def results(folder):
    learners, attacks = ["protonet", MAML(alpha=0.1)], ["none", FGSM, "pgd:steps=3"]
    return rbm.run(learner=learners, attack=attacks, eps=[0.05, 8 / 255], results=folder, **TINY)


def centroids(support_x, support_y):
    means = torch.stack([support_x[support_y == label].mean(0) for label in support_y.unique()])
    return lambda x: -(x[:, None] - means).square().flatten(2).mean(2)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


# -- import ----------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy_and_tells_what_there_is():
    code = (
        "import sys, robustbench_meta as rbm\n"
        "assert not {'torch', 'pandas', 'numpy', 'pydantic', 'rich'} & set(sys.modules), sys.modules.keys()\n"
        "assert {'run', 'evaluate', 'load_results', 'Results', 'BenchError', 'hookimpl'} <= set(dir(rbm))\n"
        "try: rbm.rum\nexcept AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'robustbench_meta' has no attribute 'rum'\n"


# -- run and its frames ----------------------------------------------------------------------------


def test_the_leaderboard_is_that_of_the_csv(results, folder):
    csv = pd.read_csv(folder / "leaderboard.csv", dtype={"eps": str, "training_eps": str})
    assert list(results.leaderboard.columns) == COLUMNS == list(csv.columns)
    pd.testing.assert_frame_equal(
        results.leaderboard.drop(columns=["rank", "warm_start", "copies"]),
        csv.drop(columns=["rank", "warm_start", "copies"]),
        check_dtype=False,
    )  # fmt: skip
    assert len(results) == 2 * (1 + 2 * 2)
    assert results.path == folder
    assert results.failed.empty
    assert list(results.failed.columns) == frames.FAILED


def test_episodes_and_queries_add_up_to_the_leaderboard(results):
    board = results.leaderboard.set_index("spec_hash")
    assert list(results.episodes.columns) == frames.EPISODES
    assert len(results.episodes) == 4 * len(board)
    means = results.episodes.groupby("spec_hash", observed=True)[
        ["clean_accuracy", "robust_accuracy", "worst_case_accuracy"]
    ].mean()
    for name in means.columns:
        assert np.allclose(means[name].reindex(board.index), board[name], atol=1e-6)
    queries = results.queries
    assert list(queries.columns) == frames.QUERIES
    assert len(queries) == 4 * 15 * len(board)
    assert queries.groupby("spec_hash", observed=True)["robust_correct"].mean().reindex(board.index).tolist() == (
        pytest.approx(board["robust_accuracy"].tolist(), abs=1e-6)
    )
    attacked = queries[queries["attack"] != "none"]
    kept = attacked.assign(both=attacked["clean_correct"] & attacked["robust_correct"]).groupby(
        ["learner", "eps", "episode", "image"], observed=True
    )["both"].all().groupby(level=["learner", "eps"], observed=True).mean()  # fmt: skip
    for (learner, eps), worst in kept.items():
        there = board[(board["learner"] == learner) & (board["eps"] == eps)]["worst_case_accuracy"]
        assert there.tolist() == pytest.approx([worst] * len(there), abs=1e-6)


def test_names_are_categories_in_the_order_of_the_tables(results):
    episodes = results.episodes
    assert list(episodes["eps"].cat.categories) == ["0", "8/255", "0.05"]
    assert episodes.groupby("eps", observed=True)["eps_value"].first().tolist() == [0, 8 / 255, 0.05]
    assert list(episodes["attack"].cat.categories) == ["none", "fgsm", "pgd:steps=3"]
    assert set(episodes["learner"].cat.categories) == {"protonet", "maml:alpha=0.1"}
    assert not episodes.isna().any().any()


def test_a_better_learner_comes_before_a_worse_one_of_an_earlier_name():
    board = pd.DataFrame({"learner": ["a", "b", "c"], "rank": [2, 1, 1]})
    assert frames._learners(board) == ["b", "c", "a"]


def test_training_has_each_validation_and_the_step_that_was_chosen(results):
    training = results.training
    assert training.groupby("learner", observed=True)["step"].apply(list).tolist() == [[1, 2], [1, 2]]
    assert training.groupby("learner", observed=True)["chosen"].sum().tolist() == [1, 1]
    best = training.loc[training.groupby("learner", observed=True)["validation_accuracy"].idxmax(), "chosen"]
    assert best.all()


def test_comparisons_are_those_of_the_command_line(results, folder, capsys):
    from robustbench_meta.cli import main

    frame = results.comparisons()
    with contextlib.suppress(SystemExit):
        main(["compare", str(folder), "--json"])
    told = [column for pair in json.loads(capsys.readouterr().out)["comparisons"] for column in pair["columns"]]
    assert list(frame.columns) == frames.COMPARISONS
    assert frame["corrected_p"].tolist() == pytest.approx([column["corrected_p"] for column in told])
    assert frame["difference"].tolist() == pytest.approx([column["difference"] for column in told])
    assert len(results.comparisons("protonet", "maml:alpha=0.1")) == len(frame)
    with pytest.raises(rbm.BenchError, match="one learner was named, 'maml'"):
        results.comparisons("maml")


def test_curves_are_those_of_the_csv(results, folder):
    csv = pd.read_csv(folder / "curves.csv", dtype={"eps": str})
    assert list(results.curves.columns) == list(csv.columns)
    assert results.curves["accuracy"].tolist() == csv["accuracy"].tolist()


def test_the_same_call_computes_nothing_again_and_a_larger_one_only_what_is_new(results, folder):
    before = files(folder / "records") | files(folder / "checkpoints")
    again = rbm.run(learner="protonet", attack=["none", "fgsm"], eps="8/255", results=str(folder), **TINY)
    assert files(folder / "records") | files(folder / "checkpoints") == before
    assert again.leaderboard["attack"].tolist() == ["none", "fgsm"]
    worst = again.leaderboard.set_index("attack")["worst_case_accuracy"]["fgsm"]
    assert worst >= results.leaderboard.query("learner == 'protonet' and eps == '8/255'")["worst_case_accuracy"].max()


def test_a_suite_is_run_with_what_is_given_beside_it(tmp_path):
    (tmp_path / "mine.toml").write_text('learner = "protonet"\nattack = ["none", "fgsm"]\nprofile = "smoke"\n')
    typed = {name: value for name, value in TINY.items() if name != "profile"}
    found = rbm.run(tmp_path / "mine.toml", attack="fgsm", results=tmp_path / "results", **typed)
    assert found.leaderboard[["learner", "attack", "episodes"]].to_numpy().tolist() == [["protonet", "fgsm", 4]]


def test_what_is_shown_is_escaped_and_printable(results, folder):
    records = Store(folder, write=False).records()
    evil = [{**each, "labels": {**each["labels"], "learner": "<script>x</script>&"}} for each in records]
    failed = frames.failed([{"learner": "<b>", "attack": "<i>", "reason": "</li><u>\x1b[31m"}])
    assert "\x1b" not in str(Results(evil, failed))
    html = Results(evil, failed)._repr_html_()
    assert not re.search(r"<script|<b>(?=[^<]*</b>\s*on)|<i>|<u>", html)
    assert "&lt;script&gt;x&lt;/script&gt;&amp;" in html
    assert "protonet" in str(results)
    assert "\x1b" not in str(results)
    assert repr(Results([])) == str(Results([])) == "<Results: 0 finished, 0 failed, nothing kept>"


def test_progress_is_shown_where_it_is_wanted(tmp_path, capfd):
    rbm.run(learner="protonet", attack="fgsm", results=tmp_path, **TINY)
    assert capfd.readouterr() == ("", "")
    rbm.run(learner="protonet", attack="fgsm", results=tmp_path, fresh=True, progress=True, **TINY)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "train protonet (seed 0): 2 in" in shown.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learner": "mamml"}, "did you mean 'maml'"),
        ({"learner": 7}, "invalid learner 7: expected a name, a subclass of Learner, or an instance"),
        ({"attack": MAML}, "invalid attack .*MAML.*: expected a name, a subclass of Attack"),
        ({"way": 1}, "invalid --way 1"),
        ({"eps": "much"}, "eps 'much' is not a number"),
        ({"seed": [0, "x"]}, "invalid --seed 'x'"),
        ({"results": ""}, "invalid folder ''"),
        ({"cell_timeout": -1}, "invalid cell_timeout '-1'"),
        ({"jobs": 0}, "--jobs '0' cannot be"),
        ({"suite": "nowhere.toml"}, "nowhere.toml"),
        ({"learner": [MAML(alpha=0.1), "maml:alpha=x"]}, "alpha"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_as_on_the_command_line(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rbm.BenchError, match=message):
        rbm.run(**{**TINY, **given})


# -- load_results ----------------------------------------------------------------------------------


def test_load_results_gives_the_same_and_writes_nothing(results, folder):
    before = files(folder)
    loaded = rbm.load_results(folder)
    pd.testing.assert_frame_equal(loaded.leaderboard, results.leaderboard)
    pd.testing.assert_frame_equal(loaded.episodes, results.episodes)
    assert len(loaded.queries) == len(results.queries)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("made", "told"),
    [(None, "does not exist"), ("", "holds no records"), ("records", "holds no finished cells"), ("file", "is a file")],
)
def test_load_results_says_what_is_wrong_with_a_folder(tmp_path, made, told):
    place = tmp_path / "there"
    if made == "file":
        place.write_text("")
    elif made is not None:
        (place / made).mkdir(parents=True)
    with pytest.raises(rbm.BenchError, match=told):
        rbm.load_results(place)
    assert made is not None or not place.exists()


# -- plugins as classes ----------------------------------------------------------------------------


class Raises(Attack):
    """It raises."""

    name = "raises"

    def perturb(self, model, x, y, threat, random):
        raise ValueError("not today")


def test_a_cell_that_fails_costs_no_other_and_is_told_of(tmp_path, caplog):
    found = rbm.run(learner="protonet", attack=["fgsm", Raises], results=tmp_path, **TINY)
    assert found.leaderboard["attack"].tolist() == ["fgsm"]
    assert found.failed[["learner", "attack", "before"]].to_numpy().tolist() == [["protonet", "raises", False]]
    reason = found.failed["reason"][0]
    assert re.fullmatch(r"attack 'raises' failed: ValueError: not today \(line \d+ of test_api.py\)", reason)
    assert "1 of 2 cells failed" in caplog.text
    assert "failed: raises eps=0.1 clean/adv on protonet (seed 0): attack 'raises' failed" in str(found)
    assert "raises eps=0.1 clean/adv on protonet (seed 0): " in found._repr_html_()
    loaded = rbm.load_results(tmp_path).failed
    assert loaded[["learner", "attack", "reason", "before"]].to_numpy().tolist() == [
        ["protonet", "raises", reason, True]
    ]


def cell(source, name="Mine", **there):
    """What a cell of a notebook defines."""
    place = f"<cell {len(linecache.cache)}>"
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
    scope = {"__name__": "__main__", **there}
    exec(compile(source, place, "exec"), scope)
    return scope[name]


MINE = """
from robustbench_meta.contracts import Attack

def swapped(call):
    return call

class Mine(Attack):
    name = "mine"
    steps: int = 3

    @staticmethod
    @swapped
    def size():
        return 1

    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + self.size() * threat.eps * (random.uniform(x) - 0.5).sign())
"""


def test_a_class_of_a_notebook_runs_and_its_results_are_those_of_its_code(tmp_path):
    def run_with(cls, **options):
        return rbm.run(learner="protonet", attack=cls, results=tmp_path, **TINY, **options)

    first = run_with(cell(MINE), jobs="auto")
    assert first.leaderboard["attack"].tolist() == ["mine"]
    same = run_with(cell(MINE))
    assert same.leaderboard["spec_hash"].tolist() == first.leaderboard["spec_hash"].tolist()
    other = run_with(cell(MINE.replace("0.5", "0.4"))(steps=4))
    assert other.leaderboard["attack"].tolist() == ["mine:steps=4"]
    assert len(rbm.load_results(tmp_path)) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps: int = 3", "steps: int = 4"), ("- 0.5", "- 0.4"), ("steps: int = 3", "_steps: int = 3"),
        ('name = "mine"', 'name = "mine"; version = "2"'), ("    @swapped\n", ""), ("return 1\n", "return 2\n"),
    ],
)  # fmt: skip
def test_the_digest_of_a_class_changes_with_its_source_its_version_and_its_bases(old, new):
    assert old in MINE
    plain = class_digest(cell(MINE))
    assert class_digest(cell(f"1 + 1\n{MINE}\nclass Other: ...")) == plain, "only the class counts, not its cell"
    assert class_digest(cell(MINE.replace(old, new))) != plain
    heirs = [
        cell("class Heir(Mine):\n    version = '1'", "Heir", Mine=cell(text)) for text in (MINE, MINE.replace(old, new))
    ]
    assert class_digest(heirs[0]) != class_digest(heirs[1]), "the base counts"


def test_a_class_of_a_module_is_identified_by_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = set()
    for text in (MINE, MINE + "\n# edited", MINE):
        (tmp_path / "mine_in_a_file.py").write_text(text)
        monkeypatch.delitem(sys.modules, "mine_in_a_file", raising=False)
        digests.add(class_digest(importlib.import_module("mine_in_a_file").Mine))
    assert len(digests) == 2


def test_a_class_without_source_needs_a_version():
    nowhere, versions = cell(MINE), [cell(MINE.replace("name =", f"version = '{each}'; name =")) for each in "122"]
    linecache.clearcache()
    with pytest.raises(PluginError, match=r"no source was found for the class 'Mine'.*give the class a variable `ver"):
        class_digest(nowhere)
    one, two, again = map(class_digest, versions)
    assert one != two == again


def test_a_class_of_this_process_cannot_run_in_others(tmp_path):
    for other in ({"executor": "processes"}, {"jobs": 2}, {"cell_timeout": "5m"}):
        with pytest.raises(rbm.BenchError, match="raises: given as a class of this process"):
            rbm.run(learner="protonet", attack=Raises, results=tmp_path, **TINY, **other)
    assert not (tmp_path / "records").exists()


def test_classes_that_cannot_be_told_apart_or_named_are_refused(tmp_path):
    class Nameless(Learner):
        adapt = logits = objective = lambda *_: None

    class Taken(Raises):
        name = "fgsm"

    class Half(Attack):
        name = "half"

    for given, message in [
        ({"learner": Nameless}, "has no name"), ({"attack": Taken}, "two plugins bring the attack 'fgsm'"),
        ({"attack": Half}, "does not define perturb"),
        ({"attack": [cell(MINE), cell(MINE)]}, "two different classes are given"),
    ]:  # fmt: skip
        with pytest.raises(PluginError, match=message):
            rbm.run(**{"learner": "protonet", "results": tmp_path, **TINY, **given})


def test_numbers_of_numpy_are_numbers():
    read = functools.partial(several, "eps")
    assert read(np.arange(2)) == read(range(2)) == [0, 1]
    assert [eps_text(each) for each in read(np.array([0.1, 8 / 255]))] == ["0.1", "8/255"]
    assert (
        [eps_text(each) for each in read(np.float32(0.1))]
        == [eps_text(each) for each in read(np.array(0.1))]
        == ["0.1"]
    )
    assert read("maml") == ["maml"]


@pytest.mark.parametrize("name", ["learner", "attack", "eps", "scenario", "seed"])
@pytest.mark.parametrize("nothing", [[], (), np.array([])], ids=repr)
def test_nothing_is_not_the_default(name, nothing, tmp_path):
    with pytest.raises(rbm.BenchError, match=f"^invalid {name} .*: expected one or more, or leave"):
        rbm.run(**{name: nothing}, results=tmp_path)


def test_a_misspelt_argument_says_which_may_be_meant():
    with pytest.raises(TypeError, match=r"^run\(\): unknown argument 'lerner': did you mean 'learner'"):
        rbm.run(lerner="maml")
    with pytest.raises(TypeError, match=r"^evaluate\(\): unknown argument 'atack': did you mean 'attack'"):
        rbm.evaluate(centroids, atack="pgd")
    assert list(inspect.signature(rbm.run).parameters)[:3] == ["suite", "learner", "attack"]


@pytest.mark.parametrize("function", [api.run, run_command])
def test_every_option_of_a_run_is_an_argument(function):
    """With the default of its field, if any, and explained."""
    parameters, fields = inspect.signature(function).parameters, RunSpec.model_fields
    assert set(run_options()) <= set(parameters)
    assert set(fields) == set(ARGUMENTS.values())
    for name, (_, default, _) in run_options().items():
        assert fields[ARGUMENTS[name]].default == default
        assert parameters[name].default in (None, default), name
        assert function is run_command or f"\n        {name}: " in function.__doc__, "it is explained"


@pytest.mark.parametrize("jobs", ["auto", 0, -1, True, 1.5])
def test_own_models_are_shared_out_to_a_number_of_processes(jobs):
    with pytest.raises(rbm.BenchError, match=r"jobs.*expected.* number"):
        rbm.evaluate(centroids, jobs=jobs, **TASK)


def test_an_instance_is_said_as_on_the_command_line():
    given = GivenPlugins()
    assert given.typed("learner", MAML(alpha=8 / 255, first_order=True)) == "maml:alpha=8/255,first_order=true"
    assert given.typed("learner", MAML()) == given.typed("learner", MAML) == "maml"


# -- evaluate --------------------------------------------------------------------------------------


def test_an_own_model_gets_the_numbers_that_the_learner_it_copies_gets(results, folder):
    row = results.leaderboard.query("learner == 'maml:alpha=0.1' and attack == 'pgd:steps=3' and eps == '0.05'").iloc[0]
    weights, _ = weights_of((folder / "checkpoints" / f"{row['training_hash']}.safetensors").read_bytes())
    network = Conv4(width=8).build((1, 28, 28), 5)

    def adapt(x, y):
        theta = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        loss = torch.nn.functional.cross_entropy(torch.func.functional_call(network, theta, (x,)), y)
        steps = torch.autograd.grad(loss, list(theta.values()))
        adapted = {
            name: (weight - 0.1 * step).detach() for (name, weight), step in zip(theta.items(), steps, strict=True)
        }
        return lambda images: torch.func.functional_call(network, adapted, (images,))

    own = rbm.evaluate(
        adapt, name="copy", version="1", attack=["none", "pgd:steps=3"], eps=[0.05, 8 / 255], backbone="conv4",
        meta_steps=2, tasks_per_step=4, results=folder, **TASK,
    )  # fmt: skip
    assert set(own.leaderboard["backbone"]) == {row["backbone"]}
    mine, theirs = (
        part.query("attack == 'pgd:steps=3' and eps == '0.05'")[
            ["episode", "image", "clean_correct", "robust_correct"]
        ].to_numpy()
        for part in (own.queries, results.queries[results.queries["spec_hash"] == row["spec_hash"]])
    )
    assert (mine == theirs).all()
    pair = rbm.load_results(folder).comparisons("copy", "maml:alpha=0.1")
    assert set(pair["column"]) >= {"clean", "pgd:steps=3"}
    assert pair["difference"].tolist() == [0.0] * len(pair)


def test_an_own_model_is_checked_as_others_are():
    found = rbm.evaluate(centroids, attack=["fgsm", "square:queries=20"], scenario=["clean/adv", "adv/clean"],
                         **{**TASK, "checks": True})  # fmt: skip
    board = found.leaderboard
    assert len(board) == 4
    assert board["flags"].str.contains("few-episodes").all()
    assert not board["flags"].str.contains("unchecked").any()
    attacked = board[board["query"] == "adv"]
    assert (attacked["robust_accuracy"] <= attacked["clean_accuracy"]).all()
    assert found.path is None
    assert found.training.empty


def test_a_model_that_cannot_be_differentiated_is_attacked_without_gradients():
    def adapt(x, y):
        model = centroids(x, y)
        return lambda images: model(images.detach())

    found = rbm.evaluate(adapt, attack=["square:queries=20", "pgd"], **TASK)
    assert found.leaderboard["attack"].tolist() == ["square:queries=20"]
    assert "unchecked" in found.leaderboard["flags"][0].split()
    assert found.failed["attack"].tolist() == ["pgd"]
    with pytest.raises(rbm.BenchError, match=r"needs the gradient .*such as square"):
        rbm.evaluate(adapt, attack="pgd", **TASK)
    with pytest.raises(rbm.BenchError, match=r"cannot be checked then: add checks=False"):
        rbm.evaluate(adapt, attack="square:queries=20", **{**TASK, "checks": True})


def test_what_adapt_draws_is_the_same_each_time_and_leaves_the_generators_alone():
    def adapt(x, y):
        head = torch.randn(x[0].numel(), 5) + float(np.random.rand())
        return lambda images: images.flatten(1) @ head

    before = torch.get_rng_state()
    one, two, other = (rbm.evaluate(adapt, attack="fgsm", seed=seed, **TASK).queries for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(one, two)
    assert one["clean_correct"].tolist() != other["clean_correct"].tolist()


def test_models_that_are_not_kept_are_adapted_again(monkeypatch):
    whole = rbm.evaluate(centroids, attack="pgd:steps=3", **TASK).queries["robust_correct"]
    monkeypatch.setattr("robustbench_meta.callable_learner._KEPT", 1)
    counted = []

    def adapt(x, y):
        counted.append(1)
        return centroids(x, y)

    assert rbm.evaluate(adapt, attack="pgd:steps=3", **TASK).queries["robust_correct"].tolist() == whole.tolist()
    assert len(counted) > 4 * 3


def test_stored_rows_of_an_own_model_are_taken_for_no_other_model(tmp_path):
    def evaluated(adapt, version="1", **options):
        return rbm.evaluate(adapt, attack="fgsm", version=version, results=tmp_path, **TASK, **options)

    def upside_down(x, y):
        return lambda images: -centroids(x, y)(images)

    first = evaluated(centroids)
    before = files(tmp_path / "records")
    assert evaluated(centroids).leaderboard["spec_hash"].tolist() == first.leaderboard["spec_hash"].tolist()
    assert files(tmp_path / "records") == before
    with pytest.raises(rbm.BenchError, match="give it another `version`"):
        evaluated(upside_down)
    assert files(tmp_path / "records") == before
    evaluated(upside_down, version="2")
    assert len(rbm.load_results(tmp_path)) == 2
    forgotten = evaluated(upside_down, fresh=True)
    assert forgotten.leaderboard["clean_accuracy"][0] < first.leaderboard["clean_accuracy"][0]


def test_an_own_model_that_is_declared_otherwise_has_other_rows_and_no_command_gives_them(tmp_path):
    for is_transductive in (False, True):
        rbm.evaluate(
            centroids, attack="fgsm", version="1", results=tmp_path, transductive=is_transductive, **TASK
        )  # fmt: skip
    found = rbm.load_results(tmp_path).leaderboard
    assert sorted(found["inference"]) == ["inductive", "transductive"]
    assert [command_for(record) for record in Store(tmp_path, write=False).records()] == [None, None]


@pytest.mark.parametrize(
    ("adapt", "given", "message"),
    [
        (lambda x, y: None, {}, "returned NoneType; expected a function or module.*is a `return` missing"),
        (lambda x, y: lambda images: images, {}, r"gave torch.float32 \(1, 1, 28, 28\) for 1 .* logits \(1, 5\)"),
        (lambda x, y: 1 / 0, {}, "'mine' failed on test episode 0: ZeroDivisionError"),
        (centroids, {"results": "there"}, "nothing but its `version` tells them"),
        (centroids, {"name": "Mine!"}, "invalid name 'Mine!': expected lower-case"),
        (centroids, {"name": "maml"}, "two plugins bring the learner 'maml'"),
        (centroids, {"scenario": "poisoned/clean"}, "goes through adaptation"),
        (centroids, {"scenario": "clean/transfer", "surrogate": "maml"}, "'maml' is no checkpoint's file"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_told(adapt, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rbm.BenchError, match=message):
        rbm.evaluate(adapt, attack="fgsm", **{**TASK, **given})


def test_a_model_that_looks_at_other_queries_must_say_so():
    def adapt(x, y):
        model = centroids(x, y)
        return lambda images: model(images - images.mean(0))

    with pytest.raises(rbm.BenchError, match="declared inductive"):
        rbm.evaluate(adapt, attack="fgsm", **TASK)
    found = rbm.evaluate(adapt, attack="fgsm", transductive=True, **TASK)
    assert found.leaderboard["inference"].tolist() == ["transductive"]


# -- Ctrl-C ----------------------------------------------------------------------------------------


class Interrupting:
    """Presses Ctrl-C at a meta-step."""

    def __init__(self, at):
        self.at = at

    @hookimpl
    def training_progress(self, step):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_what_is_under_way_and_the_same_call_goes_on(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    call = {**TINY, "learner": "protonet", "attack": "fgsm", "meta_steps": 6}
    whole = rbm.run(results=tmp_path / "whole", **call)
    build_grid = api.runner.make_ready

    def prepared(*arguments, **options):
        ready = build_grid(*arguments, **options)
        ready.registry.manager.register(Interrupting(4))
        return ready

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr("robustbench_meta.jobs.events.PACE_SECONDS", 0.0)
        patch.setattr(api.runner, "make_ready", prepared)
        with pytest.raises(KeyboardInterrupt, match="repeat the call to resume"):
            rbm.run(results=tmp_path / "parts", **call)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(list((tmp_path / "parts" / "progress").glob("*.safetensors"))) == 1
    steps = []

    class Counting:
        @hookimpl
        def training_progress(self, step):
            steps.append(step)

    def counted(*arguments, **options):
        ready = build_grid(*arguments, **options)
        ready.registry.manager.register(Counting())
        return ready

    monkeypatch.setattr(api.runner, "make_ready", counted)
    parts = rbm.run(results=tmp_path / "parts", **call)
    assert steps[0] in {4, 5}
    assert parts.queries["robust_correct"].tolist() == whole.queries["robust_correct"].tolist()


# -- examples --------------------------------------------------------------------------------------


def test_every_example_in_the_docs_and_docstrings_runs(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("examples"))
    monkeypatch.setitem(PROFILES, "smoke", replace(PROFILES["smoke"], episodes=2, validation_tasks=2))
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    scope = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        place = f"<python.md {number}>"
        linecache.cache[place] = (len(block), None, block.splitlines(keepends=True), place)
        exec(compile(block, place, "exec"), scope)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    tests = [test for module in ("api", "reporting.results") for test in doctest.DocTestFinder(exclude_empty=True).find(
        sys.modules[f"robustbench_meta.{module}"], globs={"torch": torch, "pd": pd}) if test.examples]  # fmt: skip
    assert {test.name.rpartition(".")[2] for test in tests} >= {"run", "evaluate", "load_results"}
    for test in sorted(tests, key=lambda test: test.name):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert len(NOTEBOOK.read_bytes()) < 100_000
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [data for each in notebook.cells if each.cell_type == "code" for output in each.outputs
             if (data := output.get("data"))]  # fmt: skip
    assert any("<table" in data.get("text/html", "") for data in shown)
    assert any("image/png" in data for data in shown)
    assert not [output for each in notebook.cells if each.cell_type == "code" for output in each.outputs
                if output.output_type == "stream" and output.name == "stderr"]  # fmt: skip
