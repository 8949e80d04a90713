"""The contract of backbones."""

from __future__ import annotations

import random as python_random
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_meta.contracts import Backbone, Setting
from robustbench_meta.contracts.state import trainable
from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.network import Network
from robustbench_meta.engine.preflight import may_be_vmapped
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.testing.contract import (
    DECLARES,
    Broken,
    Contract,
    as_broken,
    clause,
    expect,
    first_accepted,
    reason_or_none,
)
from robustbench_meta.testing.fixtures import LOOP, settings, tasks_of
from robustbench_meta.testing.stability import expect_no_mates, expect_quiet

_BUILDS = "builds a network of so many outputs, or of its features"
_QUIET = "answers alike when it is asked again, in evaluation mode"


class BackboneContract(Contract):
    """Of a backbone: a network as a pure function of its weights."""

    kind = "backbone"
    plugin: Backbone

    @cached_property
    def setting(self) -> Setting:
        """The first setting that the backbone does not refuse."""
        return first_accepted(self.plugin.obstacle, transductive=self.plugin.transductive)

    def module(self, outputs: int | None = 5, seed: int = 0) -> nn.Module:
        """A freshly built network."""
        seed_all(seed)
        return self.plugin.build(self.setting.shape, outputs)

    def answers_of(self, module: nn.Module, x: Tensor, support: Tensor) -> Tensor:
        """Outputs; beside a support set where the network reads one."""
        given = (x, support) if getattr(module, "reads_support", False) else (x,)
        with torch.no_grad():
            answers: Tensor = module(*given)
        return answers

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Queries and support images of one task."""
        tasks = tasks_of(self.setting)
        return tasks.query.x[0], tasks.support.x[0]

    @clause("gives reasons and its norm as the contract has them", after=(DECLARES,))
    def says(self) -> None:
        """The answers of `obstacle`, `norm_layer`, `transductive`."""
        for setting in settings():
            reason_or_none(self.plugin.obstacle(setting), f"obstacle({setting})")
        expect(bool(self.plugin.norm_layer), "norm_layer is empty", "a word for the leaderboard's column")

    @clause(_BUILDS)
    def builds(self) -> None:
        """In every shape that it does not refuse."""
        for setting in settings():
            if setting.way != 5 or setting.loss != "cross_entropy" or self.plugin.obstacle(setting) is not None:
                continue
            x = tasks_of(setting).query.x[0]
            for outputs in (5, 1, None):
                where = f"for examples of shape {setting.shape} and outputs={outputs}, "
                try:
                    module = self.plugin.build(setting.shape, outputs)
                    expect(isinstance(module, nn.Module), f"{where}build returned {module!r}", "return an nn.Module")
                    found = self.answers_of(module.eval(), x, x)
                except Broken:
                    raise
                except Exception as error:
                    raise as_broken(error, where) from error
                fits = found.dim() == 2 and len(found) == len(x) and outputs in (None, found.shape[-1])
                expected = f"[{len(x)}, {'features' if outputs is None else outputs}]"
                expect(fits, f"{where}{len(x)} examples gave {tuple(found.shape)}", f"give {expected}")
                expect(bool(found.isfinite().all()), f"{where}outputs are not finite", "look at the initialisation")
        expect(self.setting.way == 5, "it refuses 5-way tasks", "an architecture should not depend on the way")

    @clause("builds the same network from the same seed of torch", after=(_BUILDS,))
    def builds_again(self) -> None:
        """And draws from nothing else."""
        first = self.module().state_dict()
        seed_all(0)
        np.random.seed(1)
        python_random.seed(1)
        second = self.plugin.build(self.setting.shape, 5).state_dict()
        same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        expect(same, "two networks from one seed differ", "draw initial weights from torch's global generator only")

    @clause("keeps no state between calls", after=(_BUILDS,))
    def keeps_no_state(self) -> None:
        """No running statistics, in training or evaluation mode."""
        module, (x, support) = self.module(), self.images
        for training in (True, False):
            before = {name: value.clone() for name, value in module.state_dict().items()}
            self.answers_of(module.train(training), x, support)
            changed = [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]
            expect(not changed, f"a call changed {', '.join(changed)}", "use track_running_stats=False")

    @clause(_QUIET, after=(_BUILDS, "keeps no state between calls"))
    def is_quiet(self) -> None:
        """Noise belongs to training mode."""
        module = self.module().eval()
        remedy = "draw nothing in evaluation mode (nn.Dropout does so)"
        expect_quiet(lambda: self.answers_of(module, *self.images), "outputs", remedy)

    @clause("answers each image by itself, or declares transductive", after=(_QUIET,))
    def minds_each_image(self) -> None:
        """Alone, in another order, and with other neighbours; beside one support set where it reads one."""
        if self.plugin.transductive:
            return
        module, (x, support) = self.module().eval(), self.images
        remedy = "normalise each example by itself, or declare `transductive`"
        expect_no_mates(lambda x: self.answers_of(module, x[0], support)[None], x[None], "an image's outputs", remedy)

    @clause("has the same meta-gradient under vmap as in a loop", after=(_QUIET,))
    def maps(self) -> None:
        """Of second-order MAML. Where it has not, the engine falls back to the loop: right, and slower."""
        learner = self.registry.make("learner", "maml", {})
        module = self.module()
        engine = Engine(
            learner, Network(module, "cross_entropy", 5), event=len(self.setting.shape),
            transductive=self.plugin.transductive, plan=LOOP, training=True,
        )  # fmt: skip
        weights: dict[str, Any] = {name: weight.requires_grad_() for name, weight in trainable(module).items()}
        expect(bool(weights), "it has no weights to learn", "give it parameters")
        tasks = tasks_of(self.setting._replace(loss="cross_entropy"), tasks=2)
        engine.meta_gradients(weights, tasks, [0, 0])  # what the loop cannot do is an error of its own
        expect(
            bool(may_be_vmapped(engine, weights, tasks)),
            "vmap fails, or gives another second-order gradient than the plain loop",
            "use plain operations instead of torch's batch and instance norm, and no .item() or branches on values; "
            "the engine will loop over it otherwise, so leave this clause out if that is fast enough",
        )
