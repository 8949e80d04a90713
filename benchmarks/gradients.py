"""Cases of one meta-gradient or meta-step: conv4 in its sizes and norms, the tiny end, ADML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.apart import Apart, Job
from benchmarks.measure import Contestant, Settings, here, race, relative
from benchmarks.outcomes import Goal, Outcome
from benchmarks.peers import Library, installed, meta_gradient, vmapped
from benchmarks.problems import Problem
from robustbench_meta.engine.engine import Plan

TOLERANCE = 1e-3
"""Relative, in float32: second-order gradients lose digits."""
TOLERANCE_STEPS = 3e-2
"""The same after several inner steps, each of which magnifies the rounding of those before it."""
TOLERANCE_FGSM = 2e-2
"""Where FGSM's signs enter: a pixel whose gradient rounds to the other side of 0 moves by 2ε."""
TOLERANCE_FLOAT64 = 1e-9


@dataclass(frozen=True)
class Gradient:
    """One meta-gradient of so many tasks; for `adml`, a whole meta-step with Adam."""

    name: str
    title: str
    group: str = "meta-gradient"
    options: Mapping[str, Any] = field(default_factory=dict)
    """As of `bench run`."""
    tasks: int = 32
    most: Mapping[str, float] = field(default_factory=dict)
    """The promised ratio to a contestant, or to the best peer ('peers'), on a CPU."""
    most_cuda: Mapping[str, float] = field(default_factory=dict)
    share: float | None = None
    """The promised share of the matrix product's rate, on a CPU."""
    vmap: bool = True
    """Whether torch.func alone takes part; it needs too much memory for some."""

    def measure(self, settings: Settings) -> Outcome:
        """Ours against the libraries, with the same tasks and weights."""
        with Apart(self.ours, settings) as ours:
            return self._race(ours, settings)

    def ours(self, settings: Settings) -> Job:
        """What we do, and before that our gradient of two tasks in float64, on as many cores."""
        problem = Problem.make(settings.device, cores=settings.cores(), **self._given(self._tasks(settings)))
        plan = problem.plan_training()
        exact = Problem.make(settings.device, cores=settings.cores(), double=True, **self._given(2))
        exact.engine.plan = replace(plan, chunk=1)
        run = our_step(problem) if self.group == "adml" else problem.gradient
        return Job(run, {"plan": plan, "float64": exact.gradient()})

    def _race(self, ours: Apart, settings: Settings) -> Outcome:
        tasks, device = self._tasks(settings), settings.device
        problem = Problem.make(device, **self._given(tasks))
        outcome = Outcome(
            case=self.name, group=self.group, title=f"{self.title}, {tasks} tasks",
            compared="relative difference of meta-gradients", gflop=self._flop(problem) / 1e9,
        )  # fmt: skip
        outcome.figures["plan"] = told_plan(ours.told["plan"])
        libraries, outcome.notes = installed(problem)
        step = self.group == "adml"
        contestants = [
            ours.contestant(),
            *(
                Contestant(each.name, here(their_step(each) if step else _gradient_of(each), device))
                for each in libraries
            ),
        ]
        if self.vmap and not step:
            chunk = None if device.type == "cuda" else 8
            contestants.append(Contestant("torch.func", here(vmapped(problem, chunk), device), "reference"))
        attacked = problem.training.attack is not None
        tolerance = TOLERANCE_FGSM if attacked else TOLERANCE_STEPS if problem.steps > 1 else TOLERANCE
        race(outcome, contestants, settings, difference=relative, tolerance=tolerance)
        self._compare_in_float64(outcome, ours.told["float64"], settings)
        outcome.goals = [] if settings.quick else self._goals(outcome, settings)
        return outcome

    def _tasks(self, settings: Settings) -> int:
        return 2 if settings.quick else self.tasks

    def _given(self, tasks: int) -> dict[str, Any]:
        given: dict[str, Any] = {"learners": ("maml",), "dataset": "glyphs", "query": 15, "attacks": ("none",)}
        return {**given, **self.options, "tasks_per_step": tasks}

    def _flop(self, problem: Problem) -> int:
        work = problem.work()
        of = work.adml if problem.training.attack is not None else work.maml
        support, query = (batch.x.shape[1] for batch in problem.tasks)
        return problem.tasks.tasks * of(support, query, problem.steps)

    def _compare_in_float64(self, outcome: Outcome, ours: Tensor, settings: Settings) -> None:
        """Two tasks in float64, where rounding hides no mistake."""
        problem = Problem.make(settings.device, double=True, **self._given(2))
        found = {library.name: meta_gradient(library) for library in installed(problem)[0]}
        if any(timed.role == "reference" for timed in outcome.timed):
            found["torch.func"] = vmapped(problem, None)()
        for timed in outcome.timed:
            if timed.name in found:
                timed.difference_float64 = relative(found[timed.name].cpu(), ours)
                timed.agrees = timed.agrees and timed.difference_float64 <= TOLERANCE_FLOAT64

    def _goals(self, outcome: Outcome, settings: Settings) -> list[Goal]:
        on_cpu, goals = settings.device.type == "cpu", list[Goal]()
        for name, limit in (self.most if on_cpu else self.most_cuda).items():
            best = outcome.best_peer
            to = best if name == "peers" else next((timed for timed in outcome.timed if timed.name == name), None)
            if to is not None:
                told = f"the best peer ({to.name})" if name == "peers" else name
                goals.append(Goal(what=f"time as a share of that of {told}", value=outcome.ratio(to), limit=limit))
        share = outcome.share(outcome.ours) if outcome.ours else None
        if self.share is not None and on_cpu and share is not None:
            goals.append(Goal(what="share of the matrix product's rate", value=share, limit=self.share, at_most=False))
        return goals


def told_plan(plan: Plan) -> str:
    """A plan in words."""
    compiled = ", compiled" if plan.compiled else ""
    return f"shared {plan.shared}, own {plan.own}, {plan.chunk} tasks at a time{compiled}"


def _gradient_of(library: Library) -> Callable[[], Tensor]:
    return lambda: meta_gradient(library)


def our_step(problem: Problem) -> Callable[[], Tensor]:
    """Meta-gradient and Adam's step on a copy of θ that is put back: everybody's next step starts at the same θ."""
    start = [weight.detach().clone() for weight in problem.weights.values()]
    optimizer = torch.optim.Adam(problem.weights.values(), lr=problem.meta_lr)
    seeds = list(range(problem.tasks.tasks))

    def step() -> Tensor:
        _put_back(list(problem.weights.values()), start)
        ((gradients, _),) = problem.engine.meta_gradients(problem.weights, problem.tasks, seeds)
        for name, weight in problem.weights.items():
            weight.grad = gradients[name]
        optimizer.step()
        return torch.cat([gradient.flatten() for gradient in gradients.values()])

    return step


def their_step(library: Library) -> Callable[[], Tensor]:
    """The same with a library."""
    parameters = list(library.module.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=library.problem.meta_lr)

    def step() -> Tensor:
        _put_back(parameters, start)
        gradient = meta_gradient(library)
        optimizer.step()
        return gradient

    return step


def _put_back(weights: list[Any], start: list[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(weights, start)


def _conv4(width: int, **options: str) -> str:
    return "conv4:" + ",".join(f"{key}={value}" for key, value in {"width": width, **options}.items())


_HALF, _TWO_FIFTHS = {"peers": 0.50}, {"peers": 0.40}
_MAML, _FIVE = "MAML, 5-way 1-shot, 15 queries", {"learners": ("maml:steps=5,alpha=0.1",)}

CASES = [
    Gradient(
        "conv4-64", f"{_MAML}, conv4-64", options={"backbone": _conv4(64)},
        most=_HALF, share=0.60, most_cuda={"higher": 0.02},
    ),
    Gradient("conv4-32", f"{_MAML}, conv4-32", options={"backbone": _conv4(32)}, most=_TWO_FIFTHS),
    Gradient("conv4-16", f"{_MAML}, conv4-16", options={"backbone": _conv4(16)}, most=_TWO_FIFTHS),
    Gradient(
        "conv4-64-5steps", f"{_MAML}, conv4-64, 5 inner steps", options={"backbone": _conv4(64), **_FIVE},
        most={"peers": 0.55},
    ),
    Gradient("conv4-32-5steps", f"{_MAML}, conv4-32, 5 inner steps", options={"backbone": _conv4(32), **_FIVE}),
    Gradient("conv4-16-5steps", f"{_MAML}, conv4-16, 5 inner steps", options={"backbone": _conv4(16), **_FIVE}),
    Gradient("conv4-64-batch", f"{_MAML}, conv4-64 with batch norm", options={"backbone": _conv4(64, norm="batch")}),
    Gradient("conv4-64-max", f"{_MAML}, max-pooled conv4-64", options={"backbone": _conv4(64, pool="max")}, vmap=False),
    Gradient(
        "conv4-64-20way", "MAML, 20-way 1-shot, 15 queries, conv4-64", options={"backbone": _conv4(64), "way": 20},
        vmap=False,
    ),
    Gradient(
        "adml-conv4-64", "ADML meta-step, FGSM on support and query, both branches, conv4-64", "adml",
        {"backbone": _conv4(64), "learners": ("adml",)}, most={"higher": 0.45},
    ),
    Gradient(
        "adml-conv4-32", "ADML meta-step, FGSM on support and query, both branches, conv4-32", "adml",
        {"backbone": _conv4(32), "learners": ("adml",)},
    ),
    Gradient("toy", "MAML, toy (linear, 50 features)", "tiny", {"dataset": "toy", "way": 2}, most={"peers": 0.10}),
    Gradient("mlp", f"{_MAML}, mlp", "tiny", {"backbone": "mlp:width=64"}, most={"peers": 0.10}),
]  # fmt: skip
