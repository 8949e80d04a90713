"""Work in processes of their own, where memory and start-up count from nothing.

`python -m benchmarks.child JOB`, JOB as JSON, prints its result as JSON on the last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_child(job: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Do a job in a new process.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", json.dumps(job)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{job['job']} failed: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def command_line(job: Mapping[str, Any]) -> dict[str, Any]:
    """`bench` with its arguments, from nothing, as somebody types it; results go to a folder that is thrown away."""
    began = time.perf_counter()
    from robustbench_meta.cli import main  # noqa: PLC0415  # imported inside what is timed

    with tempfile.TemporaryDirectory() as folder:
        try:
            main([*job["arguments"], "--results", folder])
        except SystemExit as stop:
            if stop.code:
                raise
    return {"seconds": time.perf_counter() - began}


def tasks(job: Mapping[str, Any], device: Any) -> Callable[[], object]:
    """A meta-gradient of so many tasks, a chunk at a time."""
    from benchmarks.problems import Problem  # noqa: PLC0415
    from robustbench_meta.tuning import default_plan  # noqa: PLC0415

    problem = Problem.make(device, learners=("maml",), attacks=("none",), query=15, tasks_per_step=job["value"])
    problem.engine.plan = default_plan(device, job["value"])  # measuring plans would take the memory of the worst
    return problem.gradient


def evaluating(job: Mapping[str, Any], device: Any) -> Callable[[], object]:
    """An evaluation of so many episodes, or with so many attacks of equal cost."""
    from benchmarks.evaluation import ours  # noqa: PLC0415
    from benchmarks.problems import Problem  # noqa: PLC0415
    from robustbench_meta.tuning import default_plan  # noqa: PLC0415

    problem = Problem.make(device, learners=("maml",), attacks=tuple(job["attacks"]), episodes=job["episodes"])
    problem.engine.plan = default_plan(device, 32)
    return lambda: ours(problem, device)


def learners(job: Mapping[str, Any], device: Any) -> Callable[[], object]:
    """A run with so many learners of equal cost, meta-trained and tested, into a fresh store."""
    from benchmarks.problems import grid_of, registry  # noqa: PLC0415
    from robustbench_meta.runner import run  # noqa: PLC0415
    from robustbench_meta.spec import RunSpec  # noqa: PLC0415
    from robustbench_meta.store import Store  # noqa: PLC0415

    names = tuple(f"maml:alpha=0.{place + 2}" for place in range(job["value"]))
    grid = grid_of(
        RunSpec.read(learners=names, attacks=("none", "fgsm"), meta_steps=job["steps"], episodes=job["episodes"])
    )

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            summary = run(grid, registry(), Store(Path(folder)), device)
        assert not summary.failed, summary.failed

    return work


JOBS: dict[str, Callable[[Mapping[str, Any], Any], Callable[[], object]]] = {
    "tasks": tasks,
    "evaluating": evaluating,
    "learners": learners,
}


def clocked(job: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a job, and the memory before and at the most."""
    from benchmarks.machine import peak_mib, set_up  # noqa: PLC0415
    from robustbench_meta.devices import choose_device, wait  # noqa: PLC0415

    device = choose_device(job["device"])
    set_up(device, job["threads"])
    work = JOBS[job["job"]](job, device)
    base = peak_mib(device)
    work()
    seconds = []
    for _ in range(job["repeats"]):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return {"seconds": median(seconds), "base_mib": base, "peak_mib": peak_mib(device)}


def _peak() -> float:
    import torch  # noqa: PLC0415

    from benchmarks.machine import peak_mib  # noqa: PLC0415

    return peak_mib(torch.device("cpu"))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    found = {**command_line(asked), "peak_mib": _peak()} if asked["job"] == "command line" else clocked(asked)
    sys.stdout.write("\n" + json.dumps(found) + "\n")
