"""Small real worlds in which plugins are checked: tasks with a pattern a class, and engines on small networks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from robustbench_meta.contracts import AnyLearner, LossName, Setting, Weights
from robustbench_meta.contracts.state import feature_shape, trainable
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.engine.attack_harness import arm
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.network import Network
from robustbench_meta.options import parse_choice, parse_eps
from robustbench_meta.registry.registry import Registry
from robustbench_meta.runtime.seeds import seeded

LOOP = Plan("loop", "loop", 4)
VMAP = Plan("vmap", "vmap", 4)
TASKS, SHOT, QUERY = 3, 2, 2
BASE_CLASSES = 12
_SHAPES: tuple[tuple[int, ...], ...] = ((1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (16,))
TRAINING_EPS: dict[Norm, float] = {"linf": 0.05, "l2": 0.5, "l1": 4.0, "l0": 4.0}


def settings(*, transductive: bool = False) -> Iterator[Setting]:
    """Settings to work in, the likeliest first."""
    losses: tuple[LossName, ...] = ("cross_entropy", "squared")
    for loss in losses:
        for shape in _SHAPES:
            for way in (5, 2):
                yield Setting(shape, way, SHOT, QUERY, loss, transductive, BASE_CLASSES)


def tasks_of(
    setting: Setting, tasks: int = TASKS, *, seed: int = 0, black_and_white: bool = False,
    dtype: torch.dtype = torch.float32,
) -> TaskBatch:  # fmt: skip
    """Tasks of a random pattern a class, in noise: a nearest centroid has most of them right. Queries are shuffled.

    Patterns are the fainter the more pixels there are, so that classes are as far apart (in L2) in every shape.
    """
    draw = torch.Generator().manual_seed(seed)
    pixels = math.prod(setting.shape)
    height = 0.15 * math.sqrt(64 / pixels)
    patterns = torch.randn(tasks, setting.way, 1, pixels, generator=draw, dtype=torch.float64).sign()

    def batch(each: int) -> Batch:
        noise = torch.randn(tasks, setting.way, each, pixels, generator=draw, dtype=torch.float64)
        x = 0.5 + height * patterns + min(0.1, height) * noise
        x = (x > 0.5).to(x.dtype) if black_and_white else x.clamp(0, 1)
        y = torch.arange(setting.way).repeat_interleave(each).expand(tasks, -1)
        return Batch(x.reshape(tasks, -1, *setting.shape).to(dtype), y.clone())

    support, query = batch(setting.shot), batch(setting.query)
    order = torch.randperm(query.y.shape[1], generator=draw)
    return TaskBatch(support, Batch(query.x[:, order], query.y[:, order]))


def engine_of(
    learner: AnyLearner, setting: Setting, registry: Registry, *, backbone: str = "linear", plan: Plan = LOOP,
    dtype: torch.dtype = torch.float32,
) -> tuple[Engine, Weights]:  # fmt: skip
    """The engine of a learner in evaluation mode, with its training attack and surrogate, and θ freshly initialised.

    Raises:
        BenchError: a name that the learner gives is unknown.
    """
    choice = parse_choice(backbone, ";" if ";" in backbone else ",")
    net = registry.make("backbone", choice.name, dict(choice.options))
    with seeded(1):
        module = net.build(setting.shape, learner.outputs(setting)).to(dtype)
    engine = Engine(
        learner, Network(module, setting.loss, setting.way), event=len(setting.shape),
        transductive=net.transductive or learner.transductive, plan=plan,
    )  # fmt: skip
    attack_wanted, surrogate_wanted = learner.training_attack(), learner.surrogate_backbone()
    if attack_wanted is not None:
        text, eps = attack_wanted
        asked = parse_choice(text, ";")
        options = dict(asked.options)
        own = options.pop("eps", None)
        attack = registry.make("attack", asked.name, options)
        chosen = eps if eps is not None else parse_eps(own).value if own is not None else TRAINING_EPS[attack.norm]
        engine.attack = arm(attack, ThreatModel(attack.norm, chosen))
    if surrogate_wanted is not None:
        asked = parse_choice(surrogate_wanted, ";")
        with seeded(2):
            separate = registry.make("backbone", asked.name, dict(asked.options)).build(setting.shape, setting.way)
        separate = separate.to(dtype)
        engine.surrogate_network = Network(separate, setting.loss, setting.way)
        engine.surrogate_weights = {name: weight.detach() for name, weight in separate.named_parameters()}
    engine.set_mode(training=False)
    with seeded(3):
        weights = learner.init(trainable(module), feature_shape(module))
    return engine, {name: weight.detach().to(dtype).requires_grad_() for name, weight in weights.items()}


def vector(weights: Weights) -> Tensor:
    """All weights, end to end."""
    return torch.cat([weight.detach().flatten() for weight in weights.values()])


def at(point: Tensor, like: Weights) -> Weights:
    """Weights of these names and shapes, from a vector."""
    parts = torch.split(point, [weight.numel() for weight in like.values()])
    return {name: part.view_as(like[name]) for name, part in zip(like, parts, strict=True)}


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected number; NaN counts as infinitely far."""
    if found.numel() == 0:
        return 0.0
    share = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    return math.inf if math.isnan(share) else share
