"""Learners as strangers write them, a file each, through whole runs: numbers repeat, checkpoints are chosen."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_meta.contracts import Backbone, Update, with_head
from robustbench_meta.contracts.tasks import Batch
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.training import make_engine, meta_train
from robustbench_meta.errors import BenchError, PluginError
from robustbench_meta.evaluation.evaluator import evaluate_cells
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.plugins.attacks.fgsm import FGSM
from robustbench_meta.plugins.backbones.linear import Linear
from robustbench_meta.plugins.datasets.toy import Toy
from robustbench_meta.plugins.learners.maml import MAML
from robustbench_meta.registry.in_memory import bringing
from robustbench_meta.registry.registry import Origin, Registry, load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.testing import verify
from tests.helpers.worlds import flat, make_world, random_tasks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plugins():
    return load_registry(Path(__file__).parent / "strangers")


def grid_of(plugins, learner, **given):
    spec = RunSpec.read(**{"profile": "smoke", "learners": (learner,), "attacks": ("none",), "checks": False, **given})
    return runner.build_grid(spec, plugins, None)


@pytest.mark.parametrize("name", ["alfa", "leo", "squared-distance"])
def test_they_keep_the_contract(plugins, name):
    verify(plugins.get("learner", name), registry=plugins)


def test_their_attack_keeps_the_contract(plugins):
    verify(plugins.get("attack", "mi-fgsm"), registry=plugins)


def test_what_init_draws_depends_on_the_runs_seed_alone(plugins):
    def theta(seed, before):
        grid = grid_of(plugins, "alfa:steps=2", seeds=(seed,))
        torch.manual_seed(before)
        return flat(make_engine(grid, grid.trainings[0], CPU, Plan())[1])

    assert torch.equal(theta(0, before=1), theta(0, before=2))
    assert not torch.equal(theta(0, before=1), theta(1, before=1))


def test_a_run_leaves_the_global_generator_as_it_was_and_repeats(plugins, tmp_path):
    found = []
    for turn in range(2):
        torch.manual_seed(turn)
        before = torch.get_rng_state()
        grid, store = grid_of(plugins, "alfa:steps=2"), Store(tmp_path / str(turn))
        assert runner.run(grid, plugins, store, CPU).failed == []
        assert torch.equal(torch.get_rng_state(), before)
        found.append([record["robust"] for record in store.records()])
    assert found[0] == found[1]


def test_the_checkpoint_of_an_objective_that_judges_nothing_is_chosen_by_accuracy(plugins):
    grid = grid_of(plugins, "squared-distance", meta_steps=60)
    trained = meta_train(grid, grid.trainings[0], CPU, Plan("loop", "loop", 4))
    accuracies = [entry["validation_accuracy"] for entry in trained.history]
    assert len(set(accuracies)) > 1, "nothing to choose"
    assert min(accuracies) > 0
    assert trained.chosen_step == max(trained.history, key=lambda entry: entry["validation_accuracy"])["step"]
    assert all("loss" not in entry and "accuracy" not in entry for entry in trained.history)


@pytest.mark.parametrize(("losses", "best"), [((1.7, 1.5), 1), ((1.5, 1.7), 0), ((1.5, 1.5), 0)])
def test_of_equally_accurate_validations_the_one_of_the_least_loss_is_chosen(plugins, monkeypatch, losses, best):
    left = iter(losses)
    monkeypatch.setattr(
        "robustbench_meta.engine.training._validate",
        lambda *_: {"validation_accuracy": 0.2, "validation_loss": next(left)},
    )
    grid = grid_of(plugins, "squared-distance", meta_steps=4)
    trained = meta_train(grid, grid.trainings[0], CPU, Plan("loop", "loop", 4))
    assert trained.chosen_step == trained.history[best]["step"]


def test_a_validation_that_can_tell_nothing_is_an_error(plugins):
    """Logits that are finite in training and not at the inner steps of the test."""

    class Overflows(plugins.get("learner", "squared-distance")):
        """Divides by zero once it is evaluated."""

        def inner_steps(self, training):
            return 1 if training else 2

        def adapt(self, model, state, support, **_):
            once = "done" in state
            adapted = super().adapt(model, {name: w for name, w in state.items() if name != "done"}, support)
            return {name: w / 0 if once else w for name, w in adapted.items()} | {"done": support.x.new_zeros(())}

        def logits(self, model, state, x):
            return model({name: weight for name, weight in state.items() if name != "done"}, x)

    grid = grid_of(plugins, "squared-distance")
    object.__setattr__(grid.trainings[0], "learner", Overflows())
    with pytest.raises(BenchError, match="validation at step 5 can tell nothing"):
        meta_train(grid, grid.trainings[0], CPU, Plan("loop", "loop", 4))


# -- what is refused before anything is trained ----------------------------------------------------


class InPlace(MAML):
    def adapt(self, model, state, support, **_):
        gradients = torch.func.grad(lambda weights: model.loss(model(weights, support.x), support.y))(state)
        with torch.no_grad():
            for name in state:
                state[name] -= self.alpha * gradients[name]
        return state


class Optimised(MAML):
    def adapt(self, model, state, support, **_):
        with torch.enable_grad():
            weights = {name: weight.detach().requires_grad_() for name, weight in state.items()}
            optimizer = torch.optim.SGD(weights.values(), lr=self.alpha)
            model.loss(model(weights, support.x), support.y).backward()
            optimizer.step()
        return state


class NormalisesSupport(MAML):
    def adapt(self, model, state, support, **_):
        return super().adapt(model, state, Batch(support.x.sub_(0.5).div_(0.5), support.y))


class NormalisesQueries(MAML):
    def logits(self, model, state, x):
        return model(state, x.sub_(0.5).div_(0.5))


class ShiftsLabels(MAML):
    def objective(self, ops, theta, tasks):
        tasks.query.y.add_(1).remainder_(3)
        return super().objective(ops, theta, tasks)


class ByAutograd(MAML):
    def adapt(self, model, state, support, **_):
        loss = model.loss(model(state, support.x), support.y)
        gradients = torch.autograd.grad(loss, list(state.values()), create_graph=True)
        return {name: w - self.alpha * gradient for (name, w), gradient in zip(state.items(), gradients, strict=True)}


class ByBackward(MAML):
    def adapt(self, model, state, support, **_):
        model.loss(model(state, support.x), support.y).backward()
        return {name: weight - self.alpha * weight.grad for name, weight in state.items()}


class OwnEntropy(MAML):
    def adapt(self, model, state, support, **_):
        draw = torch.Generator()
        draw.seed()
        return {name: weight + 0.1 * torch.randn(weight.shape, generator=draw) for name, weight in state.items()}


class InitByTheClock(MAML):
    def init(self, weights, feature_shape):
        draw = torch.Generator()
        draw.seed()
        return {name: torch.randn(weight.shape, generator=draw) for name, weight in weights.items()}


class OneTaskOnly(MAML):
    def objective(self, ops, theta, tasks):
        adapted = ops.adapt(theta, tasks.support)
        return [Update(ops.loss(adapted, Batch(tasks.query.x[0], tasks.query.y[0])))]


class KeepsOnItself(MAML):
    def adapt(self, model, state, support, **_):
        self.x = 1
        return super().adapt(model, state, support)


@pytest.mark.parametrize(
    ("learner", "told"),
    [
        (InPlace, r"adapt changes the state's '0.weight', .* in place.*not x -= 0.5"),
        (Optimised, r"adapt changes the state's '0.weight', .* in place.*clones"),
        (NormalisesSupport, r"adapt changes support.x in place"),
        (NormalisesQueries, r"logits changes query.x in place"),
        (ShiftsLabels, r"objective changes query.y in place"),
        (ByAutograd, r"adapt asks torch.autograd .*inner_loop.gradient_step.*\(line \d+ of test_strangers.py\)"),
        (ByBackward, r"adapt asks torch.autograd .*inner_loop.gradient_step"),
        (OwnEntropy, r"gives other logits when it is adapted to again, from the same seeds"),
        (InitByTheClock, r"θ differs each time that it is made .*init of the learner"),
        (OneTaskOnly, r"ValueError: images of shape \(15, 1, 28, 28\) were given for all tasks; expected 5 axes"),
        (KeepsOnItself, r"KeepsOnItself sets self.x; a plugin holds its options alone"),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_what_would_make_wrong_numbers_is_refused_with_what_to_do(plugins, tmp_path, learner, told):
    grid = grid_of(plugins, "maml", attacks=("none", "fgsm"))
    object.__setattr__(grid.trainings[0], "learner", learner())
    store = Store(tmp_path)
    summary = runner.run(grid, plugins, store, CPU)
    assert store.records() == []
    assert len(summary.failed) == 2
    for reason in summary.failed:
        assert re.search(told, str(reason)), reason


def test_a_dict_that_adapt_fills_reaches_no_other_task(registry):
    class Fills(MAML):
        """Puts new weights into the dict that it was given."""

        def adapt(self, model, state, support, **_):
            adapted = super().adapt(model, state, support)
            for name in list(state):
                state[name] = adapted[name]
            return state

    engine, weights = make_world(registry, "maml", "mlp", plan=Plan("loop", "loop", 5))
    expected = engine.adapt(engine.theta(weights), random_tasks().support)
    engine.learner = Fills()
    found = engine.adapt(engine.theta(weights), random_tasks().support)
    assert all(torch.equal(found.tree[name], expected.tree[name]) for name in weights)


def test_a_learner_that_changes_its_weights_at_the_test_only_is_blamed_itself(registry):
    class Late(MAML):
        """Well-behaved until it is tested."""

        def adapt(self, model, state, support, **_):
            adapted = super().adapt(model, state, support)
            with torch.no_grad():
                next(iter(state.values())).mul_(0.99)
            return adapted

    grid = grid_of(registry, "maml", attacks=("fgsm",))
    engine, weights = make_engine(grid, grid.trainings[0], CPU, Plan("loop", "loop", 4))
    engine.learner = Late()
    with pytest.raises(BenchError, match=r"learner 'maml', or its backbone, changed θ's '0.weight' in place"):
        evaluate_cells(engine, weights, grid.splits.test, grid.cells, CPU)


# -- backbones -------------------------------------------------------------------------------------


class Frozen(Backbone):
    """A fixed layer, and a linear one on it."""

    name: ClassVar[str] = "frozen"

    def build(self, shape, outputs):
        first = nn.Linear(math.prod(shape), 32)
        for parameter in first.parameters():
            parameter.requires_grad_(False)
        return with_head(nn.Sequential(nn.Flatten(), first, nn.ReLU()), (32,), outputs)


class Subtracts(nn.Module):
    def forward(self, x):
        return x.sub_(0.5).flatten(1)


class InPlaceBackbone(Backbone):
    """Normalises in place."""

    name: ClassVar[str] = "in-place"

    def build(self, shape, outputs):
        return nn.Sequential(Subtracts(), nn.Linear(math.prod(shape), outputs or 8))


def test_frozen_weights_are_neither_trained_nor_adapted_nor_counted(plugins):
    grid = grid_of(plugins, "maml")
    object.__setattr__(grid.trainings[0], "backbone", Frozen())
    engine, weights = make_engine(grid, grid.trainings[0], CPU, Plan("loop", "loop", 4))
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "head.weight": (5, 32),
        "head.bias": (5,),
    }
    first = engine.network.module[1].weight
    x = torch.rand(4, 1, 28, 28)
    hidden = (x.flatten(1) @ first.T + engine.network.module[1].bias).relu()
    expected = hidden @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(engine.network(weights, x), expected)
    trained = meta_train(grid, grid.trainings[0], CPU, Plan("loop", "loop", 4))
    assert trained.parameters == 5 * 32 + 5
    again, _ = make_engine(grid, grid.trainings[0], CPU, Plan())
    assert torch.equal(again.network.module[1].weight, first), "the same frozen weights are there at the test"
    verify(Frozen(), registry=plugins)


def test_a_backbone_that_changes_its_images_in_place_is_refused(plugins):
    grid = grid_of(plugins, "maml")
    object.__setattr__(grid.trainings[0], "backbone", InPlaceBackbone())
    with pytest.raises(BenchError, match="backbone 'in-place' changes its images in place"):
        make_engine(grid, grid.trainings[0], CPU, Plan())


# -- declarations ----------------------------------------------------------------------------------


def declaring(base, **declared):
    named = {"__doc__": "Declares.", "__annotations__": dict.fromkeys(declared, ClassVar[object])}
    return type("Declares", (base,), {"name": "declares", **named, **declared})


@pytest.mark.parametrize(
    ("kind", "cls", "told"),
    [
        ("dataset", declaring(Toy, loss="crossentropy"), r"loss = 'crossentropy'; expected 'cross_entropy' or"),
        ("dataset", declaring(Toy, way=1), r"way = 1; expected 2 or more"),
        ("dataset", declaring(Toy, eps={"l3": 0.1}), r"eps = .*; expected eps by norm, one of 'linf'"),
        ("dataset", declaring(Toy, eps={"linf": "much"}), r"eps = .*: eps 'much' is not a number"),
        ("attack", declaring(FGSM, method="single_step"), r"method = 'single_step'; expected 'random', 'single-step'"),
        ("attack", declaring(FGSM, per_task="yes"), r"per_task = 'yes'; expected a valid boolean"),
        ("attack", declaring(FGSM, norm="l3"), r"norm = 'l3'; expected"),
        ("learner", declaring(MAML, transductive="no"), r"transductive = 'no'; expected a valid boolean"),
        ("backbone", declaring(Linear, norm_layer=None), r"norm_layer = None; expected a valid string"),
    ],
)  # fmt: skip
def test_declared_words_are_held_against_the_contract(kind, cls, told):
    with pytest.raises(PluginError, match=f"{kind} 'declares' declares {told}"):
        made_by_a_registry(kind, cls)


def test_an_option_that_the_contract_knows_has_the_contracts_words():
    class AdamW(MAML):
        """Names an optimiser that there is not."""

        name: ClassVar[str] = "adamw"
        optimizer: str = "adamw"

    with pytest.raises(PluginError, match="learner 'adamw' declares optimizer = 'adamw'; expected 'adam' or 'sgd'"):
        made_by_a_registry("learner", AdamW)


def made_by_a_registry(kind, cls):
    registry = Registry()
    assert registry.add(bringing(kind, cls), Origin("local", "here", "")).error is None
    return registry.make(kind, cls.name, {})


@pytest.mark.parametrize("line", ["steps = 10", "tries = 10"])
def test_an_option_without_a_type_is_told_in_words(tmp_path, line):
    (tmp_path / "untyped.py").write_text(
        "from robustbench_meta.plugins.learners.maml import MAML\n\n\n"
        f'class Untyped(MAML):\n    """An option without a type."""\n\n    name = "untyped"\n    {line}\n'
    )
    [error] = [found.error for found in load_registry(tmp_path).found if found.error]
    name = line.split()[0]
    assert f"'{name}' has no type; write `{name}: int = Field(…, description=…)` for an option" in error
    assert "pydantic.dev" not in error
