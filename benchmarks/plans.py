"""Seconds of each way of mapping over tasks, by network: what `robustbench_meta.engine.plans.plan_for` rests on.

    python -m benchmarks.plans

Prints the table of benchmarks/speed.md. Times are those of one thread, divided by those of the default plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.problems import Problem
from robustbench_meta.engine.engine import Plan, TaskMapping
from robustbench_meta.runtime.cpu import computing_alone

CPU = torch.device("cpu")
NETWORKS = ("linear", "mlp", "conv4:width=8", "conv4:width=16", "conv4:width=32", "conv4:width=64")
LEARNERS = ("maml", "maml:steps=5", "adml", "protonet")
WAYS: tuple[tuple[TaskMapping, TaskMapping, int], ...] = (
    ("vmap", "loop", 8), ("vmap", "loop", 4), ("vmap", "vmap", 8), ("vmap", "vmap", 16), ("loop", "loop", 8),
)  # fmt: skip
REPEATS = 3


def seconds(work: Callable[[], object]) -> float:
    """The median of a few runs in this thread, after one to warm up."""
    taken = []
    for _ in range(REPEATS + 1):
        started = time.thread_time()
        work()
        taken.append(time.thread_time() - started)
    return median(taken[1:])


def pixel_gradient(problem: Problem) -> Callable[[], object]:
    """What most attacks repeat: the gradient of adapted models in their queries' pixels."""
    engine, tasks = problem.engine, problem.tasks
    engine.set_mode(training=False)
    theta = engine.theta({name: weight.detach() for name, weight in problem.weights.items()})
    with torch.no_grad():
        adapted = [engine.adapt(theta, tasks.part(slice(i, i + 8)).support) for i in range(0, tasks.tasks, 8)]

    def work() -> None:
        for i, state in enumerate(adapted):
            x = tasks.part(slice(8 * i, 8 * i + 8)).query.x.clone().requires_grad_()
            torch.autograd.grad(engine.logits(state, x).square().sum(), x)

    return work


def rows() -> Iterator[tuple[str, str, dict[str, float]]]:
    """The operation, the network, and seconds by way of mapping."""
    for learner in LEARNERS:
        for network in NETWORKS:
            given: dict[str, Any] = {"learners": (learner,), "backbone": network, "query": 15, "tasks_per_step": 16}
            problem, found = Problem.make(CPU, **given), {}
            for shared, own, chunk in WAYS:
                problem.engine.plan = replace(Plan(), shared=shared, own=own, chunk=chunk)
                if problem.weights:
                    found[f"{shared}/{own}/{chunk}"] = seconds(problem.gradient)
            if found:
                yield f"meta-step, {learner}", network, found
    for shot in (1, 5):
        for network in NETWORKS:
            problem = Problem.make(CPU, learners=("maml",), backbone=network, shot=shot, query=15, tasks_per_step=16)
            found = {}
            for shared, own, chunk in WAYS:
                problem.engine.plan = Plan(shared, own, chunk)
                found[f"{shared}/{own}/{chunk}"] = seconds(pixel_gradient(problem))
            yield f"pixel gradient, {shot} shot", network, found


def main() -> None:
    """Print the table."""
    names = [f"{shared}/{own}/{chunk}" for shared, own, chunk in WAYS]
    print("| work | network | " + " | ".join(names) + " |", flush=True)  # noqa: T201
    with computing_alone(CPU):
        for work, network, found in rows():
            base = found[names[0]]
            cells = " | ".join(f"{found[name] / base:.2f}" for name in names)
            print(f"| {work} | {network} ({1000 * base:.0f} ms) | {cells} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
