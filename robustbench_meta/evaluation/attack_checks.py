"""The self-test of attacks: do they work on a model that defends itself by nothing?"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from robustbench_meta.contracts.attack import margin
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import TaskBatch
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.attacked_model import AttackedModel
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.network import Network
from robustbench_meta.engine.query_counter import CountingModel, QueryCount
from robustbench_meta.experiment.scenario import AttackAtEps

SELF_TESTED = 16
"""On how many of the test episodes, the first ones, an attack must show an effect on an undefended model."""


def self_test(engine: Engine, at_eps: AttackAtEps, tasks: TaskBatch) -> Tensor:
    """By how much the attack lowers the margin of the right class on an undefended model: a mean a task [tasks].

    Of noise, which asks the model nothing and need not lower it: how much it changes a pixel.
    """
    model = undefended(engine, tasks)
    x, y = tasks.query
    effort = QueryCount()
    found = engine.attacked(CountingModel(model, effort), tasks.query, guarded(at_eps.attack, at_eps.threat), "query").x
    if effort.forward == 0:
        return (found - x).abs().flatten(1).mean(1)
    return (margin(model(x), y) - margin(model(found), y)).mean(-1)


def undefended(engine: Engine, tasks: TaskBatch) -> AttackedModel:
    """Logits −‖x − c_k‖² to the mean support image of each class, in pixels, and cross-entropy, whatever the data.

    A class without any support image, which the coin of `toy` may leave, has the image of zeros.
    """
    support, way = tasks.support, engine.network.way
    member = torch.nn.functional.one_hot(support.y, way).to(support.x.dtype)
    means = torch.einsum("tnk,tnd->tkd", member, support.x.flatten(2)) / member.sum(1)[..., None].clamp_min(1)
    network = Network(engine.network.module, "cross_entropy", way)
    plain = replace(engine, network=network, transductive=False, plan=Plan("vmap", "vmap"), judged=QueryMetrics())
    return AttackedModel(plain, State(means, 0, _distances))


def _distances(means: Tensor, x: Tensor) -> Tensor:
    """−‖x − c‖²/√d without what all classes share, 2x·c − ‖c‖², of one task: linear in the image."""
    flat = x.flatten(1)
    return (2 * flat @ means.transpose(-1, -2) - means.square().sum(-1)[..., None, :]) / math.sqrt(flat.shape[-1])
