"""The contract of attacks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from robustbench_meta.contracts import Attack, Random, Setting, Victim
from robustbench_meta.contracts.attack import margin
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch
from robustbench_meta.contracts.threat_model import TOLERANCE, Norm, ThreatModel
from robustbench_meta.engine.attack_harness import guarded
from robustbench_meta.engine.attacked_model import AttackedModel, PoisonedAdaptation, Target
from robustbench_meta.engine.engine import Engine
from robustbench_meta.engine.query_counter import CountingModel, QueryCount
from robustbench_meta.options import parse_eps
from robustbench_meta.runtime.seeds import seed_all
from robustbench_meta.runtime.tensor_snapshot import Snapshot
from robustbench_meta.testing.contract import Contract, clause, expect, expect_reasons, first_accepted, works
from robustbench_meta.testing.fixtures import SHOT, all_settings, engine_of, tasks_of

SEEDS = (11, 12, 13)
"""Of the tasks."""


@dataclass
class Attempt:
    """One call of an attack, and what it left behind."""

    where: str
    x: Tensor
    threat: ThreatModel
    event_ndim: int
    returned: object = None
    error: Exception | None = None
    touched: str = ""
    reseeded: bool = False

    @property
    def images(self) -> Tensor | None:
        """What it returned, if these are images of the given shape and type."""
        images = self.returned
        fits = isinstance(images, Tensor) and images.shape == self.x.shape and images.dtype == self.x.dtype
        return images if fits else None  # type: ignore[return-value]  # `fits` says what mypy cannot see

    def expect_returned(self, **remedy: str) -> None:
        """Raise Broken if the attack raised."""
        if self.error is not None:
            with works(self.where, **remedy):
                raise self.error

    def expect_images(self, **remedy: str) -> Tensor:
        """The images; Broken if it raised, or returned anything else."""
        self.expect_returned(**remedy)
        images = self.images
        expect(images is not None, f"{self.where}it returned other than images", "return images in the shape of x")
        assert images is not None
        return images

    def expect_inside(self) -> None:
        """Raise Broken unless the images are in the threat model."""
        over_eps, over_range = self.threat.excess(self.expect_images(), self.x, self.event_ndim).tolist()
        eps, norm, low, high = self.threat.eps, self.threat.norm, self.threat.low, self.threat.high
        expect(
            over_eps <= TOLERANCE,
            f"{self.where}an image is {eps + over_eps:.6g} away in {norm}, {over_eps:.3g} more than eps",
            "project onto the ball around x as the last thing",
        )
        pixels = f"{self.where}pixels leave [{low:g}, {high:g}] by {over_range:.3g}"
        expect(over_range <= TOLERANCE, pixels, "return threat.clip(…)")


def attempt(
    attack: Attack, victim: Target, batch: Batch, threat: ThreatModel, where: str = "", seeds: Sequence[int] = SEEDS,
    start: Tensor | None = None,
) -> Attempt:  # fmt: skip
    """Call the attack as the harness does, on copies; nothing that it does is refused, all is recorded."""
    x, y = batch.x.clone(), batch.y.clone()
    begin = None if start is None else start.clone()
    trial = Attempt(where, batch.x, threat, victim.event_ndim)
    guarded = {"the images that it was given": x, "the labels": y} | ({} if begin is None else {"the start": begin})
    guarded |= {f"the model's tensor {place}": tensor for place, tensor in enumerate(victim.tensors())}
    before = Snapshot(guarded)
    modes = [(module, module.training) for module in victim.modules()]

    def once(model: Victim, x: Tensor, y: Tensor, random: Random, start: Tensor | None) -> object:
        seed_all(random.seed())
        seed = torch.initial_seed()
        if start is None:
            returned: object = attack.perturb(model, x, y, threat, random)
        else:
            returned = attack.perturb_from(model, x, y, threat, random, start)
        trial.reseeded |= torch.initial_seed() != seed
        return returned.detach() if isinstance(returned, Tensor) else returned

    def each_task(random: Random) -> object:
        rows = [
            once(victim.task(index), x[index], y[index], own, None if begin is None else begin[index])
            for index, own in enumerate(random.split())
        ]
        odd = next((row for row in rows if not isinstance(row, Tensor) or row.shape != x.shape[1:]), None)
        return torch.stack(rows) if odd is None else odd  # type: ignore[arg-type]  # all are tensors then

    try:
        with torch.enable_grad():
            random = Random(seeds[: len(x)])
            trial.returned = each_task(random) if attack.per_task else once(victim, x, y, random, begin)
    except Exception as error:  # a plugin may raise anything
        trial.error = error
    moved = [(module, mode) for module, mode in modes if module.training != mode]
    for module, mode in moved:
        module.training = mode
    modes_changed = ["the mode of the model's modules (training or evaluation)"] if moved else []
    trial.touched = ", ".join([*before.written(), *modes_changed])
    return trial


class AttackContract(Contract):
    """Of an attack: it proposes images inside its threat model, and leaves everything else as it is."""

    kind = "attack"
    plugin: Attack

    @cached_property
    def setting(self) -> Setting:
        """The first setting that the attack does not refuse."""
        return first_accepted(self.plugin.obstacle)

    @cached_property
    def tasks(self) -> TaskBatch:
        """Tasks of grey images."""
        return tasks_of(self.setting)

    def victim(self, tasks: TaskBatch, setting: Setting | None = None) -> AttackedModel:
        """A nearest centroid in pixel space (a linear model); for a squared loss a linear model after a MAML step."""
        engine, state = self._adapted(setting or self.setting, tasks)
        return AttackedModel(engine, state, tasks.query.y.shape[1])

    def _adapted(self, setting: Setting, tasks: TaskBatch) -> tuple[Engine, State]:
        name = "protonet" if setting.loss == "cross_entropy" else "maml"
        engine, theta = engine_of(self.registry.make("learner", name, {}), setting, self.registry)
        with torch.no_grad():
            return engine, engine.adapt(engine.theta(theta), tasks.support)

    @cached_property
    def eps(self) -> list[float]:
        """None, a tiny one, one that can fool, and the whole range: those that the attack does not refuse."""
        pixels, places = math.prod(self.setting.shape), math.prod(self.setting.shape[-2:])
        wider = math.sqrt(pixels / 64)
        scales: dict[Norm, tuple[float, ...]] = {
            "linf": (0.0, 1e-4, 0.2 / wider, 1.0),
            "l2": (0.0, 1e-3, 1.5, math.sqrt(pixels)),
            "l1": (0.0, 1e-2, 10 * wider, float(pixels)),
            "l0": (0.0, 1.0, float(round(min(24 * wider, 0.75 * places))), float(places)),
            "severity": (1.0, 3.0, 5.0),
        }
        return [eps for eps in scales[self.plugin.norm] if self.plugin.eps_obstacle(eps) is None]

    @cached_property
    def middle(self) -> ThreatModel:
        """The threat model in which a nearest centroid can be fooled."""
        expect(bool(self.eps), "it refuses every eps", "let `eps_obstacle` return None where it can work")
        return ThreatModel(self.plugin.norm, self.eps[-2] if len(self.eps) > 1 else self.eps[0])

    @cached_property
    def trials(self) -> list[Attempt]:
        """On grey and on black-and-white images, at every ε; and on a model without any slope."""
        trials = []
        for black_and_white, eps in product((False, True), self.eps):
            tasks = tasks_of(self.setting, black_and_white=black_and_white)
            where = f"on {'black-and-white' if black_and_white else 'grey'} images at eps {eps:.4g}, "
            trials.append(
                attempt(self.plugin, self.victim(tasks), tasks.query, ThreatModel(self.plugin.norm, eps), where)
            )
        engine, weights = engine_of(self.registry.make("learner", "maml", {}), self.setting, self.registry)
        flat = AttackedModel(engine, engine.theta({name: torch.zeros_like(weight) for name, weight in weights.items()}))
        where = "where the gradient is zero everywhere, "
        return [*trials, attempt(self.plugin, flat, self.tasks.query, self.middle, where)]

    @clause(after=(Contract.declares,))
    def answers(self) -> None:
        """Gives reasons, threat models and stronger versions of itself as the contract has them"""
        attack = self.plugin
        expect_reasons(attack.obstacle, all_settings())
        expect_reasons(attack.eps_obstacle, (0.0, 0.1, 1.0, 8.0, 1000.0))
        default = attack.default_eps()
        if default is not None:
            reason = attack.eps_obstacle(parse_eps(default).value)
            expect(reason is None, f"its default_eps {default} is refused: {reason}", "name one that it can work with")
        stronger = attack.stronger()
        if stronger is not None:
            expect(isinstance(stronger, Attack), f"stronger() returned {stronger!r}", "return an Attack, or None")
            expect(stronger.norm == attack.norm, f"stronger() works in {stronger.norm}", f"stay in {attack.norm}")
            expect(stronger != attack, "stronger() returned the same attack", "take more steps or restarts, or None")

    @clause()
    def runs(self) -> None:
        """Works in the settings that it does not refuse"""
        for trial in [*self.trials, *self._elsewhere()]:
            trial.expect_returned()

    def _elsewhere(self) -> Iterator[Attempt]:
        """2-way and 5-way, either loss, one query a class."""
        first = self.setting
        for way, loss in product((2, 5), ("cross_entropy", "squared")):
            setting = Setting(first.shape, way, SHOT, 1, loss, transductive=False)  # type: ignore[arg-type]  # literals in a table
            if setting[:5] != first[:5] and self.plugin.obstacle(setting) is None:
                tasks = tasks_of(setting, tasks=2)
                where = f"{way}-way with the {loss} loss and one query a class, "
                yield attempt(self.plugin, self.victim(tasks, setting), tasks.query, self.middle, where)

    @clause(after=(runs,))
    def returns_images(self) -> None:
        """Returns finite images in the shape and type of those that it is given"""
        for trial in self.trials:
            found, images, x = trial.returned, trial.images, trial.x
            shown = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            hint = ": is a `return` missing?" if found is None else ""
            expect(
                images is not None, f"{trial.where}it returned {shown} for {tuple(x.shape)} {x.dtype}",
                f"return adversarial images in the shape and type of x{hint}",
            )  # fmt: skip
            assert images is not None
            bad = int((~images.isfinite()).sum())
            expect(bad == 0, f"{trial.where}{bad} pixels are NaN or infinite", "guard divisions, roots and logarithms")

    @clause(after=(runs,))
    def stays_inside(self) -> None:
        """Stays within eps and the pixel range"""
        for trial in self.trials:
            if trial.images is not None and trial.images.isfinite().all():
                trial.expect_inside()

    @clause(after=(runs,))
    def touches_nothing(self) -> None:
        """Leaves images, labels, weights and modes as they are"""
        remedy = "work on copies; leave model.train() alone"
        for trial in self.trials:
            expect(not trial.touched, f"{trial.where}it changed {trial.touched}", remedy)

    @clause(after=(runs,))
    def keeps_the_seed(self) -> None:
        """Leaves torch's seed alone"""
        remedy = "draw from `random`; around code that seeds itself: torch.random.fork_rng() and random.seed()"
        expect(not any(trial.reseeded for trial in self.trials), "it reseeded torch's generator", remedy)

    @clause(after=(runs, returns_images))
    def repeats(self) -> None:
        """Gives the same images again when it is given the same seeds"""
        victim = self.victim(self.tasks)
        first, second = (self._images(victim, self.tasks.query) for _ in range(2))
        expect(
            torch.equal(first, second), f"{_share(first, second):.1%} of the pixels differed between two equal calls",
            "draw from `random` only (random.uniform, random.normal, random.seed), and keep nothing from call to call",
        )  # fmt: skip

    @clause(after=(repeats,))
    def minds_each_task(self) -> None:
        """Treats a task alike alone and among others"""
        together = self._images(self.victim(self.tasks), self.tasks.query)
        for index in (0, len(SEEDS) - 1):
            one = self.tasks.part(slice(index, index + 1))
            share = _share(self._images(self.victim(one), one.query, SEEDS[index : index + 1])[0], together[index])
            expect(
                share <= 0.01, f"{share:.1%} of a task's pixels change when other tasks are attacked with it",
                "let nothing run over the task axis (sums, means, sorting, `if … .any()`), and draw from `random`",
            )  # fmt: skip

    @clause(after=(runs,))
    def shows_whole_batches(self) -> None:
        """Shows the model whole batches, or declares sub_batches"""
        if self.plugin.sub_batches or self.plugin.obstacle(self.setting._replace(transductive=True)) is not None:
            return
        model = self.victim(self.tasks)
        model.transductive = True  # such a model refuses parts of a task
        trial = attempt(self.plugin, model, self.tasks.query, self.middle, "with a transductive model, ")
        trial.expect_returned(remedy="always pass all images of a task, or declare `sub_batches`")

    @clause(after=(runs,))
    def means_its_method(self) -> None:
        """Asks for a gradient only if its method says so"""
        if self.plugin.how() not in ("black-box", "random") or self.plugin.clean:
            return
        count = QueryCount()
        model = CountingModel(self.victim(self.tasks), count)
        attempt(self.plugin, model, self.tasks.query, self.middle).expect_returned()
        seen = f"it declares the method '{self.plugin.how()}', and took a gradient"
        expect(count.gradients == 0, seen, "ask for no gradient, or declare another `method`")

    @clause(after=(runs, returns_images, stays_inside))
    def needs_the_loss_only(self) -> None:
        """Works through the loss alone, if it declares loss_only"""
        if not self.plugin.loss_only or self.plugin.per_task or self.plugin.sub_batches:
            return
        engine, theta = engine_of(self.registry.make("learner", "maml", {}), self.setting, self.registry)
        victim = PoisonedAdaptation(engine, engine.theta(theta), self.tasks.query)
        trial = attempt(self.plugin, victim, self.tasks.support, self.middle, "on the loss through adaptation, ")
        trial.expect_images(remedy="ask for `loss` and `fooled` only, or do not declare loss_only")
        trial.expect_inside()

    @clause(after=(runs, returns_images, stays_inside, touches_nothing))
    def begins_at_a_start(self) -> None:
        """Begins where perturb_from says, and stays inside"""
        victim, query, threat = self.victim(self.tasks), self.tasks.query, self.middle
        start = noise(query.x, ThreatModel(threat.norm, threat.eps / 2), victim.event_ndim, seed=3)
        trial = attempt(self.plugin, victim, query, threat, "from a start, ", start=start)
        trial.expect_images()
        expect(not trial.touched, f"from a start, it changed {trial.touched}", "work on copies")
        trial.expect_inside()

    @clause(after=(runs, returns_images))
    def has_an_effect(self) -> None:
        """Does more to an undefended model than noise of the same size"""
        victim, (x, y) = self.victim(self.tasks), self.tasks.query
        images = self._images(victim, self.tasks.query)
        if self.plugin.clean:
            expect(torch.equal(images, x), "it declares `clean` and changed images", "return x, or do not declare it")
            return
        if self.plugin.certifies:
            expect(torch.equal(images, x), "it declares `certifies` and changed images", "return x")
            return
        if self.plugin.how() == "random":
            expect(not torch.equal(images, x), "it returned the images that it was given", "return what it drew")
            return

        def mean_margin(images: Tensor) -> float:
            with torch.no_grad():
                return float(margin(victim(images), y).mean())

        before, after = mean_margin(x), mean_margin(images)
        noisy = sum(mean_margin(noise(x, self.middle, victim.event_ndim, seed)) for seed in range(4)) / 4
        expect(
            after < min(before, noisy) - 0.02 * abs(before),
            f"the mean margin is {before:.3g} on clean images, {noisy:.3g} with noise, {after:.3g} after the attack "
            f"({self.middle.norm}, eps {self.middle.eps:.3g})",
            "look at the sign of the step and at what is returned; if its options make it weak, give stronger ones",
        )

    @clause(after=(repeats,))
    def fools_the_same_when_it_stops_early(self) -> None:
        """Fools the same images with for_success as without"""
        victim, y = self.victim(self.tasks), self.tasks.query.y
        early = attempt(self.plugin.for_success(), victim, self.tasks.query, self.middle, "with for_success, ")
        missed = victim.fooled(self._images(victim, self.tasks.query), y) & ~victim.fooled(early.expect_images(), y)
        expect(
            float(missed.double().mean()) <= 0.01, f"with for_success {int(missed.sum())} of {y.numel()} fool no more",
            "let for_success stop at images that fool, and go on with the others as without it",
        )  # fmt: skip

    @clause(after=(runs, returns_images, stays_inside, touches_nothing, keeps_the_seed))
    def passes_the_harness(self) -> None:
        """Passes the harness"""
        engine, state = self._adapted(self.setting, self.tasks)
        query = self.tasks.query
        for eps in self.eps:
            bound = guarded(self.plugin, ThreatModel(self.plugin.norm, eps))
            engine.attacked(AttackedModel(engine, state, query.y.shape[1]), query, bound, "query")

    def _images(self, victim: Target, batch: Batch, seeds: Sequence[int] = SEEDS) -> Tensor:
        return attempt(self.plugin, victim, batch, self.middle, seeds=seeds).expect_images()


def noise(x: Tensor, threat: ThreatModel, event_ndim: int, seed: int) -> Tensor:
    """Noise of the size ε: a random corner, direction, or so many random pixels; clipped to the pixel range.

    Of a severity, that of any size.
    """
    draw = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    axes = tuple(range(-event_ndim, 0))
    if threat.norm == "l0":
        places = x.shape[-2:] if event_ndim == 3 else x.shape[-event_ndim:]
        ranks = torch.rand(*x.shape[:-event_ndim], math.prod(places), generator=draw).argsort(-1).argsort(-1)
        mask = (ranks < threat.eps).view(*x.shape[:-event_ndim], *(1 for _ in range(event_ndim - len(places))), *places)
        return torch.where(mask, (direction > 0).to(x.dtype), x)
    if threat.norm in {"linf", "severity"}:
        step = threat.eps * direction.sign()
    else:
        length = torch.linalg.vector_norm(direction, int(threat.norm[1]), axes, keepdim=True)
        step = threat.eps * (1 - 1e-6) * direction / length
    return threat.clip((x.double() + step).to(x.dtype))


def _share(found: Tensor, expected: Tensor) -> float:
    """The share of pixels that differ."""
    return float(((found - expected).abs() > 1e-5).double().mean())
