"""The contract of attacks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from robustbench_meta.contracts import Attack, Setting
from robustbench_meta.contracts.attack import margin
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import TOLERANCE, Norm, ThreatModel
from robustbench_meta.engine.attack_harness import arm
from robustbench_meta.engine.attacked_model import AttackedModel, PoisonedAdaptation, Target
from robustbench_meta.engine.engine import Engine
from robustbench_meta.options import parse_eps
from robustbench_meta.testing.attack_recorder import SEEDS, Attempt, RecordingModel, attempt
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
from robustbench_meta.testing.fixtures import SHOT, engine_of, settings, tasks_of
from robustbench_meta.testing.noise import noise

_RUNS = "works in the settings that it does not refuse"
_RETURNS = "returns finite images in the shape and type of those that it is given"
_INSIDE = "stays within eps and the pixel range"
_TOUCHES = "leaves images, labels, weights and modes as they are"
_SEED = "leaves torch's seed alone"
_REPEATS = "gives the same images again when it is given the same seeds"


class AttackContract(Contract):
    """Of an attack: it proposes images inside its threat model, and leaves everything else as it is."""

    kind = "attack"
    plugin: Attack

    # ---- the worlds that it is tried in

    @cached_property
    def setting(self) -> Setting:
        """The first setting that the attack does not refuse."""
        return first_accepted(self.plugin.obstacle)

    def victim(self, setting: Setting, tasks: TaskBatch) -> AttackedModel:
        """A nearest centroid in pixel space (a linear model); for a squared loss a linear model after a MAML step."""
        engine, state = self._adapted(setting, tasks)
        return AttackedModel(engine, state, tasks.query.y.shape[1])

    def _adapted(self, setting: Setting, tasks: TaskBatch) -> tuple[Engine, State]:
        name = "protonet" if setting.loss == "cross_entropy" else "maml"
        engine, theta = engine_of(self.registry.make("learner", name, {}), setting, self.registry)
        with torch.no_grad():
            return engine, engine.adapt(engine.theta(theta), tasks.support)

    def eps(self, norm: Norm, setting: Setting) -> list[float]:
        """None, a tiny one, one that can fool, and the whole range: those that the attack does not refuse."""
        pixels, places = math.prod(setting.shape), math.prod(setting.shape[-2:])
        wider = math.sqrt(pixels / 64)
        scales: dict[Norm, tuple[float, ...]] = {
            "linf": (0.0, 1e-4, 0.2 / wider, 1.0),
            "l2": (0.0, 1e-3, 1.5, math.sqrt(pixels)),
            "l1": (0.0, 1e-2, 10 * wider, float(pixels)),
            "l0": (0.0, 1.0, float(round(min(24 * wider, 0.75 * places))), float(places)),
        }
        return [eps for eps in scales[norm] if self.plugin.eps_obstacle(eps) is None]

    @cached_property
    def middle(self) -> ThreatModel:
        """The threat model in which a nearest centroid can be fooled."""
        allowed = self.eps(self.plugin.norm, self.setting)
        expect(bool(allowed), "it refuses every eps", "let `eps_obstacle` return None where it can work")
        return ThreatModel(self.plugin.norm, allowed[-2] if len(allowed) > 1 else allowed[0])

    @cached_property
    def trials(self) -> list[Attempt]:
        """On grey and on black-and-white images, at every ε; and on a model without any slope."""
        found = []
        for black_and_white, eps in product((False, True), self.eps(self.plugin.norm, self.setting)):
            tasks = tasks_of(self.setting, black_and_white=black_and_white)
            look = "black-and-white" if black_and_white else "grey"
            threat = ThreatModel(self.plugin.norm, eps)
            where = f"on {look} images at eps {eps:.4g}, "
            found.append(attempt(self.plugin, self.victim(self.setting, tasks), tasks.query, threat, where))
        tasks = tasks_of(self.setting)
        engine, weights = engine_of(self.registry.make("learner", "maml", {}), self.setting, self.registry)
        flat = AttackedModel(engine, engine.theta({name: torch.zeros_like(weight) for name, weight in weights.items()}))
        found.append(attempt(self.plugin, flat, tasks.query, self.middle, "where the gradient is zero everywhere, "))
        return found

    # ---- what it says

    @clause("gives reasons, threat models and stronger versions of itself as the contract has them", after=(DECLARES,))
    def answers(self) -> None:
        """The answers of `obstacle`, `eps_obstacle`, `default_eps`, `stronger`."""
        attack = self.plugin
        for transductive in (False, True):
            for setting in settings(transductive=transductive):
                reason_or_none(attack.obstacle(setting), f"obstacle({setting})")
        for eps in (0.0, 0.1, 1.0, 8.0, 1000.0):
            reason_or_none(attack.eps_obstacle(eps), f"eps_obstacle({eps})")
        default = attack.default_eps()
        if default is not None:
            refused = attack.eps_obstacle(parse_eps(default).value)
            expect(
                refused is None, f"its default_eps {default} is refused: {refused}", "name one that it can work with"
            )
        stronger = attack.stronger()
        if stronger is not None:
            expect(isinstance(stronger, Attack), f"stronger() returned {stronger!r}", "return an Attack, or None")
            expect(stronger.norm == attack.norm, f"stronger() works in {stronger.norm}", f"stay in {attack.norm}")
            expect(stronger != attack, "stronger() returned the same attack", "take more steps or restarts, or None")

    # ---- what it does

    @clause(_RUNS)
    def runs(self) -> None:
        """2-way and 5-way, either loss, one image a class; every ε; black and white; a model without slope."""
        for trial in [*self.trials, *self._elsewhere()]:
            if trial.error is not None:
                raise as_broken(trial.error, trial.where)

    def _elsewhere(self) -> Iterator[Attempt]:
        first = self.setting
        for way, loss in product((2, 5), ("cross_entropy", "squared")):
            setting = Setting(first.shape, way, SHOT, 1, loss, transductive=False)  # type: ignore[arg-type]  # literals in a table
            if setting[:5] != first[:5] and self.plugin.obstacle(setting) is None:
                tasks = tasks_of(setting, tasks=2)
                where = f"{way}-way with the {loss} loss and one query a class, "
                yield attempt(self.plugin, self.victim(setting, tasks), tasks.query, self.middle, where)

    @clause(_RETURNS, after=(_RUNS,))
    def returns_images(self) -> None:
        """No None, no other shape, no NaN."""
        for trial in self.trials:
            found, x = trial.found, trial.x
            told = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            hint = ": is a `return` missing?" if found is None else ""
            expect(
                trial.images is not None,
                f"{trial.where}it returned {told} for {tuple(x.shape)} {x.dtype}",
                f"return adversarial images in the shape and type of x{hint}",
            )
            assert trial.images is not None
            bad = int((~trial.images.isfinite()).sum())
            expect(bad == 0, f"{trial.where}{bad} pixels are NaN or infinite", "guard divisions, roots and logarithms")

    @clause(_INSIDE, after=(_RUNS,))
    def stays_inside(self) -> None:
        """At every ε, on grey and black-and-white images."""
        for trial in self.trials:
            if trial.images is not None and trial.images.isfinite().all():
                self._inside(trial)

    def _inside(self, trial: Attempt) -> None:
        assert trial.images is not None
        threat, where = trial.threat, trial.where
        over_eps, over_range = threat.excess(trial.images, trial.x, trial.event).tolist()
        expect(
            over_eps <= TOLERANCE,
            f"{where}an image is {threat.eps + over_eps:.6g} away in {threat.norm}, {over_eps:.3g} more than eps",
            "project onto the ball around x as the last thing",
        )
        expect(
            over_range <= TOLERANCE,
            f"{where}pixels leave [{threat.low:g}, {threat.high:g}] by {over_range:.3g}",
            "return threat.clip(…)",
        )

    @clause(_TOUCHES, after=(_RUNS,))
    def touches_nothing(self) -> None:
        """It works on copies."""
        for trial in self.trials:
            touched = ", ".join(trial.touched)
            expect(not trial.touched, f"{trial.where}it changed {touched}", "work on copies; leave model.train() alone")

    @clause(_SEED, after=(_RUNS,))
    def keeps_the_seed(self) -> None:
        """As the harness demands."""
        reseeded = any(trial.reseeded for trial in self.trials)
        expect(
            not reseeded, "it reseeded torch's generator",
            "draw from `random`; around code that seeds itself: torch.random.fork_rng() and random.seed()",
        )  # fmt: skip

    @clause(_REPEATS, after=(_RUNS, _RETURNS))
    def repeats(self) -> None:
        """All randomness comes from `random`; nothing is kept from call to call."""
        tasks = tasks_of(self.setting)
        victim = self.victim(self.setting, tasks)
        first, second = (self._images(victim, tasks.query) for _ in range(2))
        expect(
            torch.equal(first, second), f"{_share(first, second):.1%} of the pixels differed between two equal calls",
            "draw from `random` only (random.uniform, random.normal, random.seed), and keep nothing from call to call",
        )  # fmt: skip

    @clause("treats a task alike alone and among others", after=(_REPEATS,))
    def minds_each_task(self) -> None:
        """What it draws and does for a task depends on this task's seed and images only."""
        tasks = tasks_of(self.setting)
        whole = self._images(self.victim(self.setting, tasks), tasks.query)
        for index in (0, len(SEEDS) - 1):
            one = tasks.part(slice(index, index + 1))
            alone = self._images(self.victim(self.setting, one), one.query, SEEDS[index : index + 1])
            share = _share(alone[0], whole[index])
            expect(
                share <= 0.01, f"{share:.1%} of a task's pixels change when other tasks are attacked with it",
                "let nothing run over the task axis (sums, means, sorting, `if … .any()`), and draw from `random`",
            )  # fmt: skip

    @clause("shows the model whole batches, or declares sub_batches", after=(_RUNS,))
    def shows_whole_batches(self) -> None:
        """A transductive model has no answer for a part of a task's images."""
        if self.plugin.sub_batches or self.plugin.obstacle(self.setting._replace(transductive=True)) is not None:
            return
        tasks = tasks_of(self.setting)
        watched = RecordingModel(self.victim(self.setting, tasks), transductive=True)
        trial = attempt(self.plugin, watched, tasks.query, self.middle)
        if trial.error is not None:
            raise as_broken(trial.error, "with a transductive model, ")
        place = -1 - watched.event
        counts = {shape[place] if len(shape) > watched.event else 0 for shape in watched.shown}
        whole = tasks.query.y.shape[1]
        expect(
            counts <= {whole},
            f"it showed the model {', '.join(map(str, sorted(counts - {whole})))} of a task's {whole} images",
            "always pass all images of a task, or declare `sub_batches`",
        )  # fmt: skip

    @clause("asks for a gradient only if its method says so", after=(_RUNS,))
    def means_its_method(self) -> None:
        """What calls itself black-box or random shall work where a model has no gradient."""
        if self.plugin.how() not in ("black-box", "random") or self.plugin.clean:
            return
        tasks = tasks_of(self.setting)
        blind = RecordingModel(self.victim(self.setting, tasks), gradient=False)
        trial = attempt(self.plugin, blind, tasks.query, self.middle)
        if trial.error is not None:
            where = f"it declares the method '{self.plugin.how()}', and on a model without gradient "
            raise Broken(as_broken(trial.error, where).seen, "ask for no gradient, or declare another `method`")

    @clause("works through the loss alone, if it declares loss_only", after=(_RUNS, _RETURNS, _INSIDE))
    def needs_the_loss_only(self) -> None:
        """On adaptation itself, as support poisoning uses it."""
        if not self.plugin.loss_only or self.plugin.per_task or self.plugin.sub_batches:
            return
        tasks = tasks_of(self.setting)
        engine, theta = engine_of(self.registry.make("learner", "maml", {}), self.setting, self.registry)
        victim = PoisonedAdaptation(engine, engine.theta(theta), tasks.query)
        trial = attempt(self.plugin, victim, tasks.support, self.middle, "on the loss through adaptation, ")
        if trial.error is not None:
            seen = as_broken(trial.error, trial.where).seen
            raise Broken(seen, "ask for `loss` and `fooled` only, or do not declare loss_only")
        expect(trial.images is not None, "it returned other than images", "return what it found, in the shape of x")
        self._inside(trial)

    @clause("begins where perturb_from says, and stays inside", after=(_RUNS, _RETURNS, _INSIDE, _TOUCHES))
    def begins_at_a_start(self) -> None:
        """From what a smaller ε found, as sweeps over ε do."""
        tasks = tasks_of(self.setting)
        threat, x = self.middle, tasks.query.x
        start = noise(x, ThreatModel(threat.norm, threat.eps / 2), self.victim(self.setting, tasks).event, seed=3)
        trial = attempt(
            self.plugin, self.victim(self.setting, tasks), tasks.query, threat, "from a start, ", start=start
        )
        if trial.error is not None:
            raise as_broken(trial.error, trial.where)
        expect(trial.images is not None, "from a start, it returned other than images", "return them in the shape of x")
        expect(not trial.touched, f"from a start, it changed {', '.join(trial.touched)}", "work on copies")
        self._inside(trial)

    @clause("does more to an undefended model than noise of the same size", after=(_RUNS, _RETURNS))
    def has_an_effect(self) -> None:
        """The mean margin of a nearest centroid: correct logit − the largest other."""
        tasks = tasks_of(self.setting)
        victim, (x, y) = self.victim(self.setting, tasks), tasks.query
        found = self._images(victim, tasks.query)
        if self.plugin.clean:
            expect(torch.equal(found, x), "it declares `clean` and changed images", "return x, or do not declare clean")
            return
        if self.plugin.how() == "random":
            expect(not torch.equal(found, x), "it returned the images that it was given", "return what it drew")
            return

        def mean_margin(images: Tensor) -> float:
            with torch.no_grad():
                return float(margin(victim(images), y).mean())

        before, after = mean_margin(x), mean_margin(found)
        noisy = sum(mean_margin(noise(x, self.middle, victim.event, seed)) for seed in range(4)) / 4
        least = min(before, noisy) - 0.02 * abs(before)
        told = f"the mean margin is {before:.3g} on clean images, {noisy:.3g} with noise, {after:.3g} after the attack"
        expect(
            after < least, f"{told} ({self.middle.norm}, eps {self.middle.eps:.3g})",
            "look at the sign of the step and at what is returned; if its options make it weak, give stronger ones",
        )  # fmt: skip

    @clause("passes the harness", after=(_RUNS, _RETURNS, _INSIDE, _TOUCHES, _SEED))
    def passes_the_harness(self) -> None:
        """As runs call it."""
        tasks = tasks_of(self.setting)
        engine, state = self._adapted(self.setting, tasks)
        for eps in self.eps(self.plugin.norm, self.setting):
            bound = arm(self.plugin, ThreatModel(self.plugin.norm, eps))
            engine.attacked(AttackedModel(engine, state, tasks.query.y.shape[1]), tasks.query, bound, "query")

    def _images(self, victim: Target, batch: Batch, seeds: Sequence[int] = SEEDS) -> Tensor:
        trial = attempt(self.plugin, victim, batch, self.middle, seeds=seeds)
        if trial.error is not None:
            raise as_broken(trial.error)
        if trial.images is None:
            raise Broken("it returned other than images", "return them in the shape of x")
        return trial.images


def _share(found: Tensor, expected: Tensor) -> float:
    """The share of pixels that differ."""
    return float(((found - expected).abs() > 1e-5).double().mean())
