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
from robustbench_meta.engine.batch_dependence import MATES, influence_of_mates
from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.network import Network
from robustbench_meta.engine.preflight import may_be_vmapped
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.testing.contract import Contract, clause, expect, expect_reasons, first_accepted, works
from robustbench_meta.testing.fixtures import LOOP, equal_calls, settings, tasks_of


class BackboneContract(Contract):
    """Of a backbone: a network as a pure function of its weights."""

    kind = "backbone"
    plugin: Backbone

    @cached_property
    def setting(self) -> Setting:
        """The first setting that the backbone does not refuse."""
        return first_accepted(self.plugin.obstacle, transductive=self.plugin.transductive)

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Queries and support images of one task."""
        tasks = tasks_of(self.setting)
        return tasks.query.x[0], tasks.support.x[0]

    def build(self) -> nn.Module:
        """A network of five outputs, built from seed 0."""
        seed_all(0)
        return self.plugin.build(self.setting.shape, 5)

    def answers(self, module: nn.Module, x: Tensor, support: Tensor) -> Tensor:
        """Outputs; beside a support set where the network reads one."""
        with torch.no_grad():
            outputs: Tensor = module(x, support) if getattr(module, "reads_support", False) else module(x)
        return outputs

    @clause(after=(Contract.declares,))
    def says(self) -> None:
        """Gives reasons and its norm as the contract has them"""
        expect_reasons(self.plugin.obstacle, settings())
        expect(bool(self.plugin.norm_layer), "norm_layer is empty", "a word for the leaderboard's column")

    @clause()
    def builds(self) -> None:
        """Builds a network of so many outputs, or of its features"""
        for setting in settings():
            if setting.way != 5 or setting.loss != "cross_entropy" or self.plugin.obstacle(setting) is not None:
                continue
            x = tasks_of(setting).query.x[0]
            for outputs in (5, 1, None):
                where = f"for examples of shape {setting.shape} and outputs={outputs}, "
                with works(where):
                    module = self.plugin.build(setting.shape, outputs)
                    expect(isinstance(module, nn.Module), f"{where}build returned {module!r}", "return an nn.Module")
                    found = self.answers(module.eval(), x, x)
                expect(
                    outputs is None or hasattr(module, "head"), f"{where}the module has no submodule `head`",
                    "call the last layer, which gives the outputs, `head`: learners tell it from the others",
                )  # fmt: skip
                fits = found.dim() == 2 and len(found) == len(x) and outputs in (None, found.shape[-1])
                expected = f"[{len(x)}, {'features' if outputs is None else outputs}]"
                expect(fits, f"{where}{len(x)} examples gave {tuple(found.shape)}", f"give {expected}")
                expect(bool(found.isfinite().all()), f"{where}outputs are not finite", "look at the initialisation")
        expect(self.setting.way == 5, "it refuses 5-way tasks", "an architecture should not depend on the way")

    @clause(after=(builds,))
    def builds_again(self) -> None:
        """Builds the same network from the same seed of torch"""
        first = self.build().state_dict()
        seed_all(0)
        np.random.seed(1)
        python_random.seed(1)
        second = self.plugin.build(self.setting.shape, 5).state_dict()
        same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        expect(same, "two networks from one seed differ", "draw initial weights from torch's global generator only")

    @clause(after=(builds,))
    def keeps_no_state(self) -> None:
        """Keeps no state between calls"""
        module, (x, support) = self.build(), self.images
        for training in (True, False):
            before = {name: value.clone() for name, value in module.state_dict().items()}
            self.answers(module.train(training), x, support)
            changed = [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]
            expect(not changed, f"a call changed {', '.join(changed)}", "use track_running_stats=False")

    @clause(after=(builds, keeps_no_state))
    def is_quiet(self) -> None:
        """Answers alike when it is asked again, in evaluation mode"""
        module = self.build().eval()
        share = equal_calls(lambda: self.answers(module, *self.images))
        remedy = "draw nothing in evaluation mode (nn.Dropout does so)"
        expect(share <= 1e-6, f"outputs of identical calls vary by {share:.2g} of their size", remedy)

    @clause(after=(is_quiet,))
    def minds_each_image(self) -> None:
        """Answers each image by itself, or declares transductive"""
        if self.plugin.transductive:
            return
        module, (x, support) = self.build().eval(), self.images

        def outputs(x: Tensor) -> Tensor:
            return self.answers(module, x[0], support)[None]

        for how, share in influence_of_mates(outputs, x[None], outputs(x[None])).items():
            remedy = "normalise each example by itself, or declare `transductive`"
            expect(share <= MATES["float32"], f"an image's outputs change by {share:.2g} of their size {how}", remedy)

    @clause(after=(is_quiet,))
    def maps(self) -> None:
        """Has the same meta-gradient under vmap as in a loop"""
        module = self.build()
        engine = Engine(
            self.registry.make("learner", "maml", {}), Network(module, "cross_entropy", 5),
            event_ndim=len(self.setting.shape), transductive=self.plugin.transductive, plan=LOOP, training=True,
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
