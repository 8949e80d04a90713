"""On a Ray cluster of two nodes on this machine: the rows of a local run, whatever is lost on the way."""

import logging
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'robustbench_meta[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402  # after the skip

from robustbench_meta import hookimpl  # noqa: E402
from robustbench_meta.errors import BenchError  # noqa: E402
from robustbench_meta.experiment.grid import build_grid  # noqa: E402
from robustbench_meta.experiment.spec import RunSpec  # noqa: E402
from robustbench_meta.jobs import runner, worker_process  # noqa: E402
from robustbench_meta.jobs.launchers import ray as on_ray  # noqa: E402
from robustbench_meta.jobs.launchers.ray import RayCluster, Request  # noqa: E402
from robustbench_meta.jobs.policy import Policy  # noqa: E402
from robustbench_meta.registry.registry import load_registry  # noqa: E402
from robustbench_meta.results import leaderboard  # noqa: E402
from robustbench_meta.results.store import Store  # noqa: E402
from robustbench_meta.runtime.interrupts import Stop, Stopped  # noqa: E402

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
        nodes = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1, "include_dashboard": False,
                "_system_config": {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500},
            },
        )  # fmt: skip
    yield nodes
    nodes.shutdown()


def run(results, executor, plugins, ears=None, timeout=None, stop=None, **given):
    registry = load_registry(plugins)
    if ears is not None:
        registry.manager.register(ears)
    grid, store = build_grid(RunSpec.read(**{**SMOKE, **given}), registry, None), Store(results)
    policy = Policy(executor, cell_timeout=timeout)
    return runner.run(grid, registry, store, CPU, policy, plugins=plugins, stop=stop), store


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


def test_a_cluster_that_does_not_answer_is_told_at_once():
    began = time.monotonic()
    with pytest.raises(BenchError, match=r"ray:address=127\.0\.0\.1:1 does not answer .*HOST:6379"):
        RayCluster({"address": "127.0.0.1:1"}, "cpu")
    assert time.monotonic() - began < 10


# -- two nodes -------------------------------------------------------------------------------------


def test_a_node_that_dies_costs_nothing_and_the_rows_are_those_of_a_local_run(
    tmp_path, plugins, cluster, monkeypatch, caplog
):
    monkeypatch.setenv("ROBUSTBENCH_META_KEEP_SECONDS", "0.1")
    doomed = cluster.add_node(num_cpus=1)
    given = {"dataset": "toy", "learners": ("slow", "maml"), "seeds": (0, 1), "meta_steps": 50}

    class Assassin:
        """Kills a node once both are at work."""

        def __init__(self):
            self.events, self.at, self.killed = [], {}, False

        @hookimpl
        def training_progress(self, training, step, steps):
            self.events.append((training, step))
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
    assert "is lost with its node, or with Ray's process there; beginning again with what was saved" in caplog.text
    assert sorted(name for name, step in ears.events if step == 0) == sorted(ears.at), "each went on where it was left"
    assert (summary.finished, summary.failed) == (8, [])
    assert "logged there" in caplog.messages
    _, here = run(tmp_path / "here", "local", plugins, **given)
    pd.testing.assert_frame_equal(rows(there), rows(here))


def test_what_kills_its_process_or_hangs_costs_its_own_cells_alone(tmp_path, plugins, cluster):
    given = {"dataset": "toy", "learners": ("killed", "hangs", "maml"), "attacks": ("none",)}
    summary, store = run(tmp_path / "r", f"ray:address={cluster.address}", plugins, timeout=8.0, **given)
    reasons = {cell.learner: reason for cell, reason in summary.failed}
    assert (summary.finished, len(summary.failed)) == (1, 2)
    assert "killed (seed 0) was ended by SIGKILL" in reasons["killed"]
    assert "longer than --cell-timeout 8" in reasons["hangs"]
    assert {record["labels"]["learner"] for record in store.records()} == {"maml"}


def test_a_node_where_something_else_is_installed_is_named_with_what_it_has(tmp_path, plugins, cluster, monkeypatch):
    installed = on_ray._installed()
    monkeypatch.setattr(on_ray, "_installed", lambda: {**installed, "torch": "1.0"})
    with pytest.raises(BenchError, match=r"node \w+ \(\S+\): torch: \S+ there, 1\.0 here: install the same"):
        run(tmp_path / "r", f"ray:address={cluster.address}", plugins, dataset="toy", learners=("maml",))


def test_no_node_with_room_for_a_worker_is_told_with_what_there_is(tmp_path, plugins, cluster):
    with pytest.raises(BenchError, match=r"has 64 CPU for a worker; its nodes have: \S+ 1 CPU, 0 GPU"):
        run(tmp_path / "r", f"ray:address={cluster.address},cpus=64", plugins, dataset="toy", learners=("maml",))
    assert not ray.is_initialized()


def test_a_node_that_does_not_see_the_results_folder_is_named_and_told_why(tmp_path, plugins, cluster, monkeypatch):
    real = RayCluster.launch
    monkeypatch.setattr(
        RayCluster, "launch", lambda self, run: real(self, replace(run, folder=tmp_path / "not shared"))
    )
    with pytest.raises(BenchError, match=r"node \w+ \(\S+\): it does not see the results folder .* file system"):
        run(tmp_path / "r", f"ray:address={cluster.address}", plugins, dataset="toy", learners=("maml",))


def test_a_node_with_other_code_is_named_and_told_why(tmp_path, plugins, monkeypatch):
    """As its task does it, but here: another plugin is there than when the run began."""
    made = []
    monkeypatch.setattr(RayCluster, "__init__", lambda self, *_: None)

    def launch(self, given):
        (plugins / "mine" / "gate.py").write_text("GATE = 'elsewhere'\n")
        made.append(worker_process.run_on_node("ray.0", str(given.folder), 1, "cpu"))

    monkeypatch.setattr(RayCluster, "launch", launch)
    run(tmp_path / "r", "ray", plugins, dataset="toy", learners=("slow",))
    assert "code, data or plugins changed during the run, or are not the same on" in made[0]["unfit"]


def test_a_run_that_is_told_to_stop_saves_what_its_nodes_are_at(tmp_path, plugins, cluster, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_KEEP_SECONDS", "3600")
    stop = Stop()

    class Stops:
        """Stops the run at the third step."""

        @hookimpl
        def training_progress(self, step):
            if step >= 3 and not stop:
                stop.ask()

    with pytest.raises(Stopped):
        run(tmp_path / "r", f"ray:address={cluster.address}", plugins, Stops(), dataset="toy", learners=("slow",),
            meta_steps=1000, stop=stop)  # fmt: skip
    assert len(list((tmp_path / "r" / "progress").glob("[!.]*.safetensors"))) == 1
