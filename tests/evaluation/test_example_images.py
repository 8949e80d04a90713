"""What a record shows besides numbers: pictures of the attack that was judged, its cost, its training, its command."""

from __future__ import annotations

import base64
import copy
import json
import shlex
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.cli import main
from robustbench_meta.contracts import Attack
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.attacked_model import AttackedModel
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.query_counter import CountingModel, QueryCount
from robustbench_meta.engine.training import make_engine
from robustbench_meta.evaluation import evaluator
from robustbench_meta.evaluation.episode_evaluator import AdaptableModel, EpisodeEvaluator
from robustbench_meta.evaluation.evaluator import evaluate_cells
from robustbench_meta.evaluation.example_images import can_be_shown, encoded, example_of
from robustbench_meta.evaluation.gallery import ExampleEpisode, gallery_of, pixels, png
from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.jobs.record import labels_of
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results import leaderboard
from robustbench_meta.results.learning_curves import Validation, learning_curve, learning_curves
from robustbench_meta.results.records import DamagedError, read_record, record_text
from robustbench_meta.results.reproduce import command_for, transfer_command
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.interrupts import Stop, Stopped
from tests.helpers.records import record
from tests.helpers.worlds import make_world, random_tasks

CPU = torch.device("cpu")
SMALL = {"profile": "smoke", "learners": ("maml",), "attacks": ("none", "fgsm"), "episodes": 6, "checks": False}


def small(registry, **given):
    return build_grid(RunSpec.read(**{**SMALL, **given}), registry, None)


@pytest.fixture(autouse=True)
def _two_episodes_at_a_time(monkeypatch):
    monkeypatch.setattr(evaluator, "CPU_CHUNK", 2)


def outcomes(grid, chunk=2):
    """By attack, support and query."""
    engine, weights = make_engine(grid, grid.trainings[0], CPU, Plan(chunk=chunk))
    found = evaluate_cells(engine, weights, grid.splits.test, grid.cells, CPU, probe_plan=grid.probe_plan)
    return {(cell.attack, cell.support, cell.query): found[cell.key] for cell in grid.cells}


# -- pictures ----------------------------------------------------------------------------------------


def test_the_pictures_are_those_that_were_judged_and_nothing_is_attacked_twice(registry, monkeypatch):
    """By an FGSM that notes what it is given and what it returns."""
    grid, calls = small(registry), []
    perturb = registry.get("attack", "fgsm").perturb

    def noting(self, model, x, y, threat, random):
        calls.append((x.clone(), perturb(self, model, x, y, threat, random)))
        return calls[-1][1]

    monkeypatch.setattr(registry.get("attack", "fgsm"), "perturb", noting)
    outcome = outcomes(grid)["fgsm", "clean", "adv"]
    assert len(calls) == 3, "six episodes, two at a time"
    clean, adversarial = (images[0].numpy().astype(np.float64) for images in calls[0])
    pictures = ExampleEpisode.model_validate(outcome.gallery).pictures
    assert [picture.label for picture in pictures] == [0, 1, 2, 3, 4], "one a class"
    for picture in pictures:
        x, x_adv = clean[picture.index], adversarial[picture.index]
        change = x_adv - x
        assert picture.role == "query"
        assert np.array_equal(pixels(picture.clean), np.rint(255 * x)[0])
        assert np.array_equal(pixels(picture.adversarial), np.rint(255 * x_adv)[0])
        assert np.array_equal(pixels(picture.difference), np.rint(128 + 127 * change / np.abs(change).max())[0])
        assert picture.linf == np.abs(change).max() == pytest.approx(0.1, abs=1e-6)
        assert picture.l2 == pytest.approx(np.linalg.norm(change), rel=1e-12)


def test_what_the_model_says_of_them_is_what_was_counted(registry):
    """Against logits that are computed again, from the weights on."""
    grid = small(registry, learners=("protonet",), scenarios=("adv/adv",))
    engine, weights = make_engine(grid, grid.trainings[0], CPU, Plan(chunk=2))
    engine.set_mode(training=False)
    spec = grid.trainings[0].spec
    tasks = evaluator.test_episodes(grid.splits.test, spec, [0])
    with torch.no_grad():
        adapted = engine.adapt(engine.theta({name: each.detach() for name, each in weights.items()}), tasks.support)
        shares = engine.logits(adapted, tasks.query.x)[0].double().softmax(-1).numpy()
    outcome = outcomes(grid)["fgsm", "adv", "adv"]
    queries = [each for each in ExampleEpisode.model_validate(outcome.gallery).pictures if each.role == "query"]
    assert len(queries) == 5
    for picture in queries:
        label = int(tasks.query.y[0, picture.index])
        assert picture.label == label
        assert picture.before.predicted == shares[picture.index].argmax()
        assert picture.before.confidence == pytest.approx(shares[picture.index].max(), abs=1e-5)
        assert picture.before.of_label == pytest.approx(shares[picture.index, label], abs=1e-5)
        assert (picture.before.predicted == label) == outcome.clean[0, picture.index]
        assert (picture.after.predicted == label) == outcome.robust[0, picture.index]
        assert picture.fooled == (outcome.clean[0, picture.index] and not outcome.robust[0, picture.index])


def test_each_scenario_shows_what_it_attacks(registry):
    found = outcomes(small(registry, scenarios=("all",)))
    assert found.pop(("none", "clean", "clean")).gallery is None
    shown = {
        (support, query): [
            (picture.role, picture.adversarial is not None, picture.after is not None)
            for picture in ExampleEpisode.model_validate(outcome.gallery).pictures
        ]
        for (_, support, query), outcome in found.items()
    }
    attacked, told, support = ("query", True, True), ("query", False, True), ("support", True, False)
    assert shown == {
        ("clean", "adv"): 5 * [attacked],
        ("adv", "clean"): 5 * [told] + 5 * [support],
        ("poisoned", "clean"): 5 * [told] + 5 * [support],
        ("adv", "adv"): 5 * [attacked] + 5 * [support],
        ("poisoned", "adv"): 5 * [attacked] + 5 * [support],
        ("asp", "clean"): 5 * [told],
        ("swap", "clean"): 5 * [told],
    }


@pytest.mark.parametrize(
    "given",
    [{"scenarios": ("all",), "attacks": ("none", "pgd:steps=2")}, {"checks": True, "episodes": 3}],
    ids=["all scenarios", "with checks"],
)
def test_rows_are_the_same_with_pictures_and_without(registry, monkeypatch, given):
    grid = small(registry, **given)
    shown, alone = outcomes(grid), outcomes(grid)
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "example_of", lambda *_: None)
        patch.setattr("robustbench_meta.evaluation.episode_evaluator.CountingModel", lambda victim, _: victim)
        bare = outcomes(grid)
    for key, outcome in shown.items():
        assert outcome.gallery == alone[key].gallery
        assert outcome.effort == alone[key].effort
        for other in (alone[key], bare[key]):
            assert np.array_equal(outcome.robust, other.robust)
            assert np.array_equal(outcome.clean, other.clean)
            assert outcome.episodes_digest == other.episodes_digest
            assert outcome.reliability == other.reliability
        assert bare[key].gallery is None


def episode_evaluator(registry, shape=(1, 8, 8), way=3, seed=0, **options):
    engine, weights = make_world(registry, "maml", "linear", shape=shape, way=way, **options)
    engine.set_mode(training=False)
    engine.set_task_seeds(range(2))
    tasks = random_tasks(tasks=2, way=way, shape=shape, query=2, seed=seed)
    theta = engine.theta({name: weight.detach() for name, weight in weights.items()})
    return EpisodeEvaluator(AdaptableModel(engine, theta), tasks, {}, CPU)


def both(attack, eps=0.1):
    at_eps = AttackAtEps(attack, ThreatModel("linf", eps))
    return Scenario(at_eps, at_eps)


@pytest.mark.parametrize(
    ("shape", "queries", "supports"),
    [
        ((1, 28, 28), 5, 5), ((3, 32, 32), 5, 5), ((1, 105, 105), 3, 3), ((3, 84, 84), 1, 1), ((3, 128, 128), 1, 1),
    ],
    ids=str,
)  # fmt: skip
def test_of_large_images_there_are_fewer_even_of_noise(registry, shape, queries, supports):
    where = episode_evaluator(registry, shape, way=7)
    noise = registry.make("attack", "noise", {})
    with torch.no_grad():
        gallery = encoded(example_of(where, both(noise)))
        one = encoded(example_of(where, Scenario(query=both(noise).query)))
    roles = [picture["role"] for picture in gallery["pictures"]]
    assert roles == queries * ["query"] + supports * ["support"]
    if shape != (3, 128, 128):
        assert max(len(json.dumps(gallery)), len(json.dumps(one))) < 300_000
    assert len(one["pictures"]) == min(5, max(1, 200_000 // (3 * int(np.prod(shape)))))


@pytest.mark.parametrize("shape", [(12,), (2, 4, 4), (4, 4, 4), (4, 4), (3, 300, 300)], ids=str)
def test_what_is_no_image_or_too_large_is_not_shown(registry, shape):
    assert not can_be_shown(shape)
    if shape != (3, 300, 300):
        with torch.no_grad():
            assert example_of(episode_evaluator(registry, shape), both(registry.make("attack", "fgsm", {}))) is None


def test_the_rounding_of_an_attack_that_found_nothing_stays_grey(registry):
    class Rounds(Attack):
        """Moves every pixel by a rounding error."""

        name: ClassVar[str] = "rounds"

        def perturb(self, model, x, y, threat, random):
            return x + 6e-8 * (1 - 2 * (x > 0.5).to(x.dtype))

    with torch.no_grad():
        [picture, *_] = example_of(episode_evaluator(registry), Scenario(query=both(Rounds()).query))["pictures"]
    assert 0 < picture["linf"] < 1e-7
    assert picture["difference"].int().sub(128).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels_that_it_was_given(channels):
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
    assert np.array_equal(pixels(png(image)), expected)


# -- in records --------------------------------------------------------------------------------------

GIVEN = {
    "learners": ("maml",),
    "attacks": ("none", "fgsm", "pgd:steps=2"),
    "scenarios": ("clean/adv", "poisoned/clean"),
}


class StopsOnce:
    """Asks a run to stop when so many test episodes of all cells are done."""

    def __init__(self, stop, done):
        self.stop, self.done = stop, done

    @hookimpl
    def evaluation_progress(self, training, done):
        if done >= self.done:
            self.stop.ask()


def run(folder, stops_at=None):
    registry, stop = load_registry(local=False), Stop()
    grid = small(registry, **GIVEN, episodes=40)
    if stops_at is not None:
        registry.manager.register(StopsOnce(stop, stops_at))
    runner.run(grid, registry, Store(folder), CPU, stop=stop)
    return Store(folder)


def told(store):
    return {each["key"]: (each["gallery"], each["cost"], each["robust"]) for each in store.records()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_an_evaluation_that_was_interrupted_has_the_pictures_of_one_that_was_not(whole, tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        run(tmp_path, stops_at=1)
    assert Store(tmp_path).records() == []
    assert list((tmp_path / "progress").glob("*.0-*.safetensors")), "nothing was kept"
    drawn = []
    monkeypatch.setattr(evaluator, "example_of", lambda *_: drawn.append(1))
    assert told(run(tmp_path)) == told(whole)
    assert drawn == []


def test_a_record_is_as_small_as_its_pictures_allow(whole):
    sizes = [path.stat().st_size for path in (whole.root / "records").iterdir()]
    assert max(sizes) < 40_000, "ten pictures of 28 × 28"


GOOD = ExampleEpisode.model_validate({
    "episode": 0, "shape": [1, 4, 6],
    "pictures": [{
        "role": "query", "index": 3, "label": 1, "clean": png(np.zeros((1, 4, 6), np.uint8)), "adversarial": None,
        "difference": None, "linf": 0.0, "l2": 0.0, "after": None,
        "before": {"predicted": 1, "confidence": 0.5, "of_label": 0.5},
    }],
}).model_dump()  # fmt: skip
"""A gallery of one picture."""


def changed(**parts):
    gallery = copy.deepcopy(GOOD)
    gallery["pictures"][0] |= parts
    return gallery


@pytest.mark.parametrize(
    "gallery",
    [
        [], "text", {}, {**GOOD, "pictures": []}, {**GOOD, "pictures": 11 * GOOD["pictures"]},
        {**GOOD, "shape": [1, 4, 5]}, {**GOOD, "shape": [3, 4, 6]}, {**GOOD, "episode": -1},
        changed(role="<b>"), changed(label=-1), changed(label=True), changed(linf=float("nan")), changed(l2=-1.0),
        changed(before={"predicted": 0, "confidence": 2.0, "of_label": 0.0}), changed(clean=None),
        changed(clean="no base64"), changed(clean='"><script>alert(1)</script>'), changed(clean=""),
        changed(adversarial=base64.b64encode(b"<svg onload='alert(1)'/>" * 3).decode()),
        changed(difference=png(np.zeros((1, 4, 7), np.uint8))), changed(clean=png(np.zeros((3, 4, 6), np.uint8))),
        changed(clean=png(np.zeros((1, 4, 6), np.uint8)) + "A"), changed(clean="iVBORw0KGgo" + "A" * 2**21),
    ],
)  # fmt: skip
def test_a_gallery_that_is_none_is_damage(gallery, tmp_path):
    made = record(np.eye(4, 6, dtype=bool))
    path = tmp_path / f"{made['key']}.json"
    path.write_text(record_text({**made, "gallery": GOOD}))
    assert gallery_of(read_record(path)).model_dump() == GOOD
    path.write_text(record_text({**made, "gallery": gallery}))
    with pytest.raises(DamagedError, match="gallery"):
        read_record(path)


@pytest.mark.parametrize(
    "cost",
    [
        3, {}, {"attacked_images": -1, "forward_per_image": 1.0, "gradients_per_image": 1.0},
        {"attacked_images": 1, "forward_per_image": float("inf"), "gradients_per_image": 1.0},
        {"attacked_images": 1, "forward_per_image": 1.0, "gradients_per_image": "1"},
    ],
)  # fmt: skip
def test_a_cost_that_is_none_is_damage(cost, tmp_path):
    made = record(np.eye(4, 6, dtype=bool))
    path = tmp_path / f"{made['key']}.json"
    path.write_text(record_text({**made, "cost": cost}))
    with pytest.raises(DamagedError, match="cost"):
        read_record(path)


def test_a_picture_whose_pixels_are_damaged_is_told():
    data = bytearray(base64.b64decode(GOOD["pictures"][0]["clean"]))
    data[45:50] = b"\xff" * 5
    with pytest.raises(ValueError, match="damaged"):
        pixels(base64.b64encode(bytes(data)).decode())


# -- cost --------------------------------------------------------------------------------------------


def effort(registry, name, options, eps=0.1, scenario=None, **world):
    """Of an attack on the 6 queries of 2 tasks each."""
    where = episode_evaluator(registry, **world)
    attack = registry.make("attack", name, options)
    with torch.no_grad():
        return where.evaluate(
            scenario(both(attack, eps).query) if scenario else Scenario(query=both(attack, eps).query)
        ).effort


@pytest.mark.parametrize(
    ("name", "options", "forward", "gradients"),
    [
        ("fgsm", {}, 1, 1), ("torchattacks-fgsm", {}, 1, 1), ("pgd", {"steps": 20}, 20, 20),
        ("bim", {"steps": 7}, 7, 7), ("gn", {}, 0, 0),
    ],
    ids=str,
)  # fmt: skip
def test_the_cost_of_attacks_is_that_of_their_algorithms(registry, name, options, forward, gradients):
    assert effort(registry, name, options) == QueryCount(12, 12 * forward, 12 * gradients)


def test_a_search_without_gradients_has_none_and_asks_no_more_than_it_may(registry):
    found = effort(registry, "square", {"queries": 30}, eps=1e-4)
    assert found.gradients == 0
    assert 0 < found.forward <= 12 * 32, "thirty queries, and a look before and after"


@pytest.mark.parametrize("name", ["fgsm", "pgd:steps=4", "apgd:steps=9"])
def test_poisoning_takes_a_gradient_through_adaptation_a_step(registry, name):
    """Nothing counts as fooled there, so that Auto-PGD takes all its steps: as many gradients, the first included."""
    name, _, steps = name.partition(":steps=")
    options = {"steps": steps} if steps else {}
    found = effort(registry, name, options, scenario=lambda at_eps: Scenario(support=at_eps, support_attack="poisoned"))
    assert (found.attacked, found.gradients) == (12, 12 * int(steps or 1))


def test_two_sides_that_are_attacked_cost_both(registry):
    found = effort(registry, "pgd", {"steps": 3}, scenario=lambda at_eps: Scenario(at_eps, at_eps))
    assert found == QueryCount(24, 72, 72)
    assert found.plain() == {"attacked_images": 24, "forward_per_image": 3.0, "gradients_per_image": 3.0}


def test_an_eps_of_a_sweep_costs_what_it_takes_beyond_the_smaller_ones(registry):
    found = effort(
        registry, "pgd", {"steps": 3}, scenario=lambda at_eps: Scenario(query=replace(at_eps, sweep=(0.02, 0.05)))
    )
    assert found == QueryCount(12, 36, 36)


class Odd(Attack):
    """Takes gradients in every way that torch has, and moves along none."""

    name: ClassVar[str] = "odd"

    def perturb(self, model, x, y, threat, random):
        """As autograd.grad, as backward twice over one graph, through torch.func, and one of two inputs not asked."""
        images = x.clone().requires_grad_()
        torch.autograd.grad(model.loss(images, y).sum(), images)
        loss = model(images).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        torch.func.grad(lambda each: model.loss(each, y).sum())(x)
        model(images).sum()
        with torch.no_grad():
            model(x)
            model.fooled(x, y)
        return x


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("plan", [Plan("vmap", "vmap", 2), Plan("loop", "loop", 2)])
def test_every_way_to_a_gradient_is_counted(registry, per_task, plan):
    class Mine(Odd):
        """One task at a time, or all."""

    Mine.per_task = per_task
    where = episode_evaluator(registry, plan=plan)
    with torch.no_grad():
        found = where.evaluate(Scenario(query=both(Mine()).query)).effort
    assert found == QueryCount(12, 6 * 12, 4 * 12)


def test_counting_changes_no_gradient(registry):
    where = episode_evaluator(registry)
    plain = where.victim()

    def gradient(victim) -> Tensor:
        with torch.enable_grad():
            images = where.tasks.query.x.clone().requires_grad_()
            return torch.autograd.grad(victim.loss(images, where.tasks.query.y).sum(), images)[0]

    assert isinstance(plain, AttackedModel)
    assert torch.equal(gradient(plain), gradient(CountingModel(plain, QueryCount())))
    fgsm = guarded(registry.make("attack", "fgsm", {}), ThreatModel("linf", 0.1))
    found = [
        where.engine.attacked(each, where.tasks.query, fgsm, "query").x
        for each in (plain, CountingModel(plain, QueryCount()))
    ]
    assert torch.equal(*found)


def test_the_leaderboard_has_the_cost(whole):
    rows = leaderboard.build(whole).set_index("attack")
    assert set(rows.loc["fgsm", "gradients_per_image"]) == {1.0}
    assert set(rows.loc["pgd:steps=2", "forward_per_image"]) == {2.0}
    assert rows.loc["none", "gradients_per_image"] == 0.0


# -- the training ------------------------------------------------------------------------------------


def test_the_learning_curve_is_the_history_of_the_training(whole):
    [first, *others] = whole.records()
    curve = learning_curve(first)
    assert [each.step for each in curve] == [5, 10]
    assert [each._asdict() for each in curve] == [{**entry, "step": int(entry["step"])} for entry in first["history"]]
    assert max(curve, key=lambda each: (each.validation_accuracy, -each.validation_loss)).step == first["chosen_step"]
    assert learning_curves([first, *others]) == {first["training"]: curve}


@pytest.mark.parametrize(
    "history", [None, [], {}, "text", [None], [{"step": 1}], [dict.fromkeys(Validation._fields, "x")],
                [dict.fromkeys(Validation._fields, float("nan"))], [dict.fromkeys(Validation._fields, -1.0)]],
)  # fmt: skip
def test_a_history_that_tells_nothing_is_no_curve(history):
    assert learning_curve({"history": history}) == []
    assert learning_curves([{"history": history, "training": "a"}]) == {}


# -- the command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def typed():
    """Makes a command into the run that `bench run` reads from it, as a dry run gets it."""

    def read(line):
        found, patch = [], pytest.MonkeyPatch()

        def stop_here(suite, *_, bring):
            assert bring is None, "a dry run remembers no names"
            found.extend(part.spec() for part in suite.parts)
            raise KeyboardInterrupt

        with patch.context() as patched:
            patched.setattr("robustbench_meta.jobs.runner.make_ready", stop_here)
            with pytest.raises(SystemExit):
                main([*shlex.split(line)[1:], "--dry-run"])
        [spec] = found
        return spec

    return read


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scenarios": ("all",), "surrogate": "protonet", "seeds": (0, 3)},
        {"learners": ("adml:first_order=true,alpha=0.1", "aq:train_attack=pgd:steps=3;alpha=0.02")},
        {"attacks": ("fgsm", "pgd:steps=4,alpha=2/255", "bim:eps=4/255"), "eps": ("8/255", "0.3")},
        {"attacks": ("pgd",), "eps": ("0:0.3:4",), "checks": False},
        {"way": 3, "shot": 2, "query": 4, "meta_steps": 0, "tasks_per_step": 1, "episodes": 3, "precision": "bf16"},
        {"dataset": "toy", "attacks": ("none", "fgsm")},
        {"profile": "quick", "backbone": "conv4:width=64", "attacks": ("cw", "pgdl2:eps=0.5")},
        {"backbone": "conv4:norm=none,width=16"},
    ],
    ids=lambda given: " ".join(map(str, given.values())) or "plain",
)
def test_the_command_of_a_record_gives_its_cell(registry, typed, given):
    spec = RunSpec.read(**{**SMALL, "checks": True, "learners": ("maml", "adml"), **given})
    grid = build_grid(spec, registry, None)
    assert grid.cells
    for cell in grid.cells:
        line = command_for({
            "spec": json.loads(cell.spec.model_dump_json()), "labels": {**grid.labels, **labels_of(cell)}
        })  # fmt: skip
        again = build_grid(typed(line), registry, None, splits=grid.splits)
        assert cell.key in {each.key for each in again.cells}, line
        if not cell.spec.attack.sweep and cell.query != "transfer":
            assert len(again.cells) == 1, "no other cell is computed"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"way": 3, "shot": 2, "query": 4, "meta_steps": 7, "tasks_per_step": 1, "backbone": "conv4:width=8"},
        {"dataset": "toy", "attacks": ("fgsm",)},
        {"profile": "quick", "learners": ("adml:alpha=0.1",)},
    ],
    ids=lambda given: " ".join(map(str, given.values())) or "plain",
)
def test_a_checkpoint_is_a_surrogate_in_the_setting_that_it_was_trained_in(registry, typed, given):
    spec = RunSpec.read(**{**SMALL, "learners": ("maml",), **given})
    grid = build_grid(spec, registry, None)
    made = {"spec": json.loads(grid.cells[0].spec.model_dump_json()), "labels": grid.labels}
    again = typed(transfer_command(made, "it s.safetensors"))
    assert (again.surrogate, again.scenarios) == ("it s.safetensors", ("clean/transfer",))
    victim = build_grid(again.model_copy(update={"surrogate": None, "scenarios": ("clean/adv",)}), registry, None)
    (ours,), (theirs,) = grid.trainings, victim.trainings
    assert ours.spec.learner.name != theirs.spec.learner.name
    for name in ("dataset", "backbone", "way", "shot", "query", "meta_steps", "tasks_per_step", "validations"):
        assert getattr(ours.spec, name) == getattr(theirs.spec, name), name
    made["spec"]["training"]["learner"]["code"] = "session sha256:0"
    assert transfer_command(made, "it.safetensors") is None, "no command line finds that learner"


def test_commands_are_quoted_for_the_shell_and_untold_where_they_cannot_be():
    made = record(np.eye(4, 6, dtype=bool))
    assert command_for(made) is None, "a record by hand, of no profile's validations"
    training = made["spec"]["training"]
    training |= {"validations": 2, "validation_tasks": 8, "precision": "float32", "backbone": training["learner"]}
    training["dataset"] = {"name": "d; rm -rf ~", "options": {"root": "$(reboot)"}, "code": ""}
    made["labels"]["dataset"] = "d:root=x"
    line = command_for(made)
    assert "'d; rm -rf ~:root=$(reboot)'" in line
    assert shlex.split(line)[:6] == ["bench", "run", "--profile", "smoke", "--dataset", "d; rm -rf ~:root=$(reboot)"]
    for value in ("a,b", ["x"], {"x": 1}, "", "\x1b[31m"):
        training["dataset"]["options"] = {"root": value}
        assert command_for(made) is None
    training["dataset"]["options"] = {}
    made["spec"]["surrogate"] = {"trained": "file 0123", "learner": training["learner"]}
    assert command_for(made) is None
