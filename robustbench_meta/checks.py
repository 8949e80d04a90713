"""Can a number be believed? Probes of the model and of the attack, and the flags that follow from them.

`docs/flags.md` says of each flag what it means, how it is computed, and what to do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from robustbench_meta.contracts import Attack
from robustbench_meta.engine import Engine
from robustbench_meta.harness import arm
from robustbench_meta.models import State
from robustbench_meta.tasks import Batch, TaskBatch
from robustbench_meta.threat import Norm, ThreatModel
from robustbench_meta.trials import Arena, Armed, Trial
from robustbench_meta.victims import AttackedModel

CHECKED = 32
"""On how many of the test episodes, the first ones, probes run: differences in pairs need fewer than accuracies."""
SELF_TESTED = 16
"""On how many of them an attack must show an effect on an undefended model."""
ENOUGH = 600
"""Episodes from which on a row is more than a smoke test: as many as the papers take."""
SURE = 0.01
"""One-sided level at which a difference in pairs counts, between a row and a probe."""
BLACK_BOX_QUERIES = 200
"""Of the square attack that no white-box attack may be weaker than."""
_ROUNDING = 1e-9
"""Differences of accuracies below this are none."""
_MOST_ZEROS = 0.01
"""The share of the queries whose input gradient may be zero or not finite."""
VARIES = {"float32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}
"""By precision: how far apart two identical calls may be, as a share of the largest logit."""
MATES = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""The same for a query's logits among other queries, whose batch is computed in another order."""

FLAGS: dict[str, str] = {
    "probabilities": "the logits are probabilities: losses of them saturate, and attacks on them are weak",
    "random-outputs": "two identical calls give different logits: an attack must average over the randomness",
    "transductive": "a query's prediction depends on the other queries of its batch",
    "zero-gradients": "many queries have an input gradient that is zero or not finite: gradient attacks see nothing",
    "no-effect": "the attack does nothing to an undefended model (nearest class mean of the pixels)",
    "weaker-than-noise": "random noise of the same size does more harm than the attack",
    "weaker-than-fgsm": "one gradient step does more harm than this attack of many",
    "not-converged": "the same attack with more steps or restarts changes the accuracy by more than its interval",
    "masked-gradients": "an attack without gradients of this model does more harm than those with them",
    "flat-in-eps": "accuracy under PGD does not fall with eps",
    "robust-at-full-range": "accuracy stays above chance when every pixel may be changed at will",
    "fgsm-alone": "no attack of more than one step: the number is no claim of robustness",
    "smoke": f"fewer than {ENOUGH} episodes",
    "unchecked": "the reliability checks were skipped, or one of their probes failed (the record tells which)",
}
"""What each flag means, in a line."""


@dataclass(frozen=True)
class Battery:
    """The attacks that probes are made of, by norm, and what identifies their code."""

    noise: Mapping[Norm, Attack]
    one_step: Mapping[Norm, Attack]
    many_steps: Mapping[Norm, Attack]
    black_box: Mapping[Norm, Attack]
    code: str

    @property
    def digest(self) -> str:
        """Changes with the code of the probes."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]


def assemble(make: Callable[[str, dict[str, str]], Attack], code: Callable[[str], str]) -> Battery:
    """The battery, from what makes an attack of a name and options, and tells its code."""

    def chosen(linf: tuple[str, dict[str, str]], l2: tuple[str, dict[str, str]]) -> dict[Norm, Attack]:
        names.extend([linf[0], l2[0]])
        return {"linf": make(*linf), "l2": make(*l2)}

    names: list[str] = []
    queries = {"queries": str(BLACK_BOX_QUERIES)}
    noise = chosen(("noise", {}), ("noisel2", {}))
    one_step = chosen(("fgsm", {}), ("pgdl2", {"steps": "1", "random_start": "false"}))
    many_steps = chosen(("pgd", {}), ("pgdl2", {}))
    black_box = chosen(("square", queries), ("squarel2", queries))
    told = " ".join(f"{name} {code(name)}" for name in sorted(set(names)))
    return Battery(noise, one_step, many_steps, black_box, told)


class Probe(NamedTuple):
    """A trial that a row is held against."""

    name: str
    trial: Trial


def probes(battery: Battery, trial: Trial, shape: Sequence[int]) -> list[Probe]:
    """What is run besides a row's own trial, on the first `CHECKED` episodes.

    Queries that are attacked on the model itself are probed most; other rows less, as docs/flags.md tells.
    """
    armed = trial.query or trial.support
    if armed is None or armed.threat.eps == 0 or armed.attack.clean or armed.threat.norm not in battery.noise:
        return []
    found = list(_baselines(battery, trial, armed))
    if trial.surrogate is not None:
        return found
    stronger = armed.attack.stronger()
    if stronger is not None and (trial.support is None or (trial.query is None and trial.poisons)):
        found.append(Probe("stronger", _instead(trial, stronger)))
    if trial.support is None:
        found += _white_box(battery, armed, shape)
    return found


def _baselines(battery: Battery, trial: Trial, armed: Armed) -> Iterator[Probe]:
    """Noise and a single step in the place of the row's last attack."""
    norm = armed.threat.norm
    if armed.attack.how() == "random":
        return
    yield Probe("noise", _instead(trial, battery.noise[norm]))
    misled = trial.surrogate is not None or (trial.query is None and not trial.poisons)
    if armed.attack.how() == "iterative" and not misled:
        yield Probe("single step", _instead(trial, battery.one_step[norm]))


def _instead(trial: Trial, attack: Attack) -> Trial:
    """The same trial with another attack on what is attacked last, without a sweep."""
    if trial.query is not None:
        return Trial(trial.support, Armed(attack, trial.query.threat), trial.poisons, trial.surrogate)
    assert trial.support is not None
    return Trial(Armed(attack, trial.support.threat), None, trial.poisons)


def _white_box(battery: Battery, armed: Armed, shape: Sequence[int]) -> Iterator[Probe]:
    norm, eps = armed.threat.norm, armed.threat.eps
    most = 1.0 if norm == "linf" else math.sqrt(math.prod(shape))
    attack = battery.many_steps[norm]
    yield Probe("pgd", Trial(query=Armed(attack, armed.threat)))
    yield Probe("pgd, 2 eps", Trial(query=Armed(attack, ThreatModel(norm, min(2 * eps, most)))))
    yield Probe("pgd, full range", Trial(query=Armed(attack, ThreatModel(norm, most))))
    yield Probe("black box", Trial(query=Armed(battery.black_box[norm], armed.threat)))


@dataclass
class Observation:
    """What was seen of the model itself on clean queries."""

    queries: int = 0
    probabilities: int = 0
    """Rows of logits that are probabilities."""
    zero_gradients: int = 0
    """Queries whose input gradient is zero everywhere, or not finite."""
    varies: float = 0.0
    """The largest difference between two identical calls, as a share of the largest logit."""
    mates: float = 0.0
    """The largest change of a query's logits with the other queries (alone, permuted, one of them changed)."""

    def merge(self, other: Observation) -> None:
        """Add what was seen on other episodes."""
        self.queries += other.queries
        self.probabilities += other.probabilities
        self.zero_gradients += other.zero_gradients
        self.varies, self.mates = max(self.varies, other.varies), max(self.mates, other.mates)

    def shares(self) -> dict[str, float]:
        """For the record: shares of the queries, and differences as shares of the largest logit."""
        queries = max(self.queries, 1)
        return {
            "probabilities": self.probabilities / queries, "zero_gradients": self.zero_gradients / queries,
            "varies": self.varies, "mates": self.mates,
        }  # fmt: skip

    def flags(self, precision: str) -> list[str]:
        """The flags of the model itself."""
        found = {
            "probabilities": 2 * self.probabilities > self.queries,
            "random-outputs": self.varies > VARIES[precision],
            "transductive": self.varies <= VARIES[precision] and self.mates > MATES[precision],
            "zero-gradients": self.zero_gradients > _MOST_ZEROS * self.queries,
        }
        return [name for name, seen in found.items() if seen]


def observe(arena: Arena) -> Observation:
    """Look at the model on the arena's clean queries."""
    x, y, logits = arena.tasks.query.x, arena.tasks.query.y, arena.logits
    seen = Observation(queries=y.numel(), probabilities=int(_probabilities(logits).sum()))
    seen.varies = variation(arena.engine, arena.adapted, x, logits)
    seen.zero_gradients = _zero_gradients(arena.victim(), x, y)
    seen.mates = influence_of_mates(arena.engine, arena.adapted, x, logits)
    return seen


def influence_of_mates(engine: Engine, state: State, x: Tensor, logits: Tensor) -> float:
    """The largest change of a query's logits when it is alone, permuted, or a mate is another image.

    As a share of the largest logit of its task; x [tasks, n, *shape], logits [tasks, n, way] of the whole batch.
    """
    n = x.shape[1]
    order = torch.arange(n, device=x.device).flip(0)
    changed = torch.cat([1 - x[:, :1], x[:, 1:]], 1)
    alone = torch.cat([engine.logits(state, one) for one in torch.split(x, 1, dim=1)], dim=1)
    differences = [
        alone - logits,
        engine.logits(state, x[:, order])[:, order] - logits,
        (engine.logits(state, changed) - logits)[:, 1:],
    ]
    return max(_largest_change(difference, logits) for difference in differences if difference.numel())


def variation(engine: Engine, state: State, x: Tensor, logits: Tensor) -> float:
    """The largest change of the logits when the same call is made again, as a share of the largest of its task."""
    return _largest_change(engine.logits(state, x) - logits, logits)


def _largest_change(difference: Tensor, logits: Tensor) -> float:
    """Over tasks, the largest difference as a share of the task's largest logit."""
    shares = difference.abs().flatten(1).amax(1) / logits.abs().flatten(1).amax(1).clamp_min(1e-6)
    return float(shares.max())


def _probabilities(logits: Tensor) -> Tensor:
    """Whether each row is a distribution: nothing below 0, and a sum of 1."""
    return (logits >= 0).all(-1) & ((logits.sum(-1) - 1).abs() < 1e-3)


def _zero_gradients(victim: AttackedModel, x: Tensor, y: Tensor) -> int:
    """How many images have a gradient of their loss that is zero everywhere, or not finite."""
    with torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        loss = victim.loss(images, y).sum()
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        return y.numel()
    flat = gradient.flatten(2)
    return int(((flat == 0).all(-1) | ~flat.isfinite().all(-1)).sum())


class ClassMeans:
    """An undefended model for self-tests: logits −‖x − c_k‖² to the mean support image of each class, in pixels."""

    transductive = False

    def __init__(self, tasks: TaskBatch, way: int, event: int) -> None:
        self.way, self.event = way, event
        support = tasks.support
        member = torch.nn.functional.one_hot(support.y, way).to(support.x.dtype)
        flat = support.x.flatten(2)
        self.means = torch.einsum("tnk,tnd->tkd", member, flat) / member.sum(1)[..., None]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of x [tasks, n, *shape]."""
        return _distances(x.flatten(2), self.means)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy [tasks, n]."""
        return _cross_entropy(self(x), y)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each prediction is wrong."""
        with torch.no_grad():
            return self(x).argmax(-1) != y

    def task(self, index: int) -> _TaskMeans:
        """The model of one task."""
        return _TaskMeans(self, index)

    def tensors(self) -> list[Tensor]:
        """The means."""
        return [self.means]

    def modules(self) -> Iterator[nn.Module]:
        """None."""
        return iter(())


class _TaskMeans:
    """The same for one task: x [n, *shape]."""

    transductive = False

    def __init__(self, batch: ClassMeans, index: int) -> None:
        self._means, self.way, self.event = batch.means[index], batch.way, batch.event

    def __call__(self, x: Tensor) -> Tensor:
        return _distances(x.flatten(1), self._means)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return _cross_entropy(self(x), y)

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self(x).argmax(-1) != y


def _distances(flat: Tensor, means: Tensor) -> Tensor:
    """−‖x − c‖²/√d without what all classes share, 2x·c − ‖c‖²: linear in the image."""
    return (2 * flat @ means.transpose(-1, -2) - means.square().sum(-1)[..., None, :]) / math.sqrt(flat.shape[-1])


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return loss.view(y.shape)


def self_test(engine: Engine, armed: Armed, tasks: TaskBatch) -> Tensor:
    """By how much the attack lowers the margin of the right class on an undefended model: a mean a task [tasks].

    Of random noise, which need not lower it: how much it changes a pixel.
    """
    model = ClassMeans(tasks, engine.network.way, engine.event)
    x, y = tasks.query
    found = engine.attacked(model, Batch(x, y), arm(armed.attack, armed.threat), "query").x
    if armed.attack.how() == "random":
        return (found - x).abs().flatten(1).mean(1)
    return (_margin(model(x), y) - _margin(model(found), y)).mean(-1)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """The right class's logit less the largest other one."""
    right = logits.gather(-1, y[..., None])
    others = logits.scatter(-1, y[..., None], -torch.inf)
    return (right - others.amax(-1, keepdim=True)).squeeze(-1)


@dataclass
class Certificate:
    """What the checks of one row saw: what its flags are made of, kept in its record."""

    episodes: int
    """On how many episodes probes ran."""
    accuracies: dict[str, float] = field(default_factory=dict)
    """Of the row and of each probe on these episodes."""
    observed: dict[str, float] = field(default_factory=dict)
    effect: float | None = None
    """How far the attack lowers the margin of the undefended model; None: not tested."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a probe could not be run, by its name."""
    flags: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For the record."""
        told = {name: round(value, 6) for name, value in self.accuracies.items()}
        return {
            "episodes": self.episodes, "accuracies": told,
            "observed": {name: float(f"{value:.3g}") for name, value in self.observed.items()},
            "effect": None if self.effect is None else float(f"{self.effect:.4g}"), "failed": self.failed,
        }  # fmt: skip


def certify(
    trial: Trial, clean: np.ndarray, robust: np.ndarray, found: Mapping[str, np.ndarray], observation: Observation, *,
    effects: np.ndarray | None, failed: Mapping[str, str], way: int, precision: str,
) -> Certificate:  # fmt: skip
    """The flags of one row, and what they rest on.

    Args:
        trial: the row's.
        clean: whether each query is right without attack [episodes, queries].
        robust: the same in the row's trial.
        found: the same for each probe, by name, on the first episodes.
        observation: of the model.
        effects: of the self-test, by episode; None where there was none.
        failed: why probes could not be run, by name.
        way: classes in a task.
        precision: what layers were computed in.
    """
    checked = min(len(robust), CHECKED)
    own = robust[:checked].mean(1)
    probed = {name: correct.mean(1) for name, correct in found.items()}
    flags = observation.flags(precision)
    if trial.query is None and trial.support is None:
        flags = [flag for flag in flags if flag != "zero-gradients"]
    if effects is not None and not above(effects, 0.0):
        flags.append("no-effect")
    flags += _compared(trial, clean[:checked].mean(1), robust, own, probed, found, way)
    flags += ["smoke"] if len(robust) < ENOUGH else []
    flags += ["unchecked"] if failed else []
    return Certificate(
        episodes=checked,
        accuracies={
            name: float(values.mean()) for name, values in {"clean": clean[:checked], "row": own, **probed}.items()
        },
        observed=observation.shares(),
        effect=None if effects is None else float(effects.mean()),
        failed=dict(failed),
        flags=[name for name in FLAGS if name in flags],
    )


def _compared(
    trial: Trial, clean: np.ndarray, robust: np.ndarray, own: np.ndarray, probed: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray], way: int,
) -> Iterator[str]:  # fmt: skip
    """The flags that come from the accuracies of the row and of its probes, by episode."""
    if "noise" in probed and above(own - probed["noise"], 0.0):
        yield "weaker-than-noise"
    if "single step" in probed and above(own - probed["single step"], 0.0):
        yield "weaker-than-fgsm"
    if "stronger" in probed:
        gained = own - probed["stronger"]
        if above(gained, 0.0) and float(gained.mean()) > _half_width(robust.mean(1)):
            yield "not-converged"
    if "black box" in probed and trial.query is not None:
        worst = found["pgd"].copy()
        if trial.query.attack.how() in {"single-step", "iterative"}:
            worst &= robust[: len(worst)]
        if above(worst.mean(1) - probed["black box"], 0.0):
            yield "masked-gradients"
    if "pgd, full range" in probed:
        path = [clean, probed["pgd"], probed["pgd, 2 eps"], probed["pgd, full range"]]
        rises = any(above(larger - smaller, 0.0) for smaller, larger in pairwise(path))
        if rises or (above(clean, 1 / way) and not above(clean - path[-1], 0.0)):
            yield "flat-in-eps"
        if above(path[-1], 1 / way):
            yield "robust-at-full-range"


def unchecked(episodes: int) -> list[str]:
    """The flags of a row whose checks were skipped."""
    return ["smoke", "unchecked"] if episodes < ENOUGH else ["unchecked"]


def above(values: np.ndarray, bound: float, level: float = SURE) -> bool:
    """Whether the mean over episodes is above a bound, surely: a one-sided t-test.

    Values that are all the same, but for rounding, have no variance to test with: then by the sign test, for which
    seven episodes are the fewest at 1 %.
    """
    if len(values) < 2 or float(values.mean()) <= bound:
        return False
    if float(np.ptp(values)) < _ROUNDING:
        return float(values.mean()) > bound + _ROUNDING and bool(0.5 ** len(values) < level)
    return bool(stats.ttest_1samp(values, bound, alternative="greater").pvalue < level)


def _half_width(values: np.ndarray) -> float:
    """Half the width of the 95 % interval of a mean over episodes."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def flags_between(records: Collection[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The flags that come from rows standing beside each other, by the key of the record.

    `fgsm-alone`: no attack of more than one step was run on this learner at this threat. `masked-gradients`: an
    attack that is transferred, or asks for no gradient, does more harm than all white-box ones.
    """
    from robustbench_meta.store import unpack  # noqa: PLC0415  # which imports training, and that the grid

    found: dict[str, list[str]] = {}
    for group in _beside_each_other(records):
        white = [record for record in group if record["spec"]["query"] != "transfer"]
        if all(record["method"] in {"single-step", "random"} for record in white):
            for record in white:
                found.setdefault(record["key"], []).append("fgsm-alone")
        others = [record for record in group if record not in white or record["method"] == "black-box"]
        gradient = [record for record in white if record["method"] in {"single-step", "iterative"}]
        iterative = any(record["method"] == "iterative" for record in gradient)
        if not iterative or group[0]["spec"]["query"] == "clean" or group[0]["spec"]["attack"]["eps"] == 0:
            continue
        worst = np.logical_and.reduce([unpack(record["robust"]) for record in gradient]).mean(1)
        level = SURE / max(len(others), 1)
        if any(above(worst - unpack(record["robust"]).mean(1), 0.0, level) for record in others):
            for record in gradient:
                found.setdefault(record["key"], []).append("masked-gradients")
    return found


def _beside_each_other(records: Collection[Mapping[str, Any]]) -> Iterable[list[Mapping[str, Any]]]:
    """The attacked records of one learner, threat, support and number of episodes; transferred queries among them."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        spec = record["spec"]
        attack, query = spec["attack"], "adv" if spec["query"] == "transfer" else spec["query"]
        if attack["norm"] != "none":
            threat = record["training"], attack["norm"], attack["eps"], spec["support"], query, spec["episodes"]
            groups.setdefault(threat, []).append(record)
    return groups.values()
