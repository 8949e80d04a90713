"""Expands a run into cells: defaults filled in, data loaded, impossible combinations refused before any training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_meta.contracts import AnyLearner, Attack, Backbone, Dataset, Setting
from robustbench_meta.contracts.plugin import plugin_as_typed
from robustbench_meta.contracts.tasks import Splits, TaskSource, check_disjoint_classes, check_images
from robustbench_meta.errors import BenchError, DataError, PluginError, about, located
from robustbench_meta.experiment.attack_grid import (
    Threat,
    all_threats,
    eps_values,
    resolve_plugin,
    split_eps,
    takes_eps,
    training_threat,
)
from robustbench_meta.experiment.probes import Probes, assemble
from robustbench_meta.experiment.profiles import get_profile
from robustbench_meta.experiment.scenario import AttackAtEps, Scenario
from robustbench_meta.experiment.spec import TRANSFER, CellSpec, PluginSpec, RunSpec, SurrogateSpec, TrainingSpec
from robustbench_meta.experiment.surrogates import is_file, read_named
from robustbench_meta.options import BY_HALVES, CERTIFIED, SCENARIOS, THROUGH_ADAPTATION, parse_choice, parse_scenarios
from robustbench_meta.registry.registry import Registry, core_code
from robustbench_meta.runtime.seeds import seed_from, seeded


@dataclass(frozen=True)
class Training:
    """A learner to be meta-trained once, for all cells that need it."""

    spec: TrainingSpec
    learner: AnyLearner
    label: str
    backbone: Backbone
    attack: Threat | None = None
    surrogate: Backbone | None = None
    """Of the training attack, where the learner attacks a separate model."""

    @property
    def key(self) -> str:
        """What names its checkpoint."""
        return self.spec.digest()

    @property
    def transductive(self) -> bool:
        """Whether predictions of one query depend on the others, by what its learner and its backbone declare."""
        return self.learner.transductive or self.backbone.transductive

    @property
    def title(self) -> str:
        """For messages: the learner and the seed."""
        return f"{self.label} (seed {self.spec.seed})"


@dataclass(frozen=True)
class Surrogate:
    """The model on which transferred attacks are made: a training of this run, or a checkpoint's file."""

    training: Training
    spec: SurrogateSpec
    label: str
    path: Path | None = None
    of: str | None = None
    """Of a file: the key of the training that wrote it."""

    @property
    def key(self) -> str:
        """What tells it from others."""
        return self.spec.trained


@dataclass(frozen=True)
class Cell:
    """What one row of the leaderboard is computed from."""

    key: str
    """The digest of its spec: the column `spec_hash`, and the name of its record's file."""
    spec: CellSpec
    training: Training
    threat: Threat
    surrogate: Surrogate | None = None

    learner = property(lambda self: self.training.label)
    attack = property(lambda self: self.threat.label)
    eps = property(lambda self: self.threat.eps.text)
    support = property(lambda self: self.spec.support)
    query = property(lambda self: self.spec.query)
    seed = property(lambda self: self.training.spec.seed)

    @property
    def labels(self) -> dict[str, Any]:
        """Which cell it is, as plain data, named as the leaderboard's columns are."""
        return {
            "spec_hash": self.key, "learner": self.learner, "attack": self.attack, "eps": self.eps,
            "support": self.support, "query": self.query, "seed": self.seed,
        }  # fmt: skip

    @property
    def scenario(self) -> Scenario:
        """Who attacks what."""
        surrogate = self.surrogate.key if self.surrogate is not None else None
        at_eps = AttackAtEps(self.threat.attack, self.threat.model, self.spec.attack.sweep)
        return Scenario.of(at_eps, self.spec.support, self.spec.query, surrogate)


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
    """`dataset` and `backbone` as tables show them, and what was done about `copies` of images."""
    trainings: list[Training] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the user should know: training attacks, combinations left out."""
    probe_plan: Probes | None = None
    """The attacks of the reliability checks; None: no checks."""

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def of(self, training: Training) -> list[Cell]:
        """The cells of one training."""
        return [cell for cell in self.cells if cell.training is training]

    def needed(self, pending: Collection[str]) -> list[Training]:
        """The trainings that the pending cells need, surrogates' among them."""
        cells = [cell for cell in self.cells if cell.key in pending]
        needed = [cell.training for cell in cells]
        needed += [cell.surrogate.training for cell in cells if cell.surrogate and cell.surrogate.path is None]
        return list({training.key: training for training in needed}.values())

    def estimate(self, pending: Collection[str], missing: Collection[str] | None = None) -> Work:
        """Counts of the work that the pending cells need.

        Args:
            pending: their keys.
            missing: the keys of the trainings of which there is no checkpoint; None: of none of them there is.
        """
        cells = [cell for cell in self.cells if cell.key in pending]
        needed = [each for each in self.needed(pending) if missing is None or each.key in missing]
        trainings = [training.spec for training in needed]
        steps = sum(spec.meta_steps for spec in trainings)
        episodes = self.run.size("episodes")
        supports = {(cell.training.key, _support_key(cell)) for cell in cells}
        attacked = sum((cell.support != "clean") + (cell.query != "clean") for cell in cells)
        return Work(
            len(trainings),
            steps,
            steps * self.run.size("tasks_per_step"),
            len(supports) * episodes,
            attacked * episodes,
        )


def _support_key(cell: Cell) -> str:
    return cell.support + cell.spec.attack.model_dump_json() if cell.support != "clean" else "clean"


def build_grid(run: RunSpec, registry: Registry, data_root: Path | None, splits: Splits | None = None) -> Grid:
    """Resolve a run into its grid.

    Args:
        run: what was asked for.
        registry: the plugins.
        data_root: where data sets are.
        splits: the data, if they need not be loaded.

    Raises:
        BenchError: an unknown plugin or option, data that are missing or too few, or an attack or
            learner that cannot work in this setting.
    """
    with about("dataset"):
        dataset, dataset_spec, dataset_label = resolve_plugin(
            registry, "dataset", parse_choice(run.dataset), run.profile, data_root
        )
    learners, attacks, attacks_typed = [], [], {}
    for text, choice in run.typed("learner"):
        with about("learners", text):
            learners.append((text, *resolve_plugin(registry, "learner", choice, run.profile)))
    for text, choice in run.typed("attack"):
        with about("attacks", text):
            attacks.append(resolve_plugin(registry, "attack", split_eps(choice)[0]))
            attacks_typed[attacks[-1][2]] = text
    with about("backbone"):
        backbone, backbone_spec, backbone_label = resolve_plugin(
            registry, "backbone", parse_choice(run.backbone or dataset.backbone), run.profile
        )
    threats = all_threats(run, dataset, attacks)
    with about("way"):
        way = _way(run, dataset)
    shot, query = run.size("shot"), run.size("query")
    with about("dataset"):
        splits = splits if splits is not None else load_splits(dataset, dataset_label, data_root)
        check_disjoint_classes(splits)
    for source in splits:
        with about("way" if way > len(source.classes) else "query" if run.shot is None else "shot"):
            _check_tasks(dataset_label, source, way, shot, query)
    setting = Setting(
        splits.test.shape, way, shot, query, dataset.loss, backbone.transductive, len(splits.train.classes)
    )  # fmt: skip
    copies = ", ".join(f"{source.copies} from {part}".replace("kept from", "kept in")
                       for part, source in splits._asdict().items() if source.copies)  # fmt: skip
    labels = {"dataset": dataset_label, "backbone": backbone_label, "copies": copies}
    grid = Grid(run, dataset, backbone, splits, setting, labels)
    if copies:
        grid.notes.append(f"equal images of {dataset_label}: {copies}")
    with about("backbone"):
        _refuse("backbone", backbone_label, backbone, setting)
    if run.eps and not {each.eps.value for each in threats if takes_eps(each.attack)} & set(eps_values(run.eps)):
        grid.notes.append(f"--eps {', '.join(run.eps)} is for no attack of this run")
    base = _base(run, setting, splits, dataset_spec, backbone_spec)
    if run.checks:
        grid.probe_plan = assemble(
            lambda name, options: registry.make("attack", name, options),
            lambda name: registry.origin("attack", name).identity,
        )
    with about("surrogate"):
        surrogates = _surrogates(registry, grid, base, threats)
    for text, learner, spec, label in learners:
        moved = setting._replace(transductive=setting.transductive or learner.transductive)
        with about("learners", text):
            _refuse("learner", label, learner, moved)
            _check_training_tasks(label, learner, setting, splits.train)
        for threat in threats:
            with about("attacks", attacks_typed[threat.label]):
                _refuse("attack", threat.label, threat.attack, moved)
        with about("learners", text):
            trainings = list(_trainings(registry, grid, learner, spec, label, base, moved))
        for training in trainings:
            if training.key not in {other.key for other in grid.trainings}:
                _add_cells(grid, training, threats, surrogates.get(training.spec.seed))
    if not grid.cells:
        left_out = [note for note in grid.notes if "left out" in note]
        if left_out:
            raise BenchError(f"nothing to run: {'; '.join(left_out)}")
        raise BenchError(
            "nothing to run: an attack needs a scenario in which something is attacked, such as clean/adv; for the "
            "accuracy without any (clean/clean), use --attack none"
        )
    return grid


def build_grids(
    runs: Sequence[RunSpec], registry: Registry, data_root: Path | None,
    told: Sequence[Callable[[BenchError], BenchError]] = (),
) -> list[Grid]:  # fmt: skip
    """Resolve the parts of a suite into their grids.

    A cell that several parts have is in the first of them only; a part without any cell of its own is left out. A data
    set is loaded once.

    Args:
        runs: the parts.
        registry: the plugins.
        data_root: where data sets are.
        told: by part, adds the place in the suite's file to an error.

    Raises:
        BenchError: as of `build_grid`.
    """
    loaded: dict[str, Splits] = {}
    seen: set[str] = set()
    grids = []
    for index, run in enumerate(runs):
        try:
            with about("dataset"):
                _, dataset, _ = resolve_plugin(registry, "dataset", parse_choice(run.dataset), run.profile, data_root)
            grid = build_grid(run, registry, data_root, loaded.get(dataset.model_dump_json()))
        except BenchError as error:
            if not told or (placed := told[index](error)) is error:
                raise
            raise placed from error
        loaded[dataset.model_dump_json()] = grid.splits
        grid.cells[:] = [cell for cell in grid.cells if cell.key not in seen]
        seen |= {cell.key for cell in grid.cells}
        if grid.cells:
            grids.append(grid)
    return grids


def _check_tasks(label: str, source: TaskSource, way: int, shot: int, query: int) -> None:
    """Look at a task of a split, before attacks and learners are blamed for what is wrong with it.

    Raises:
        DataError: there are too few classes or images, or its images or labels are not what they must be.
    """
    source.check(way, shot, query)
    who = f"data set '{label}' ({source.name})"
    try:
        tasks = source.sample([0], way, shot, query)
    except (BenchError, OSError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{who} failed: {type(error).__name__}: {error}; --debug shows where") from error
    check_images(who, tasks, way)


def _check_training_tasks(label: str, learner: AnyLearner, setting: Setting, source: TaskSource) -> None:
    """Raise BenchError unless tasks of meta-training of the shape that the learner wants can be drawn."""
    tasks = learner.train_tasks(setting)
    if tasks[0] != setting.way and learner.outputs(setting) == setting.way:
        raise BenchError(
            f"learner '{label}' cannot train on {tasks[0]}-way tasks here: its network has an output for each of the "
            f"test's {setting.way} classes; learners on features (protonet) can"
        )
    try:
        source.check(*tasks)
    except DataError as error:
        raise BenchError(
            f"learner '{label}' trains on {tasks[0]}-way tasks of {tasks[1]} support and {tasks[2]} query images a "
            f"class (its options train_way, train_shot, train_query): {error}"
        ) from error


def load_splits(dataset: Dataset, label: str, data_root: Path | None) -> Splits:
    """What the data set gives.

    Raises:
        BenchError: it raised, or gave something else than three splits.
    """
    try:
        with seeded(seed_from("load")):
            splits = dataset.load(data_root)
    except (BenchError, OSError, MemoryError):
        raise
    except Exception as error:  # a data set is a plugin, and may raise anything
        raise DataError(f"data set '{label}' failed: {located(error)}; --debug shows where") from error
    if not isinstance(splits, Splits):
        raise PluginError(
            f"data set '{label}' gave {type(splits).__name__} for its tasks; expected Splits(train, validation, test)"
        )
    return splits


def _base(run: RunSpec, setting: Setting, splits: Splits, dataset: PluginSpec, backbone: PluginSpec) -> dict[str, Any]:
    """What all trainings of a run share."""
    profile = get_profile(run.profile)
    return {
        "code": core_code("training"),
        "dataset": dataset,
        "fingerprint": "+".join(source.fingerprint for source in splits),
        "backbone": backbone,
        "way": setting.way,
        "shot": setting.shot,
        "query": setting.query,
        "meta_steps": run.size("meta_steps"),
        "tasks_per_step": run.size("tasks_per_step"),
        "validations": profile.validations,
        "validation_tasks": profile.validation_tasks,
        "precision": run.precision,
    }


def _way(run: RunSpec, dataset: Dataset) -> int:
    if dataset.way is not None:
        if run.way not in (None, dataset.way):
            raise BenchError(f"--way {run.way}: the data set '{dataset.name}' gives {dataset.way}-way tasks only")
        return dataset.way
    return run.size("way")


def obstacle(plugin: Any, setting: Setting) -> str | None:
    """Why a plugin cannot work in a setting, by what it says or declares; None if it can."""
    reason: str | None = plugin.obstacle(setting)
    if reason is None and isinstance(plugin, Attack) and plugin.sub_batches and setting.transductive:
        return (
            "it passes parts of a batch to the model, whose predictions depend on the whole batch (transductive); "
            "use an inductive norm, such as --backbone conv4:norm=group, or an attack that keeps the batch whole"
        )
    return reason


def _refuse(kind: str, label: str, plugin: Any, setting: Setting) -> None:
    """Raise when the plugin cannot work here; an attack on parts of a batch cannot attack a transductive model."""
    reason = obstacle(plugin, setting)
    if reason is not None:
        raise BenchError(f"{kind} '{label}' cannot run here: {reason}")


def _trainings(
    registry: Registry, grid: Grid, learner: AnyLearner, spec: PluginSpec, label: str, base: dict[str, Any],
    setting: Setting,
) -> Iterator[Training]:  # fmt: skip
    """The learner at each seed of the run, checked."""
    attack, surrogate = None, None
    wanted = learner.training_attack()
    if wanted is not None:
        attack = training_threat(registry, grid.dataset, learner, *wanted)
        _refuse("training attack", attack.label, attack.attack, setting)
    wanted_backbone = learner.surrogate_backbone()
    surrogate_spec = None
    if wanted_backbone is not None:
        surrogate, surrogate_spec, _ = resolve_plugin(registry, "backbone", parse_choice(wanted_backbone, ";"))
        _refuse("surrogate", surrogate_spec.name, surrogate, setting)
    for seed in dict.fromkeys(grid.run.seeds):
        training = TrainingSpec(
            learner=spec, attack=attack.spec if attack else None, surrogate=surrogate_spec, seed=seed, **base
        )
        yield Training(training, learner, label, grid.backbone, attack, surrogate)


def _surrogates(registry: Registry, grid: Grid, base: dict[str, Any], threats: list[Threat]) -> dict[int, Surrogate]:
    """By seed, the model on which transferred attacks are made.

    Raises:
        BenchError: it cannot work in this setting, or cannot answer one of the attacks.
    """
    text, setting = grid.run.surrogate, grid.setting
    if text is None:
        return {}
    if is_file(text):
        named = read_named(registry, text)
        _refuse("surrogate", text, named, setting)
        spec = TrainingSpec(**{**base, "backbone": named.spec.backbone}, learner=named.spec.learner, attack=None,
                            surrogate=None, seed=named.seed)  # fmt: skip
        training = Training(spec, named.learner, named.label, named.backbone)
        found = dict.fromkeys(grid.run.seeds, Surrogate(training, named.spec, named.label, named.path, named.of))
    else:
        learner, learner_spec, label = resolve_plugin(registry, "learner", parse_choice(text), grid.run.profile)
        found = {}
        for training in _trainings(registry, grid, learner, learner_spec, label, base, setting):
            spec_of = SurrogateSpec(
                learner=learner_spec, backbone=base["backbone"], trained=training.key, recipe=training.spec.recipe()
            )
            found[training.spec.seed] = Surrogate(training, spec_of, label)
    for surrogate in {each.key: each for each in found.values()}.values():
        training = surrogate.training
        own = setting._replace(transductive=training.transductive)
        _refuse("backbone of the surrogate", surrogate.label, training.backbone, own)
        _refuse("surrogate", surrogate.label, training.learner, own)
        for threat in threats:
            _refuse(f"on the surrogate {surrogate.label}, attack", threat.label, threat.attack, own)
    return found


def _add_cells(grid: Grid, training: Training, threats: list[Threat], surrogate: Surrogate | None) -> None:
    grid.trainings.append(training)
    if training.attack is not None:
        grid.note(f"{training.label} is trained against {training.attack.label} at eps {training.attack.eps.text}")
    for threat in threats:
        for name in _scenarios(threat.attack, grid.run):
            support, query = SCENARIOS[name]
            reason = _left_out(name, training, threat, surrogate)
            if reason is not None:
                grid.note(f"{threat.label} on {training.label} in {name} is left out: {reason}")
                continue
            swept = name in {"clean/adv", "clean/transfer", "poisoned/clean"}
            sweep = tuple(eps.value for eps in threat.sweep) if swept else ()
            spec = CellSpec(
                training=training.spec,
                code=core_code("evaluation"),
                attack=threat.spec.model_copy(update={"sweep": sweep}),
                support=support,
                query=query,
                surrogate=surrogate.spec if surrogate is not None and name == TRANSFER else None,
                episodes=grid.run.size("episodes"),
                checks=grid.probe_plan.digest if grid.probe_plan is not None else "",
            )
            grid.cells.append(Cell(spec.digest(), spec, training, threat, surrogate if name == TRANSFER else None))


def _scenarios(attack: Attack, run: RunSpec) -> list[str]:
    """Those of the run that an attack runs in; the one of its own for one that attacks nothing."""
    if attack.clean or attack.certifies:
        return ["clean/clean" if attack.clean else CERTIFIED]
    return [name for name in parse_scenarios(list(run.scenarios)) if name != "clean/clean"]


def _left_out(scenario: str, training: Training, threat: Threat, surrogate: Surrogate | None) -> str | None:
    """Why an attack cannot be in this scenario; None if it can."""
    support, attack = SCENARIOS[scenario][0], threat.attack
    if scenario == CERTIFIED:
        return _not_certified(attack, training.learner)
    if support in BY_HALVES and training.spec.query < 2:
        return "it is made with half of a task's queries and judged on the others; use --query 2 or more"
    if support in THROUGH_ADAPTATION and (not attack.loss_only or attack.per_task):
        return (
            "it asks for logits or takes one task at a time, and poisoning goes through the loss of the queries after "
            "adaptation alone; fgsm, pgd and apgd can"
        )
    if scenario == TRANSFER and surrogate is None:
        return "there is no --surrogate"
    if scenario == TRANSFER and surrogate is not None and training.key in (surrogate.key, surrogate.of):
        return "it is itself the surrogate"
    return None


def _not_certified(attack: Attack, learner: AnyLearner) -> str | None:
    if not attack.certifies:
        return "it proves nothing; use --attack certificate"
    if not learner.smoothing_sigma():
        return f"it certifies randomised smoothing; use --learner smoothing:base={plugin_as_typed(learner)}"
    return None
