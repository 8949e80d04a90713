"""The evaluation of one learner: no attack, FGSM and PGD-20 in ADML's scenarios, against a loop over episodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.apart import Apart, Job
from benchmarks.gradients import told_plan
from benchmarks.measure import Contestant, Settings, here, race
from benchmarks.outcomes import Goal, Outcome
from benchmarks.problems import Problem, with_few_validations
from robustbench_meta.engine.parallel import Cores
from robustbench_meta.engine.training import meta_train
from robustbench_meta.evaluation.evaluator import Outcome as Evaluated
from robustbench_meta.evaluation.evaluator import evaluate_cells
from robustbench_meta.runtime.seeds import seed_from

PGD_STEPS, PGD_ALPHA = 20, 0.01
TOLERANCE = 0.01
"""Which share of a cell's predictions may differ: where rounding turns the sign of a pixel's gradient."""
Correct = dict[str, Tensor]
"""By 'attack support/query': whether each prediction is right [episodes, queries]."""


@dataclass(frozen=True)
class Evaluation:
    """{none, FGSM, PGD-20} × ADML's four scenarios, over 200 episodes."""

    name: str = "evaluation"
    group: str = "evaluation"
    title: str = "Evaluation, none + FGSM + PGD-20 in all scenarios, conv4-32, 5-way 1-shot, 5 queries"

    def measure(self, settings: Settings) -> Outcome:
        """Ours against adapting and attacking one episode after the other with torchattacks."""
        with Apart(self.ours, settings) as apart:
            return self._race(apart, settings)

    def ours(self, settings: Settings) -> Job:
        """Train a learner, then evaluate it. One that has learnt nothing would leave every prediction to rounding."""
        problem = self._problem(settings, settings.cores())
        training = with_few_validations(problem.training)
        problem.weights = meta_train(
            problem.grid, training, settings.device, problem.plan_training(), cores=problem.engine.cores
        ).weights
        plan = problem.plan_test(_count(settings))
        return Job(lambda: ours(problem, settings.device), {"plan": plan, "weights": problem.weights})

    def _race(self, apart: Apart, settings: Settings) -> Outcome:
        count, problem = _count(settings), self._problem(settings)
        problem.weights = {name: weight.to(settings.device) for name, weight in apart.told["weights"].items()}
        spec = problem.training.spec
        flop = problem.work().evaluation(spec.way * spec.shot, spec.way * spec.query, [1, PGD_STEPS], problem.steps)
        outcome = Outcome(
            case=self.name, group=self.group, title=f"{self.title}, {count} episodes",
            compared="largest share of a cell's predictions that differ", gflop=count * flop / 1e9,
            figures={"plan": told_plan(apart.told["plan"])},
            notes=["PGD without random start, so that both attack alike"],
        )  # fmt: skip
        contestants = [
            apart.contestant(),
            Contestant("torchattacks loop", here(lambda: by_episode(problem, count), settings.device)),
        ]
        race(outcome, contestants, settings, difference=disagreement, tolerance=TOLERANCE)
        if not settings.quick and settings.device.type == "cpu" and outcome.best_peer is not None:
            what = "time as a share of that of the loop over episodes"
            outcome.goals = [Goal(what=what, value=outcome.ratio(outcome.best_peer), limit=0.50)]
        return outcome

    def _problem(self, settings: Settings, cores: Cores | None = None) -> Problem:
        return Problem.make(
            settings.device, cores=cores, learners=("maml",), episodes=_count(settings),
            scenarios=("clean/adv", "adv/clean", "adv/adv"), meta_steps=3 if settings.quick else 40,
            attacks=("none", "fgsm", f"pgd:steps={PGD_STEPS},alpha={PGD_ALPHA},random_start=false"),
        )  # fmt: skip


def _count(settings: Settings) -> int:
    return 3 if settings.quick else 200


def ours(problem: Problem, device: torch.device) -> Correct:
    """All cells of the training, by the suite."""
    grid = problem.grid
    found = evaluate_cells(problem.engine, problem.weights, grid.splits.test.to(device), grid.cells, device)
    results: Correct = {}
    for cell in grid.cells:
        outcome = found[cell.key]
        if not isinstance(outcome, Evaluated):
            raise outcome
        name = cell.attack.partition(":")[0]
        results[f"{name} {cell.support}/{cell.query}"] = torch.as_tensor(outcome.robust)
    return results


def by_episode(problem: Problem, count: int) -> Correct:
    """The same by a loop: each episode is adapted to once for each support set, and attacked with torchattacks."""
    spec, base = problem.training.spec, problem.module()
    source = problem.grid.splits.test.to(problem.device)
    eps = next(cell.threat.eps.value for cell in problem.grid.cells if not cell.threat.attack.clean)
    attacks: dict[str, Callable[[nn.Module], Any]] = {
        "fgsm": lambda module: torchattacks.FGSM(module, eps=eps),
        "pgd": lambda module: torchattacks.PGD(
            module, eps=eps, alpha=PGD_ALPHA, steps=PGD_STEPS, random_start=False
        ),
    }  # fmt: skip
    right: dict[str, list[Tensor]] = {}
    for index in range(count):
        task = source.sample([seed_from("episodes", "test", index)], spec.way, spec.shot, spec.query)
        (xs, ys), (xq, yq) = ((batch.x[0], batch.y[0]) for batch in task)

        def note(name: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
            with torch.no_grad():
                right.setdefault(name, []).append(model(x).argmax(1) == y)

        clean = adapted(problem, base, xs, ys)
        note("none clean/clean", clean, xq, yq)
        for name, make in attacks.items():
            attacked = adapted(problem, base, make(base)(xs, ys), ys)
            note(f"{name} adv/clean", attacked, xq, yq)
            note(f"{name} clean/adv", clean, make(clean)(xq, yq), yq)
            note(f"{name} adv/adv", attacked, make(attacked)(xq, yq), yq)
    return {name: torch.stack(rows).cpu() for name, rows in right.items()}


def adapted(problem: Problem, base: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """A copy of the module after its inner steps at test, its weights data."""
    model = copy.deepcopy(base).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.alpha)
    for _ in range(problem.training.learner.inner_steps(training=False)):
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(model(x), y))
        optimizer.step()
    return model.requires_grad_(False)


def disagreement(theirs: Correct, ours: Correct) -> float:
    """The largest share of a cell's predictions that differ; all of them, if cells are missing."""
    if theirs.keys() != ours.keys():
        return 1.0
    return max(float((theirs[name] != ours[name]).float().mean()) for name in ours)


CASES = [Evaluation()]
