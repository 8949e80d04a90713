"""Small real tasks and engines in which plugins are checked, and the comparisons that several contracts make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustbench_meta.contracts import AnyLearner, LossName, Setting, Weights
from robustbench_meta.contracts.state import feature_shape, trainable
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.network import Network
from robustbench_meta.options import parse_choice, parse_eps
from robustbench_meta.registry.registry import Registry
from robustbench_meta.runtime.seeds import seeded

LOOP = Plan("loop", "loop", 4)
TASKS, SHOT, QUERY = 3, 2, 2
BASE_CLASSES = 12
_SHAPES: tuple[tuple[int, ...], ...] = ((1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (16,))
_LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")
_TRAINING_EPS: dict[Norm, float] = {"linf": 0.05, "l2": 0.5, "l1": 4.0, "l0": 4.0, "severity": 3.0}


def settings(*, transductive: bool = False) -> Iterator[Setting]:
    """Settings to work in, the likeliest first."""
    for loss in _LOSSES:
        for shape in _SHAPES:
            for way in (5, 2):
                yield Setting(shape, way, SHOT, QUERY, loss, transductive, BASE_CLASSES)


def all_settings() -> Iterator[Setting]:
    """Those of inductive and of transductive models."""
    yield from settings()
    yield from settings(transductive=True)


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

    def make(kind: str, text: str) -> tuple[Any, Any]:
        choice = parse_choice(text, ";" if ";" in text or kind == "attack" else ",")
        options = dict(choice.options)
        eps = options.pop("eps", None) if kind == "attack" else None
        return registry.make(kind, choice.name, options), eps

    net, _ = make("backbone", backbone)
    with seeded(1):
        module = net.build(setting.shape, learner.outputs(setting)).to(dtype)
    engine = Engine(
        learner, Network(module, setting.loss, setting.way), event_ndim=len(setting.shape),
        transductive=net.transductive or learner.transductive, plan=plan,
    )  # fmt: skip
    training_attack, surrogate_backbone = learner.training_attack(), learner.surrogate_backbone()
    if training_attack is not None:
        text, eps = training_attack
        attack, typed = make("attack", text)
        default = _TRAINING_EPS[attack.norm] if typed is None else parse_eps(typed).value
        engine.attack = guarded(attack, ThreatModel(attack.norm, default if eps is None else eps))
    if surrogate_backbone is not None:
        surrogate, _ = make("backbone", surrogate_backbone)
        with seeded(2):
            separate = surrogate.build(setting.shape, setting.way).to(dtype)
        engine.surrogate_network = Network(separate, setting.loss, setting.way)
        engine.surrogate_weights = {name: weight.detach() for name, weight in separate.named_parameters()}
    engine.set_mode(training=False)
    with seeded(3):
        weights = learner.init(trainable(module), feature_shape(module))
    return engine, {name: weight.detach().to(dtype).requires_grad_() for name, weight in weights.items()}


def equal_calls(call: Callable[[], Tensor]) -> float:
    """How far apart two identical calls are, whatever the seed of the global generators."""
    results = []
    for seed in (0, 1):
        with seeded(seed):
            results.append(call())
    return apart(*results)


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected number; NaN counts as infinitely far."""
    if found.numel() == 0:
        return 0.0
    share = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    return math.inf if math.isnan(share) else share
