"""The conformance suite: all of ours pass it, and who breaks one clause is told which."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ConfigDict, Field
from torch import nn

from robustbench_meta.contracts import Attack, Backbone, Dataset, File, Update, with_head
from robustbench_meta.contracts.attack import margin
from robustbench_meta.contracts.tasks import Batch, Splits, TaskBatch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.data.image_bank import ImageBank
from robustbench_meta.errors import BenchError, DataError
from robustbench_meta.plugins.attacks.fgsm import image_gradient
from robustbench_meta.plugins.backbones.conv4 import BatchStatistics
from robustbench_meta.plugins.datasets.named import CLASSES
from robustbench_meta.plugins.learners.adml import ADML
from robustbench_meta.plugins.learners.maml import MAML
from robustbench_meta.plugins.learners.protonet import ProtoNet
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.testing import ContractError, checks_of, verify
from robustbench_meta.testing.attacks import noise

EXAMPLES = Path(__file__).parents[2] / "examples"
FOUND = load_registry(EXAMPLES, strict=False)
LOADED = {name: module for name, module in sys.modules.items() if name.startswith("robustbench_meta_local_")}


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """Other tests of the process load the examples anew, and pickle finds classes by their module's name."""
    for name, module in LOADED.items():
        monkeypatch.setitem(sys.modules, name, module)


BRIDGED = ("bim", "cw", "deepfool", "torchattacks-fab", "mifgsm")
NEED_FILES = ("omniglot", "image-folder", "pickled", *CLASSES)
QUICK = {"steps": 10, "queries": 40}
ENOUGH = {
    "cw": {"steps": 30, "lr": 0.1},
    "resnet12": {"width": 4},
    "baseline": {"epochs": 3},
    "baseline++": {"epochs": 3},
}


def ours():
    for kind in ("learner", "backbone", "dataset", "attack"):
        for name in FOUND.names(kind):
            bridged = FOUND.origin(kind, name).where.endswith("torchattacks")
            if name not in NEED_FILES and (not bridged or name in BRIDGED):
                yield kind, name, {}
    for norm in ("batch", "support", "layer", "none"):
        yield "backbone", "conv4", {"norm": norm}
    yield "backbone", "conv4", {"pool": "max"}
    for options in ({"first_order": True}, {"steps": 3, "test_steps": 5}):
        yield "learner", "maml", options
    for options in ({"outer": "sequential"}, {"crossed": False}, {"attack_on": "surrogate"}, {"attack_on": "initial"}):
        yield "learner", "adml", options
    yield "learner", "aq", {"train_attack": "pgd:steps=2;eps=0.02"}
    yield "attack", "pgd", {"restarts": 2}


def label(case):
    kind, name, options = case
    return f"{kind} {name}" + "".join(f" {key}={value}" for key, value in options.items())


@pytest.mark.parametrize(("kind", "name", "options"), list(ours()), ids=map(label, ours()))
def test_ours_keep_their_contract(kind, name, options):
    cls = FOUND.get(kind, name)
    quick = {key: value for key, value in QUICK.items() if kind == "attack" and key in cls.model_fields}
    verify(FOUND.make(kind, name, {**quick, **ENOUGH.get(name, {}), **options}), registry=FOUND)


def test_the_examples_are_among_them():
    local = {brought for found in FOUND.found if found.origin.kind == "local" for brought in found.brought}
    assert local == {"attack sign-noise", "learner pixel-centroid", "dataset gratings", "backbone pooled-linear"}
    assert local <= {f"{kind} {name}" for kind, name, _ in ours()}


def test_a_learner_may_name_its_backbone():
    verify(MAML(), backbone="conv4:width=4,norm=support", registry=FOUND)


# ---- offenders: each breaks one clause


class Signed(Attack):
    """One step along the gradient's sign: what the offenders are made of."""

    name = "offender"

    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + threat.eps * image_gradient(self.name, model, x, y).sign())


class ReturnsItsInput(Signed):
    def perturb(self, model, x, y, threat, random):
        return x


class Descends(Signed):
    def perturb(self, model, x, y, threat, random):
        return threat.clip(x - threat.eps * image_gradient(self.name, model, x, y).sign())


class Exceeds(Signed):
    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + 1.01 * threat.eps * image_gradient(self.name, model, x, y).sign())


class LeavesTheRange(Signed):
    def perturb(self, model, x, y, threat, random):
        return x + threat.eps * image_gradient(self.name, model, x, y).sign()


class DividesByZero(Signed):
    def perturb(self, model, x, y, threat, random):
        gradient = image_gradient(self.name, model, x, y)
        return threat.clip(x + threat.eps * (gradient / gradient.abs().mean()).clamp(-1, 1))


class ReturnsNothing(Signed):
    def perturb(self, model, x, y, threat, random):
        super().perturb(model, x, y, threat, random)


class ReturnsDoubles(Signed):
    def perturb(self, model, x, y, threat, random):
        return super().perturb(model, x, y, threat, random).double()


class FlipsLabels(Signed):
    def perturb(self, model, x, y, threat, random):
        found = super().perturb(model, x, y, threat, random)
        y += 1
        return found


class ChangesImages(Signed):
    def perturb(self, model, x, y, threat, random):
        x += 1
        x -= 1
        return super().perturb(model, x, y, threat, random)


class ChangesWeights(Signed):
    def perturb(self, model, x, y, threat, random):
        with torch.no_grad():
            model.tensors()[0].mul_(1.0)
        return super().perturb(model, x, y, threat, random)


class LeavesAnotherMode(Signed):
    def perturb(self, model, x, y, threat, random):
        for module in model.modules():
            module.train()
        return super().perturb(model, x, y, threat, random)


class Reseeds(Signed):
    def perturb(self, model, x, y, threat, random):
        torch.manual_seed(0)
        return super().perturb(model, x, y, threat, random)


class DrawsFromTheClock(Signed):
    def perturb(self, model, x, y, threat, random):
        own = torch.Generator()
        own.seed()
        start = threat.clip(x + threat.eps * (torch.rand(x.shape, generator=own) - 0.5))
        return (start + threat.eps * 0.5 * image_gradient(self.name, model, x, y).sign()).clamp(0, 1)


class Remembers(Signed):
    calls: ClassVar[Any] = itertools.count()

    def perturb(self, model, x, y, threat, random):
        factor = 1.0 if next(self.calls) % 2 else 0.9
        return threat.clip(x + factor * threat.eps * image_gradient(self.name, model, x, y).sign())


class DrawsForAllTasks(Signed):
    def perturb(self, model, x, y, threat, random):
        step = 0.5 * threat.eps * image_gradient(self.name, model, x, y).sign()
        return threat.clip(x + step + threat.eps * (torch.rand_like(x) - 0.5))


class MixesTasks(Signed):
    def perturb(self, model, x, y, threat, random):
        gradient = image_gradient(self.name, model, x, y)
        return threat.clip(x + threat.eps * (gradient - 0.9 * gradient.mean(0, keepdim=True)).sign())


class ShowsParts(Signed):
    def perturb(self, model, x, y, threat, random):
        parts = [image_gradient(self.name, model, x[:, k : k + 1], y[:, k : k + 1]) for k in range(x.shape[1])]
        return threat.clip(x + threat.eps * torch.cat(parts, 1).sign())


class NotLossOnly(Signed):
    @property
    def loss_only(self):
        return True

    def perturb(self, model, x, y, threat, random):
        model(x)
        return super().perturb(model, x, y, threat, random)


class ShortStep(Signed):
    def perturb(self, model, x, y, threat, random):
        return threat.clip(x + 0.1 * threat.eps * image_gradient(self.name, model, x, y).sign())


class StopsTooEarly(Signed):
    def for_success(self):
        return ShortStep()


class LeavesFromAStart(Signed):
    def perturb_from(self, model, x, y, threat, random, start):
        return threat.clip(start + threat.eps * image_gradient(self.name, model, start, y).sign())


class NotBlackBox(Signed):
    method = "black-box"


class NeedsThreeClasses(Signed):
    def perturb(self, model, x, y, threat, random):
        model(x).topk(3)
        return super().perturb(model, x, y, threat, random)


class RefusesAll(Signed):
    def obstacle(self, setting):
        return "not in the mood"


class NoReason(Signed):
    def obstacle(self, setting):
        return setting.transductive or None


class SaysHowInItsOwnWords(Signed):
    def how(self):
        return "thorough"


class StrongerElsewhere(Signed):
    def stronger(self):
        return FOUND.make("attack", "pgdl2", {})


class HasAnEps(Signed):
    eps: float = Field(0.1, description="its own ε")


class TellsNothing(Signed):
    tries: int = 3


class CannotBeTyped(Signed):
    sizes: tuple[float, ...] = Field((1.0, 2.0), description="several numbers")


class Thaws(Signed):
    model_config = ConfigDict(frozen=False)
    tries: int = Field(3, description="draws")


class Shouts(Signed):
    name = "OFFENDER"


_DECLARES = "declares what it is in the words that the contract has"
_INSIDE = "stays within eps and the pixel range"
_IMAGES = "returns finite images in the shape and type of those that it is given"
_TOUCHES = "leaves images, labels, weights and modes as they are"
_REPEATS = "gives the same images again when it is given the same seeds"
_ALONE = "treats a task alike alone and among others"
_NOISE = "does more to an undefended model than noise of the same size"
_ANSWERS = "gives reasons, threat models and stronger versions of itself as the contract has them"
_SAYS = "says what it is: a summary, and options with descriptions and defaults"
ATTACKS = {
    ReturnsItsInput: (_NOISE, "the mean margin is"), Descends: (_NOISE, "after the attack"),
    Exceeds: (_INSIDE, "more than eps"), LeavesTheRange: (_INSIDE, r"pixels leave \[0, 1\] by"),
    DividesByZero: (_IMAGES, "gradient is zero everywhere, .* NaN"), ReturnsNothing: (_IMAGES, "NoneType .* `return`"),
    ReturnsDoubles: (_IMAGES, "float64 for"), FlipsLabels: (_TOUCHES, "the labels"),
    ChangesImages: (_TOUCHES, "the images"), ChangesWeights: (_TOUCHES, "the model's tensor 0"),
    LeavesAnotherMode: (_TOUCHES, "the mode"), Reseeds: ("leaves torch's seed alone", "fork_rng"),
    DrawsFromTheClock: (_REPEATS, "of the pixels differed"), Remembers: (_REPEATS, "keep nothing"),
    DrawsForAllTasks: (_ALONE, "draw from `random`"), MixesTasks: (_ALONE, "task axis"),
    ShowsParts: ("shows the model whole batches, or declares sub_batches", "1 of a task's 10 images"),
    NotLossOnly: ("works through the loss alone, if it declares loss_only", "asks for logits"),
    StopsTooEarly: ("fools the same images with for_success as without", "fool no more"),
    LeavesFromAStart: ("begins where perturb_from says, and stays inside", "more than eps"),
    NotBlackBox: ("asks for a gradient only if its method says so", "declares the method 'black-box'"),
    NeedsThreeClasses: ("works in the settings that it does not refuse", "2-way .* raised RuntimeError"),
    RefusesAll: ("works in the settings that it does not refuse", "refuses every setting: not in the mood"),
    NoReason: (_ANSWERS, "returned True"), StrongerElsewhere: (_ANSWERS, "works in l2"),
    SaysHowInItsOwnWords: (_DECLARES, "how = 'thorough'; expected 'random'"),
    HasAnEps: (_SAYS, "option 'eps'"), TellsNothing: (_SAYS, "'tries' has no description"),
    CannotBeTyped: ("its options survive JSON and the command line", "typed as .* is refused"),
    Thaws: ("is frozen: its options cannot be changed once it is made", "'tries' could be set"),
    Shouts: ("can be registered under its name", "'OFFENDER'"),
}  # fmt: skip


class Probabilities(MAML):
    def logits(self, model, state, x):
        return model(state, x).softmax(-1)


class LooksAtMates(MAML):
    def logits(self, model, state, x):
        return model(state, x - x.mean(0))


class AddsNoise(MAML):
    def logits(self, model, state, x):
        logits = model(state, x)
        return logits + 0.1 * torch.randn_like(logits)


class ChangesSupport(MAML):
    def adapt(self, model, state, support, *, alpha=None, **_):
        support.x.mul_(0.5)
        return super().adapt(model, state, support)


class KeepsCount(MAML):
    calls: ClassVar[Any] = itertools.count(1)

    def adapt(self, model, state, support, *, alpha=None, **_):
        return super().adapt(model, state, support, alpha=0.4 * next(self.calls))


class OneLoss(MAML):
    def objective(self, ops, theta, tasks):
        return [Update(update.loss.mean()) for update in super().objective(ops, theta, tasks)]


class ComparesTasks(MAML):
    def objective(self, ops, theta, tasks):
        loss = super().objective(ops, theta, tasks)[0].loss
        return [Update(loss * loss.detach() / loss.detach().mean())]


class Detaches(MAML):
    """Cuts its inner gradient off, unasked."""

    def adapt(self, model, state, support, *, alpha=None, **_):
        adapted = super().adapt(model, state, support)
        return {name: weight + (adapted[name] - weight).detach() for name, weight in state.items()}


class CutsTheSupportOff(MAML):
    def adapt(self, model, state, support, *, alpha=None, **_):
        return super().adapt(model, state, Batch(support.x.detach(), support.y))


class HalvesTheSlope(MAML):
    def adapt(self, model, state, support, *, alpha=None, **_):
        return super().adapt(model, state, Batch((support.x + support.x.detach()) / 2, support.y))


class LearnsNothing(MAML):
    def objective(self, ops, theta, tasks):
        return [Update(update.loss.detach()) for update in super().objective(ops, theta, tasks)]


class AsksForAnAttack(MAML):
    def objective(self, ops, theta, tasks):
        adapted = ops.adapt(theta, tasks.support)
        return [Update(ops.loss(adapted, ops.perturb(adapted, tasks.query)))]


class NamesNobody(ADML):
    train_attack: str = Field("fgms", description="attack in meta-training")


class UndeclaredPrototypes(ProtoNet):
    theta_predicts: ClassVar[bool] = True


class KeepsANumber(MAML):
    def adapt(self, model, state, support, *, alpha=None, **_):
        return {**super().adapt(model, {k: w for k, w in state.items() if k != "scale"}, support), "scale": 1.0}

    def logits(self, model, state, x):
        return model({name: weight for name, weight in state.items() if name != "scale"}, x)


class Transposes(MAML):
    def logits(self, model, state, x):
        return model(state, x).T


class SeesVmap(MAML):
    def logits(self, model, state, x):
        mapped = torch._C._functorch.is_batchedtensor(x) and not torch.is_grad_enabled()
        return model(state, x) * (2.0 if mapped else 1.0)


class InitByTheClock(MAML):
    def init(self, weights, feature_shape):
        draw = torch.Generator()
        draw.seed()
        return {name: weight + 0.01 * torch.randn(weight.shape, generator=draw) for name, weight in weights.items()}


class UnknownOptimizer(MAML):
    optimizer: str = Field("adamw", description="meta-optimiser")


class EmptyReason(MAML):
    def obstacle(self, setting):
        return "" if setting.way == 2 else None


def unpicklable():
    class Local(MAML):
        pass

    return Local


_TASKS = "gives the same again for the same seed, whatever came before"
_OBJECTIVE = "its objective gives a finite loss for each task"
_SLOPE = "its meta-gradient is the slope of its objective"
_POISONED = "gives support poisoning the true gradient of the queries' loss"
LEARNERS = {
    Probabilities: ("gives logits, not probabilities", "sum to 1"),
    LooksAtMates: ("answers each query by itself, or declares transductive", "when it is asked alone"),
    AddsNoise: ("predicts without noise", "identical calls vary"),
    ChangesSupport: ("leaves weights, states, support and queries as they are", "adapt changed support.x"),
    KeepsCount: (_TASKS, "equal calls"),
    OneLoss: (_OBJECTIVE, r"the shape \(\) for 3 tasks"),
    ComparesTasks: ("its objective depends on each task by itself", "with the other tasks"),
    CutsTheSupportOff: (_POISONED, "no gradient in the support images.*gradient_step, or do not detach"),
    HalvesTheSlope: (_POISONED, "the queries' loss rises by .* by its gradient"),
    LearnsNothing: ("meta-training changes θ, and keeps it finite", "a loss that does not depend on θ"),
    AsksForAnAttack: (_OBJECTIVE, r"define training_attack\(self\)"),
    NamesNobody: ("names only plugins that there are", "unknown attack 'fgms': did you mean 'fgsm'"),
    UndeclaredPrototypes: ("predicts from θ alone, or declares theta_predicts = False", "declare theta_predicts"),
    KeepsANumber: ("keeps its states in tensors", "1.0, of type float"),
    Transposes: ("gives finite logits in the shape [n, way]", r"logits returned \(5, 10\) for 10 queries"),
    SeesVmap: ("predicts the same under vmap, or is looped over", "away from the loop's"),
    InitByTheClock: ("gives the same θ from the same seed", "not from one that the clock seeds"),
    UnknownOptimizer: (_DECLARES, "optimizer = 'adamw'; expected 'adam' or 'sgd'"),
    EmptyReason: ("gives reasons, outputs and inner steps as the contract has them", "returned ''"),
    unpicklable(): ("can be pickled", "Local"),
}


class Net(Backbone):
    """A small network: what the offenders are made of."""

    name = "offender"

    def middle(self):
        return nn.Tanh()

    def build(self, shape, outputs):
        layers = [nn.Conv2d(shape[0], 4, 3, 2), self.middle(), nn.AdaptiveAvgPool2d(3), nn.Flatten()]
        return with_head(nn.Sequential(*layers), (4, 3, 3), outputs)

    def obstacle(self, setting):
        return None if len(setting.shape) == 3 else "it needs images"


class SeesMates(Net):
    def middle(self):
        return BatchStatistics(4)


class TorchsBatchNorm(Net):
    transductive: ClassVar[bool] = True

    def middle(self):
        return nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh())


class RunningStatistics(Net):
    def middle(self):
        return nn.BatchNorm2d(4)


class Noise(nn.Module):
    def forward(self, x):
        return x.tanh() + 0.1 * torch.randn_like(x)


class Noisy(Net):
    def middle(self):
        return Noise()


class Branch(nn.Module):
    def forward(self, x):
        return x.tanh() if x.sum().item() > 0 else x.sin()


class Branches(Net):
    transductive: ClassVar[bool] = True

    def middle(self):
        return Branch()


class NumpyWeights(Net):
    def build(self, shape, outputs):
        module = super().build(shape, outputs)
        with torch.no_grad():
            module[0].bias.copy_(torch.from_numpy(np.random.normal(size=4)))
        return module


class NoFeatures(Net):
    def build(self, shape, outputs):
        return super().build(shape, 5)


class NoNorm(Net):
    norm_layer: ClassVar[Any] = None


PROJECT = Path(__file__).parents[2] / "pyproject.toml"


class ReadsAFile(Net):
    path: str = Field(str(PROJECT), description="a file")

    def build(self, shape, outputs):
        assert Path(self.path).read_text(encoding="utf-8")
        return super().build(shape, outputs)


class NamesItsFile(ReadsAFile):
    """Reads a file that an option names."""

    path: File = Field(PROJECT, description="a file")


_QUIET = "answers alike when it is asked again, in evaluation mode"
_VMAP = "has the same meta-gradient under vmap as in a loop"
BACKBONES = {
    SeesMates: ("answers each image by itself, or declares transductive", "when it is asked alone"),
    TorchsBatchNorm: (_VMAP, "another second-order gradient"),
    Branches: (_VMAP, "branches on values"),
    RunningStatistics: ("keeps no state between calls", "track_running_stats=False"),
    Noisy: (_QUIET, "identical calls vary"),
    NumpyWeights: ("builds the same network from the same seed of torch", "from one seed differ"),
    NoFeatures: ("builds a network of so many outputs, or of its features", r"outputs=1, .* gave \(10, 5\)"),
    ReadsAFile: ("reads no file but those that its options name", "it read .*pyproject.toml, which no option names"),
    NoNorm: (_DECLARES, "norm_layer = None; expected a valid string"),
}


class Dots(Dataset):
    """Random dots: what the offenders are made of."""

    name = "offender"
    bank: ClassVar[Any] = ImageBank

    def names(self, part):
        return [f"{part}-{number}" for number in range(6)]

    def fingerprint(self, part):
        return f"dots-{part}"

    def load(self, root):
        def bank(part):
            images = np.random.default_rng(len(part)).integers(0, 256, (36, 1, 8, 8), dtype=np.uint8)
            return self.bank(part, torch.from_numpy(images), [6] * 6, self.names(part), self.fingerprint(part))

        return Splits(*map(bank, ("train", "validation", "test")))


class SharesClasses(Dots):
    def names(self, part):
        return [f"dot-{number}" for number in range(6)]


class ClockBank(ImageBank):
    def sample(self, seeds, way, shot, query, tasks_per_seed=1):
        return super().sample([seed + int(torch.randint(1000, ())) for seed in seeds], way, shot, query, tasks_per_seed)


class DrawsGlobally(Dots):
    bank = ClockBank


class BytesBank(ImageBank):
    def sample(self, seeds, way, shot, query, tasks_per_seed=1):
        tasks = super().sample(seeds, way, shot, query, tasks_per_seed)
        return TaskBatch(*(Batch(batch.x * 255, batch.y) for batch in tasks))


class SortedBank(ImageBank):
    def sample(self, seeds, way, shot, query, tasks_per_seed=1):
        tasks = super().sample(seeds, way, shot, query, tasks_per_seed)
        order = tasks.query.y.argsort(1)
        x = torch.stack([x[places] for x, places in zip(tasks.query.x, order, strict=True)])
        return TaskBatch(tasks.support, Batch(x, tasks.query.y.gather(1, order)))


class SortsQueries(Dots):
    bank = SortedBank


class GivesBytes(Dots):
    bank = BytesBank


class LaxBank(ImageBank):
    def check(self, way, shot, query):
        if min(way, shot, query) < 1:
            raise DataError("at least one of each")


class RefusesNothing(Dots):
    bank = LaxBank


class MovingBank(ImageBank):
    def to(self, device):
        return ImageBank(self.name, self.images.flip(0), self.counts.tolist(), self.classes, self.fingerprint)


class MovesData(Dots):
    bank = MovingBank


class ChangingFingerprint(Dots):
    def fingerprint(self, part):
        return f"{part}-{time.monotonic_ns()}"


class UnknownBackbone(Dots):
    backbone = "conv5"


DATASETS = {
    SharesClasses: ("its splits share no class", "'dot-0' is both"),
    DrawsGlobally: ("draws the same tasks from the same seeds, and other ones from others", "two different tasks"),
    GivesBytes: ("gives images in [0, 1] and labels below the way, in the shapes of the contract", r"lie in \[.*25"),
    SortsQueries: (
        "gives queries in an order that does not tell their class",
        r"of 30 tasks .* \[0, 1",
    ),
    RefusesNothing: ("refuses tasks that it cannot give, with DataError", "way=10000000.* refused nothing"),
    MovesData: ("is the same on another device", "other tasks"),
    ChangingFingerprint: ("has a fingerprint that only other data change", "loaded twice"),
    UnknownBackbone: ("names a backbone that there is", "unknown backbone 'conv5'"),
}
OFFENDERS = {**ATTACKS, **LEARNERS, **BACKBONES, **DATASETS}


@pytest.mark.parametrize("offender", OFFENDERS, ids=lambda cls: cls.__name__)
def test_who_breaks_one_clause_is_told_which_and_no_other(offender):
    clause, seen = OFFENDERS[offender]
    offender.__doc__ = "It has a summary."
    with pytest.raises(ContractError, match=seen) as caught:
        verify(offender(), registry=FOUND)
    assert len(caught.value.broken) == 1
    assert caught.value.broken[0].startswith(f"{clause}: ")
    assert "To do: " in str(caught.value)


@pytest.mark.parametrize("good", [Signed, Net, NamesItsFile, Dots], ids=lambda cls: cls.__name__)
def test_what_the_offenders_are_made_of_is_in_order(good):
    verify(good, registry=FOUND)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (16,)], ids=str)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0), ("l0", 5.0)])
def test_the_noise_that_attacks_are_held_against_is_of_their_size(norm, eps, shape):
    x, threat = torch.full((2, 3, *shape), 0.5), ThreatModel(norm, eps)
    noisy = noise(x, threat, len(shape), seed=0)
    threat.verify("noise", noisy, x, len(shape))
    torch.testing.assert_close(
        threat.distance(noisy, x, len(shape)), torch.full((2, 3), eps, dtype=torch.float64), rtol=1e-4, atol=0
    )


def test_margins_are_of_the_right_answer_over_the_best_other():
    logits = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]])
    assert torch.equal(margin(logits, torch.tensor([[0, 2]])), torch.tensor([[1.0, -4.0]]))


def test_several_broken_clauses_are_told_in_one_error():
    class Both(Exceeds, Shouts):
        """Breaks two."""

    with pytest.raises(ContractError, match=r"attack 'OFFENDER' breaks 2 of \d+ clauses:\n- .*\n- ") as caught:
        verify(Both(), registry=FOUND)
    assert len(caught.value.broken) == 2


def test_a_check_tells_its_own_clause_only_and_reads_as_one():
    checks = {str(check): check for check in checks_of(Exceeds, registry=FOUND)}
    checks[_IMAGES]()
    with pytest.raises(ContractError, match="attack 'offender' breaks its contract:\n- stays within eps"):
        checks[_INSIDE]()


def test_a_detached_inner_gradient_breaks_meta_training_and_poisoning():
    with pytest.raises(ContractError, match=r"objective rises by .* by its gradient") as caught:
        verify(Detaches(), registry=FOUND)
    assert [told.split(": ")[0] for told in caught.value.broken] == [_SLOPE, _POISONED]


def test_first_order_on_purpose_can_be_left_out():
    verify(Detaches(), registry=FOUND, leave_out=[_SLOPE, _POISONED])
    with pytest.raises(BenchError, match="unknown clause to leave out 'slope'"):
        verify(Detaches(), registry=FOUND, leave_out=["slope"])


def test_what_is_no_plugin_is_refused():
    class Abstract(Attack):
        """Defines nothing."""

        name = "abstract"

    class Demanding(Signed):
        """Has no default."""

        tries: int = Field(description="draws")

    for given, told in (
        (42, "invalid 42: expected"),
        (Abstract, "Abstract cannot be"),
        (Demanding, "default, or hand"),
    ):
        with pytest.raises(BenchError, match=told):
            checks_of(given, registry=FOUND)


def test_the_documented_test_is_one(monkeypatch):
    """The block of docs/plugins.md, on the example that it names."""
    text = (EXAMPLES.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    block = next(block for block in text.split("```python\n") if "checks_of" in block).split("```")[0]
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names: dict[str, Any] = {}
    exec(block, names)  # ours
    parametrize = names["test_contract"].pytestmark[0]
    assert {"stays within eps and the pixel range", _ALONE} <= {str(check) for check in parametrize.args[1]}
    for check in parametrize.args[1]:
        names["test_contract"](check)


def test_it_needs_no_pytest_and_leaves_the_global_generators_alone():
    code = (
        "import sys, torch; from robustbench_meta.testing import verify; "
        "from robustbench_meta.plugins.attacks.fgsm import FGSM; "
        "torch.manual_seed(5); before = torch.get_rng_state(); verify(FGSM); "
        "assert torch.equal(before, torch.get_rng_state()); assert 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
