"""Expands a run into cells: defaults filled in, data loaded, impossible combinations refused before any training."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_meta.contracts import Attack, Backbone, Dataset, Learner, Plugin, Setting
from robustbench_meta.errors import BenchError
from robustbench_meta.options import SCENARIOS, Choice, Epsilon, exact, parse_choice, parse_eps, parse_scenarios, plain
from robustbench_meta.profiles import get_profile
from robustbench_meta.registry import Registry, core_code
from robustbench_meta.spec import AttackSpec, CellSpec, PluginSpec, RunSpec, TrainingSpec
from robustbench_meta.tasks import Splits, check_disjoint_classes


@dataclass(frozen=True)
class Threat:
    """An attack with the ε that it is given."""

    attack: Attack
    eps: Epsilon
    spec: AttackSpec
    label: str


@dataclass(frozen=True)
class Training:
    """A learner to be meta-trained once, for all cells that need it."""

    spec: TrainingSpec
    learner: Learner
    label: str
    attack: Threat | None
    surrogate: Backbone | None

    @property
    def key(self) -> str:
        """What names its checkpoint."""
        return self.spec.digest()

    @property
    def title(self) -> str:
        """For messages: the learner and the seed."""
        return f"{self.label} (seed {self.spec.seed})"


@dataclass(frozen=True)
class Cell:
    """One row of the leaderboard to be."""

    key: str
    spec: CellSpec
    training: Training
    threat: Threat

    learner = property(lambda self: self.training.label)
    attack = property(lambda self: self.threat.label)
    eps = property(lambda self: self.threat.eps.text)
    support = property(lambda self: self.spec.support)
    query = property(lambda self: self.spec.query)
    seed = property(lambda self: self.training.spec.seed)


class Work(NamedTuple):
    """How much a run has to do, in counts."""

    trainings: int
    meta_steps: int
    task_gradients: int
    """Meta-gradients of single tasks."""
    adaptations: int
    attacked_tasks: int
    """Tasks on whose support or query an attack is run."""


@dataclass
class Grid:
    """All cells of a run, the trainings that they need, and what they run on."""

    run: RunSpec
    dataset: Dataset
    backbone: Backbone
    splits: Splits
    setting: Setting
    labels: dict[str, str]
    """`dataset` and `backbone` as tables show them."""
    trainings: list[Training] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the user should know: training attacks, combinations left out."""

    def of(self, training: Training) -> list[Cell]:
        """The cells of one training."""
        return [cell for cell in self.cells if cell.training is training]

    def estimate(self, pending: Collection[str]) -> Work:
        """Counts of the work that the pending cells need, if no checkpoint is there yet."""
        cells = [cell for cell in self.cells if cell.key in pending]
        trainings = {cell.training.key: cell.training.spec for cell in cells}.values()
        steps = sum(spec.meta_steps for spec in trainings)
        episodes = self.run.size("episodes")
        supports = {(cell.training.key, _support_key(cell)) for cell in cells}
        attacked = sum((cell.support == "adv") + (cell.query == "adv") for cell in cells)
        return Work(
            len(trainings),
            steps,
            steps * self.run.size("tasks_per_step"),
            len(supports) * episodes,
            attacked * episodes,
        )


def _support_key(cell: Cell) -> str:
    return cell.spec.attack.model_dump_json() if cell.support == "adv" else "clean"


def _numbers(texts: Collection[str]) -> list[float]:
    return [parse_eps(text).value for text in texts]


def prepare(run: RunSpec, registry: Registry, data_root: Path | None) -> Grid:
    """Resolve a run into its grid.

    Raises:
        BenchError: an unknown plugin or option, data that are missing or too few, or an attack or
            learner that cannot work in this setting.
    """
    dataset, dataset_spec, dataset_label = _resolve(registry, "dataset", parse_choice(run.dataset), run.profile)
    learners = [_resolve(registry, "learner", choice, run.profile) for choice in run.choices("learner")]
    attacks = [_resolve(registry, "attack", _split_eps(choice)[0]) for choice in run.choices("attack")]
    backbone, backbone_spec, backbone_label = _resolve(
        registry, "backbone", parse_choice(run.backbone or dataset.backbone), run.profile
    )
    threats = _all_threats(run, dataset, attacks)
    way = _way(run, dataset)
    shot, query = run.size("shot"), run.size("query")
    splits = dataset.load(data_root)
    check_disjoint_classes(splits)
    for source in splits:
        source.check(way, shot, query)
    setting = Setting(splits.test.shape, way, shot, query, dataset.loss, backbone.transductive)
    grid = Grid(run, dataset, backbone, splits, setting, {"dataset": dataset_label, "backbone": backbone_label})
    _refuse("backbone", backbone_label, backbone, setting)
    if run.eps and not {threat.eps.value for threat in threats if not threat.attack.clean} & set(_numbers(run.eps)):
        grid.notes.append(f"--eps {', '.join(run.eps)} is for no attack of this run")
    profile = get_profile(run.profile)
    base = {
        "code": core_code(),
        "dataset": dataset_spec,
        "fingerprint": "+".join(source.fingerprint for source in splits),
        "backbone": backbone_spec,
        "way": way,
        "shot": shot,
        "query": query,
        "meta_steps": run.size("meta_steps"),
        "tasks_per_step": run.size("tasks_per_step"),
        "validations": profile.validations,
        "validation_tasks": profile.validation_tasks,
        "precision": run.precision,
    }
    for learner, spec, label in learners:
        moved = setting._replace(transductive=setting.transductive or learner.transductive)
        _refuse("learner", label, learner, moved)
        for threat in threats:
            _refuse("attack", threat.label, threat.attack, moved)
        for training in _trainings(registry, dataset, learner, spec, label, base, moved, run.seeds):
            if training.key not in {other.key for other in grid.trainings}:
                _add_cells(grid, training, threats)
    if not grid.cells:
        raise BenchError(
            "nothing to run: an attack needs a scenario in which something is attacked, such as clean/adv; for the "
            "accuracy without any (clean/clean), use --attack none"
        )
    return grid


def _resolve(registry: Registry, kind: str, choice: Choice, profile: str | None = None) -> tuple[Any, PluginSpec, str]:
    """The plugin with its options, what identifies it, and its label; a profile fills in what was not typed."""
    cls: type[Plugin] = registry.get(kind, choice.name)
    options: dict[str, str] = {}
    if profile is not None:
        defaults = getattr(get_profile(profile), kind)
        options = {key: value for key, value in defaults.items() if key in cls.model_fields}
    plugin = registry.make(kind, choice.name, {**options, **choice.options})
    dumped = plugin.model_dump(mode="json")
    spec = PluginSpec(name=choice.name, options=dumped, code=registry.origin(kind, choice.name).identity)
    standard = {key: info.get_default(call_default_factory=True) for key, info in cls.model_fields.items()}
    return plugin, spec, spec.label(standard)


def _split_eps(choice: Choice) -> tuple[Choice, str | None]:
    """The choice without the option `eps`, which every attack has and which is not the plugin's own; and that."""
    options = {key: value for key, value in choice.options.items() if key != "eps"}
    return Choice(choice.name, options), choice.options.get("eps")


def _all_threats(run: RunSpec, dataset: Dataset, attacks: list[tuple[Attack, PluginSpec, str]]) -> list[Threat]:
    """Every attack at every ε that was typed for it (its own option, else --eps) or at a default, each once."""
    own = [_split_eps(choice)[1] for choice in run.choices("attack")]
    _refuse_many_norms(run, dataset, [attack for attack, text in zip(attacks, own, strict=True) if text is None])
    found: dict[str, Threat] = {}
    for (attack, spec, label), text in zip(attacks, own, strict=True):
        given = [parse_eps(eps) for eps in (run.eps if text is None else [text])]
        for threat in _threats(dataset, attack, spec, label, given):
            found.setdefault(threat.spec.model_dump_json(), threat)
    return list(found.values())


def _refuse_many_norms(run: RunSpec, dataset: Dataset, attacks: list[tuple[Attack, PluginSpec, str]]) -> None:
    """Raise when one --eps would be given to attacks of several norms, in which it means different things."""
    norms = {label: attack for attack, _, label in attacks if not attack.clean}
    if not run.eps or len({attack.norm for attack in norms.values()}) < 2:
        return
    first = next(iter(norms.values())).norm
    other = next(label for label, attack in norms.items() if attack.norm != first)
    try:
        usual = default_eps(dataset, norms[other], other).text
    except BenchError:
        usual = "1.0"
    raise BenchError(
        f"--eps {', '.join(run.eps)} would go to attacks of several norms, in which it means different things: "
        f"{', '.join(f'{label} ({attack.norm})' for label, attack in norms.items())}; give eps by attack, as "
        f"--attack {other}{',' if ':' in other else ':'}eps={usual}"
    )


def _threats(dataset: Dataset, attack: Attack, spec: PluginSpec, label: str, given: list[Epsilon]) -> Iterator[Threat]:
    if attack.clean:
        yield Threat(attack, Epsilon(0.0, "0"), AttackSpec(plugin=spec, norm="none", eps=0.0), label)
        return
    for eps in {eps.value: eps for eps in given}.values() or [default_eps(dataset, attack, label)]:
        _check_eps("attack", label, attack, eps)
        yield Threat(attack, eps, AttackSpec(plugin=spec, norm=attack.norm, eps=eps.value), label)


def _check_eps(kind: str, label: str, attack: Attack, eps: Epsilon) -> None:
    """Raise when the attack cannot work with this ε."""
    reason = attack.eps_obstacle(eps.value)
    if reason is not None:
        meant = attack.norm == "linf" and 1 < eps.value <= 255
        hint = f"; did you mean {plain(eps.value)}/255?" if meant else ""
        raise BenchError(f"eps {eps.text} for {kind} '{label}' cannot be: {reason}{hint}")


def default_eps(dataset: Dataset, attack: Attack, label: str) -> Epsilon:
    """ε when nobody typed one: the data set's for the attack's norm, else the attack's own.

    Raises:
        BenchError: neither has one.
    """
    found = dataset.eps.get(attack.norm, attack.default_eps())
    if found is None:
        raise BenchError(
            f"attack '{label}' works in the {attack.norm} norm, for which neither the data set '{dataset.name}' nor "
            f"the attack has a default eps: give one, as --attack {attack.name}:eps=1.0"
        )
    return parse_eps(found)


def _way(run: RunSpec, dataset: Dataset) -> int:
    if dataset.way is not None:
        if run.way not in (None, dataset.way):
            raise BenchError(f"--way {run.way}: the data set '{dataset.name}' gives {dataset.way}-way tasks only")
        return dataset.way
    return run.size("way")


def _refuse(kind: str, label: str, plugin: Any, setting: Setting) -> None:
    """Raise when the plugin cannot work here; an attack on parts of a batch cannot attack a transductive model."""
    reason = plugin.obstacle(setting)
    if reason is None and isinstance(plugin, Attack) and plugin.sub_batches and setting.transductive:
        reason = (
            "it passes parts of a batch to the model, whose predictions depend on the whole batch (transductive); "
            "use an inductive norm, such as --backbone conv4:norm=group, or an attack that keeps the batch whole"
        )
    if reason is not None:
        raise BenchError(f"{kind} '{label}' cannot run here: {reason}")


def _trainings(
    registry: Registry, dataset: Dataset, learner: Learner, spec: PluginSpec, label: str, base: dict[str, Any],
    setting: Setting, seeds: tuple[int, ...],
) -> Iterator[Training]:  # fmt: skip
    attack, surrogate = None, None
    wanted = learner.training_attack()
    if wanted is not None:
        attack = _training_threat(registry, dataset, learner, *wanted)
        _refuse("training attack", attack.label, attack.attack, setting)
    wanted_backbone = learner.surrogate_backbone()
    surrogate_spec = None
    if wanted_backbone is not None:
        surrogate, surrogate_spec, _ = _resolve(registry, "backbone", parse_choice(wanted_backbone, ";"))
        _refuse("surrogate", surrogate_spec.name, surrogate, setting)
    for seed in dict.fromkeys(seeds):
        training = TrainingSpec(
            learner=spec, attack=attack.spec if attack else None, surrogate=surrogate_spec, seed=seed, **base
        )
        yield Training(training, learner, label, attack, surrogate)


def _training_threat(registry: Registry, dataset: Dataset, learner: Learner, text: str, eps: float | None) -> Threat:
    choice, own = _split_eps(parse_choice(text, ";"))
    attack, spec, label = _resolve(registry, "attack", choice)
    if own is not None and eps is not None:
        raise BenchError(
            f"learner '{learner.name}' was given two eps for its training attack: {own} in '{text}', and {exact(eps)}; "
            "give one"
        )
    if own is not None:
        chosen = parse_eps(own)
    else:
        chosen = default_eps(dataset, attack, label) if eps is None else Epsilon(parse_eps(eps).value, exact(eps))
    _check_eps("training attack", label, attack, chosen)
    return Threat(attack, chosen, AttackSpec(plugin=spec, norm=attack.norm, eps=chosen.value), label)


def _add_cells(grid: Grid, training: Training, threats: list[Threat]) -> None:
    grid.trainings.append(training)
    if training.attack is not None:
        note = f"{training.label} is trained against {training.attack.label} at eps {training.attack.eps.text}"
        if note not in grid.notes:
            grid.notes.append(note)
    for threat in threats:
        names = ["clean/clean"] if threat.attack.clean else parse_scenarios(list(grid.run.scenarios))
        for name in names:
            support, query = SCENARIOS[name]
            if (support, query) == ("clean", "clean") and not threat.attack.clean:
                continue
            cell = CellSpec(
                training=training.spec,
                attack=threat.spec,
                support=support,
                query=query,
                episodes=grid.run.size("episodes"),
            )
            grid.cells.append(Cell(cell.digest(), cell, training, threat))
