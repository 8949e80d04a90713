"""`python -m benchmarks.ray_cluster`: two Ray nodes on this machine; one killed in the middle of a grid; the speed-up.

The nodes are two raylets on loopback with one CPU each, so that two workers have two cores at most, shared with Ray's
own processes, and the network costs nothing: this shows that nothing is lost, and what the executor itself costs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from robustbench_meta import hookimpl
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results import leaderboard
from robustbench_meta.results.store import Store

app = typer.Typer(add_completion=False)
CPU = torch.device("cpu")


@contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """A cluster, and its second node; each has one CPU."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # of Ray


@dataclass(eq=False)
class Assassin:
    """Kills a node when a share of all meta-steps is done."""

    cluster: Cluster
    node: Any
    at_step: int
    steps: dict[str, int] = field(default_factory=dict)
    at: float | None = None

    @hookimpl
    def training_progress(self, training: str, step: int) -> None:
        """Counts steps."""
        self.steps[training] = step
        if self.at is None and sum(self.steps.values()) >= self.at_step:
            self.at = time.perf_counter()
            self.cluster.remove_node(self.node, allow_graceful=False)


def run(spec: RunSpec, executor: str, listener: object | None = None) -> tuple[float, int, pd.DataFrame]:
    """A run in a folder of its own: its wall-clock seconds, its failed cells, and its rows but for the costs."""
    registry = load_registry(local=False)
    if listener is not None:
        registry.manager.register(listener)
    grid = build_grid(spec, registry, None)
    with tempfile.TemporaryDirectory() as folder:
        store, began = Store(Path(folder)), time.perf_counter()
        summary = runner.run(grid, registry, store, CPU, Policy(executor), local_plugins=False)
        seconds = time.perf_counter() - began
        rows = pd.read_csv(leaderboard.write(store), dtype=str).drop(columns=leaderboard.COSTS)
    return seconds, len(summary.failed), rows


@app.command()
def main(
    pairs: Annotated[int, typer.Option(min=1, help="Runs with one and with two workers, in turn.")] = 3,
    steps: Annotated[int, typer.Option(min=100, help="Meta-steps of each training.")] = 600,
    episodes: Annotated[int, typer.Option(min=2, help="Test episodes of each cell.")] = 200,
) -> None:
    """Kill a node in the middle of a grid, then measure what a second worker gives."""
    console = Console()
    table = Table("what", "result", title="Ray, two nodes on loopback, one CPU each")

    def told(what: str, result: str) -> None:
        table.add_row(what, result)
        console.print(f"{what}: {result}", highlight=False)

    grid = RunSpec.read(learners=("maml", "adml"), seeds=(0, 1), meta_steps=steps, episodes=episodes)
    with two_nodes() as (cluster, second):
        assassin = Assassin(cluster, second, 4 * steps // 3)
        seconds, failed, there = run(grid, f"ray:address={cluster.address}", assassin)
        assert assassin.at is not None, "nobody was killed"
    told("maml and adml, 2 seeds, quick; a node killed after a third of the steps", f"{seconds:.0f} s")
    alone, _, here = run(grid, "local")
    told("the same grid in one local process", f"{alone:.0f} s")
    told("failed cells; rows that differ from the local ones", f"{failed}; {_differing(there, here)} of {len(here)}")
    two = RunSpec.read(learners=("maml",), seeds=(0, 1), meta_steps=steps, episodes=episodes)
    found: dict[int, list[float]] = {1: [], 2: []}
    with two_nodes() as (cluster, _):
        for _ in range(pairs):
            for workers, times in found.items():
                times.append(run(two, f"ray:address={cluster.address},workers={workers}")[0])
    for workers, times in found.items():
        listed = ", ".join(f"{each:.0f}" for each in times)
        told(f"maml, 2 seeds, quick; {workers} worker(s)", f"median {statistics.median(times):.0f} s ({listed})")
    ratios = [one / both for one, both in zip(found[1], found[2], strict=True)]
    told("speed-up of 2 workers, of each pair", f"median {statistics.median(ratios):.2f} (least {min(ratios):.2f})")
    load = os.getloadavg()[2]
    told("the machine", f"{os.cpu_count()} cores; load of the last 15 minutes {load:.1f}")
    console.print(table)


def _differing(found: pd.DataFrame, expected: pd.DataFrame) -> int:
    """How many rows are not the same, missing ones among them."""
    if len(found) != len(expected):
        return abs(len(found) - len(expected))
    return int((found.fillna("") != expected.fillna("")).any(axis=1).sum())


if __name__ == "__main__":
    app()
