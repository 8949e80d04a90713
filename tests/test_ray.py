"""On a Ray cluster of two nodes on this machine: the rows of a local run, whatever is lost on the way."""

import logging
import pickle
import re
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'robustbench_meta[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402  # after the skip

from robustbench_meta import hookimpl, leaderboard  # noqa: E402
from robustbench_meta.checkpoints import state_name  # noqa: E402
from robustbench_meta.errors import BenchError  # noqa: E402
from robustbench_meta.executors import Policy, Recipe, Task  # noqa: E402
from robustbench_meta.executors import ray as on_ray  # noqa: E402
from robustbench_meta.executors.ray import ENTRY, RayCluster, Request  # noqa: E402
from robustbench_meta.executors.relay import Relay  # noqa: E402
from robustbench_meta.executors.remote import MOST_CODE, installed, pack, unpack  # noqa: E402
from robustbench_meta.grid import prepare  # noqa: E402
from robustbench_meta.jobs import runner  # noqa: E402
from robustbench_meta.registry import load_registry  # noqa: E402
from robustbench_meta.spec import RunSpec  # noqa: E402
from robustbench_meta.store import Store  # noqa: E402

CPU = torch.device("cpu")
SMOKE = {"profile": "smoke", "meta_steps": 4, "episodes": 6, "attacks": ("none", "fgsm")}

PLUGIN = '''
import logging, os, signal, time
from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML
from .gate import GATE

class Slow(MAML):
    """Slow until somebody opens the gate, and talks."""
    name = "slow"
    def objective(self, ops, theta, tasks):
        time.sleep(0 if os.path.exists(GATE) else 0.15)
        logging.getLogger("strange").warning("logged there")
        return super().objective(ops, theta, tasks)

class Killed(MAML):
    """Kills its process."""
    name = "killed"
    def objective(self, ops, theta, tasks):
        os.kill(os.getpid(), signal.SIGKILL)

class Hangs(MAML):
    """Hangs."""
    name = "hangs"
    def objective(self, ops, theta, tasks):
        time.sleep(3600)

@hookimpl
def register_learners(register):
    for learner in (Slow, Killed, Hangs):
        register(learner)
'''


@pytest.fixture
def plugins(tmp_path):
    """A folder with a package of two files."""
    folder = tmp_path / "plugins"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text(PLUGIN)
    (folder / "mine" / "gate.py").write_text(f"GATE = {str(tmp_path / 'gate')!r}\n")
    return folder


@pytest.fixture(scope="module")
def cluster():
    """A node with one CPU, for others to join."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("ROBUSTBENCH_META_CACHE", "/nonexistent")  # theirs; what they need, they ask for
        nodes = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1, "include_dashboard": False,
                "_system_config": {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500},
            },
        )  # fmt: skip
    yield nodes
    nodes.shutdown()


def packed(folder, results, **given):
    grid = prepare(RunSpec.read(**{**SMOKE, **given}), load_registry(folder), None)
    recipe = Recipe(grid.run, folder, None, results, "cpu")
    return grid, recipe


def run(results, executor, plugins, ears=None, timeout=None, **given):
    registry = load_registry(plugins)
    if ears is not None:
        registry.manager.register(ears)
    grid, store = prepare(RunSpec.read(**{**SMOKE, **given}), registry, None), Store(results)
    policy = Policy(executor, cell_timeout=timeout)
    return runner.run(grid, registry, store, CPU, policy, plugins=plugins), store


def rows(store):
    return pd.read_csv(leaderboard.write(store), dtype=str).drop(columns=leaderboard.COSTS)


# -- what is asked for -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        ({"worker": "2"}, "cpu", "did you mean 'workers'"),
        ({"cpus": "0"}, "cpu", "ray:cpus=0: expected a number, 1 or more"),
        ({"cpus": "1.5"}, "cpu", "ray:cpus=1.5: expected"),
        ({"workers": "many"}, "cpu", "ray:workers=many: expected"),
        ({"gpus": "1"}, "cpu", "is for --device cuda"),
        ({"gpus": "1.5"}, "cuda:0", "or a share such as 0.5"),
        ({"gpus": "nan"}, "cuda:0", "ray:gpus=nan"),
        ({"gpus": "-1"}, "cuda:0", "ray:gpus=-1"),
        ({"address": "head"}, "cpu", "HOST:PORT"),
        ({"address": "ray://head:10001"}, "cpu", "HOST:PORT"),
    ],
)
def test_options_that_cannot_be_say_what_is_expected(options, device, message):
    with pytest.raises(BenchError, match=message):
        Request.read(options, device)


def test_what_is_asked_of_a_node_depends_on_the_device(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Request.read({}, "cpu") == Request("local", 1, 0.0, None)
    assert Request.read({"cpus": "3"}, "cuda:0") == Request("local", 3, 1.0, None)
    assert Request.read({"gpus": "0.25", "workers": "7"}, "cuda") == Request("local", 1, 0.25, 7)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert Request.read({}, "cpu").address == "10.0.0.1:6379"
    assert Request.read({"address": "auto"}, "cpu").address == "auto"


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "workers"),
    [
        (1, 0.0, {"CPU": 8.0, "GPU": 1.0}, 8),
        (3, 0.0, {"CPU": 8.0}, 2),
        (1, 0.0, {}, 0),
        (2, 1.0, {"CPU": 8.0, "GPU": 3.0}, 3),
        (4, 1.0, {"CPU": 8.0, "GPU": 3.0}, 2),
        (1, 2.0, {"CPU": 8.0, "GPU": 3.0}, 1),
        (1, 1.0, {"CPU": 8.0}, 0),
        (1, 0.4, {"CPU": 8.0, "GPU": 2.0}, 4),  # no share lies on two GPUs
        (1, 0.1, {"CPU": 64.0, "GPU": 1.0}, 10),
    ],
)
def test_a_node_has_room_for_as_many_workers_as_all_it_has_allows(cpus, gpus, node, workers):
    assert Request("local", cpus, gpus, None).fits(node) == workers


def test_a_cluster_that_does_not_answer_is_told_at_once(tmp_path, plugins):
    grid, recipe = packed(plugins, tmp_path, dataset="toy", learners=("slow",))
    began = time.monotonic()
    with pytest.raises(BenchError, match=r"ray:address=127\.0\.0\.1:1 does not answer .*HOST:6379"):
        RayCluster({"address": "127.0.0.1:1"}, Policy(), recipe, grid)
    assert time.monotonic() - began < 10


# -- what travels ----------------------------------------------------------------------------------


def test_another_machine_makes_the_same_cells_of_what_it_is_sent(tmp_path, plugins):
    model = tmp_path / "other" / "model.safetensors"
    run(tmp_path / "r", "local", plugins, dataset="glyphs", learners=("protonet",), attacks=("none",))
    model.parent.mkdir()
    next((tmp_path / "r" / "checkpoints").glob("*.safetensors")).rename(model)
    grid, recipe = packed(
        plugins, tmp_path / "r", learners=("slow", "maml"), surrogate=str(model), scenarios=("clean/transfer",)
    )
    parcel, arrays = pickle.loads(pickle.dumps(pack(recipe, grid)))
    model.unlink()
    (tmp_path / "there").mkdir()
    there = unpack(parcel, arrays, tmp_path / "there")
    assert [cell.key for cell in there.cells] == [cell.key for cell in grid.cells]
    for mine, theirs in zip(grid.splits, there.splits, strict=True):
        for a, b in zip(mine.sample([5], 5, 1, 2), theirs.sample([5], 5, 1, 2), strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)


def test_code_that_is_other_there_is_refused_with_what_it_is(tmp_path, plugins):
    grid, recipe = packed(plugins, tmp_path, dataset="toy", learners=("slow",))
    parcel, arrays = pack(recipe, grid)
    assert arrays == [], "the toy has no images: it is made there"
    changed = replace(parcel, code={**parcel.code, "mine/gate.py": b"GATE = 'elsewhere'\n"})
    with pytest.raises(BenchError, match=r"learner 'slow': sha256:\w+ there, sha256:\w+ here"):
        unpack(changed, arrays, tmp_path / "there")


def test_plugins_that_are_too_large_to_travel_are_refused(tmp_path, plugins):
    grid, recipe = packed(plugins, tmp_path, dataset="toy", learners=("slow",))
    (plugins / "mine" / "table.py").write_text("#" * MOST_CODE)
    with pytest.raises(BenchError, match="at most 10 MiB"):
        pack(recipe, grid)


# -- the process on a node -------------------------------------------------------------------------


def heard(relay, until, seconds=60.0, **facts):
    """Messages of a relay, up to the first of that kind with these facts or to its end."""
    found, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        messages, code, said = relay.hear(1.0)
        found += [pickle.loads(message) for message in messages]
        if code is not None or any(kind == until and facts.items() <= told.items() for kind, told in found):
            return found, code, said
    raise AssertionError(f"no {until} within {seconds} s: {found}")


def test_a_process_that_is_told_to_stop_sends_what_it_keeps_and_goes(tmp_path, plugins, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_KEEP_SECONDS", "3600")
    grid, recipe = packed(plugins, tmp_path, learners=("slow",), meta_steps=99)
    parcel, arrays = pack(recipe, grid)
    assert len(arrays) == 3
    relay = Relay()
    relay.begin(ENTRY, pickle.dumps((parcel, 1, logging.WARNING)), *arrays)
    heard(relay, "idle")
    key = grid.trainings[0].key
    relay.send(pickle.dumps((Task(key, "slow"), {})))
    before, _, _ = heard(relay, "training_progress", step=1)
    relay.terminate()
    after, code, said = heard(relay, "the end")
    kinds = [kind for kind, _ in before + after]
    assert (code, said) == (0, "")
    assert kinds[-1] == "stopped"
    assert [facts["name"] for kind, facts in after if kind == "kept"] == [state_name(key)]


def test_a_process_that_cannot_even_start_says_why():
    relay = Relay()
    relay.begin("robustbench_meta.nowhere:main", b"")
    messages, code, said = heard(relay, "idle")
    assert (messages, code) == ([], 1)
    assert "No module named 'robustbench_meta.nowhere'" in said


# -- two nodes -------------------------------------------------------------------------------------


def test_a_node_that_dies_costs_nothing_and_the_rows_are_those_of_a_local_run(
    tmp_path, plugins, cluster, monkeypatch, caplog
):
    monkeypatch.setenv("ROBUSTBENCH_META_KEEP_SECONDS", "0.1")
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path / "cache"))
    doomed = cluster.add_node(num_cpus=1)
    given = {"dataset": "toy", "learners": ("slow", "maml"), "seeds": (0, 1), "meta_steps": 100}

    class Assassin:
        """Kills a node once both are at work."""

        def __init__(self):
            self.heard, self.at, self.killed = [], {}, False

        @hookimpl
        def training_progress(self, training, step, steps):
            self.heard.append((training, step))
            self.at[training] = step
            under_way = [name for name, at in self.at.items() if "slow" in name and 10 <= at <= steps - 20]
            if not self.killed and len(under_way) == 2:
                self.killed = True
                (tmp_path / "gate").touch()
                cluster.remove_node(doomed, allow_graceful=False)

    ears = Assassin()
    with caplog.at_level(logging.WARNING):
        summary, there = run(tmp_path / "there", f"ray:address={cluster.address}", plugins, ears, **given)
    assert ears.killed
    assert "is lost, or Ray's process there, with slow (seed" in caplog.text
    assert sorted(name for name, step in ears.heard if step == 0) == sorted(ears.at), "each went on where it was left"
    assert (summary.finished, summary.failed) == (8, [])
    assert "logged there" in caplog.messages
    assert list((tmp_path / "cache" / "plans").glob("*.json")), "the plans of all workers are those of this machine"
    _, here = run(tmp_path / "here", "local", plugins, **given)
    pd.testing.assert_frame_equal(rows(there), rows(here))


def test_what_kills_its_process_or_hangs_costs_its_own_cells_alone(tmp_path, plugins, cluster):
    given = {"dataset": "toy", "learners": ("killed", "hangs", "maml"), "attacks": ("none",)}
    summary, store = run(tmp_path / "r", f"ray:address={cluster.address}", plugins, timeout=6.0, **given)
    reasons = {cell.learner: reason for cell, reason in summary.failed}
    assert (summary.finished, len(summary.failed)) == (1, 2)
    assert re.search(r"killed \(seed 0\) on node \w+ \(\S+\) was ended by SIGKILL", reasons["killed"])
    assert "longer than --cell-timeout 6" in reasons["hangs"]
    assert {record["labels"]["learner"] for record in store.records()} == {"maml"}


def test_a_node_where_something_else_is_installed_is_named_with_what_it_has(tmp_path, plugins, cluster, monkeypatch):
    monkeypatch.setattr(on_ray, "installed", lambda: {**installed(), "torch": "1.0"})
    with pytest.raises(BenchError, match=r"node \w+ \(\S+\): torch: \S+ there, 1\.0 here: install the same"):
        run(tmp_path / "r", f"ray:address={cluster.address}", plugins, dataset="toy", learners=("maml",))


def test_no_node_with_room_for_a_worker_is_told_with_what_there_is(tmp_path, plugins, cluster):
    with pytest.raises(BenchError, match=r"has 64 CPU for a worker; its nodes have: \S+ 1 CPU, 0 GPU"):
        run(tmp_path / "r", f"ray:address={cluster.address},cpus=64", plugins, dataset="toy", learners=("maml",))
    assert not ray.is_initialized()
