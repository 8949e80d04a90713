"""Small exact worlds for the tests: engines on tiny backbones and random tasks, in float64."""

from __future__ import annotations

import torch

from robustbench_meta.contracts import Setting
from robustbench_meta.contracts.state import feature_shape, trainable
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.network import Network

PLANS = [Plan(shared, own, chunk) for shared in ("vmap", "loop") for own in ("vmap", "loop") for chunk in (2, 5)]


def plan_id(plan: Plan) -> str:
    return f"{plan.shared}-{plan.own}-{plan.chunk}"


def random_tasks(tasks=5, way=3, shot=2, query=4, shape=(1, 8, 8), seed=0) -> TaskBatch:
    draw = torch.Generator().manual_seed(seed)

    def batch(each: int) -> Batch:
        x = torch.rand(tasks, way * each, *shape, generator=draw, dtype=torch.float64)
        return Batch(x, torch.arange(way).repeat_interleave(each).expand(tasks, -1))

    return TaskBatch(batch(shot), batch(query))


def make_world(
    registry, learner, backbone, *, loss="cross_entropy", way=3, shape=(1, 8, 8), plan=None, eps=0.05, **options
):
    """An engine and θ (float64, requiring a gradient) with FGSM as the training attack."""
    plugin = registry.make("learner", learner, options)
    name, given = backbone if isinstance(backbone, tuple) else (backbone, {})
    net = registry.make("backbone", name, given)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = net.build(shape, plugin.outputs(Setting(shape, way, 1, 1, loss, False, 9))).double()
        other = registry.make("backbone", "linear", {}).build(shape, way).double()
    engine = Engine(
        plugin,
        Network(module, loss, way),
        event_ndim=len(shape),
        transductive=net.transductive,
        plan=plan or Plan(),
        training=True,
        attack=guarded(registry.make("attack", "fgsm", {}), ThreatModel("linf", eps)),
        surrogate_network=Network(other, loss, way),
        surrogate_weights={key: value.detach() for key, value in other.named_parameters()},
    )
    weights = plugin.init(trainable(module), feature_shape(module))
    return engine, {key: value.double().requires_grad_() for key, value in weights.items()}


def flat(gradients) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])
