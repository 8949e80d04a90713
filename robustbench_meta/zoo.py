"""Checkpoints as models: load one by its file or published name, adapt it to a task, attack it, verify its rows."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from robustbench_meta.contracts import Setting
from robustbench_meta.contracts.state import State
from robustbench_meta.contracts.tasks import Batch, TaskBatch, TaskSource
from robustbench_meta.engine.engine import Engine, Plan
from robustbench_meta.engine.training import make_engine
from robustbench_meta.errors import BenchError, StorageError, unknown
from robustbench_meta.evaluation.evaluator import test_episodes
from robustbench_meta.experiment.checkpoints import (
    Trained,
    checkpoint_bytes,
    checkpoint_name,
    read_checkpoint,
    read_file,
    weights_of,
)
from robustbench_meta.experiment.grid import Grid, Training, build_grid, load_splits
from robustbench_meta.experiment.python_arguments import Folder, maybe_folder
from robustbench_meta.experiment.spec import RunSpec, TrainingSpec
from robustbench_meta.experiment.suite import Suite
from robustbench_meta.experiment.surrogates import is_file, read_named
from robustbench_meta.jobs import runner
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.jobs.runner import PreparedRun
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.atomic_files import write_bytes
from robustbench_meta.runtime.devices import choose_device
from robustbench_meta.runtime.digest import digest_of
from robustbench_meta.runtime.interrupts import Stop
from robustbench_meta.runtime.seeds import seed_from

PRINTED = 1e-4
"""What a table's four decimals leave open."""
ROUNDING = 0.005
"""By how much an accuracy may differ on another machine, where float32 is rounded otherwise."""


def published() -> dict[str, Path]:
    """The checkpoints that come with the package, by name: `glyphs/5w1s/adml`."""
    return {path.stem.replace("-", "/", 2): path for path in sorted((_home() / "checkpoints").glob("*.safetensors"))}


def _home() -> Path:
    package = Path(__file__).parent
    installed = package / "published"
    return installed if installed.is_dir() else package.parent / "results" / "published"  # in a checkout


def _read(checkpoint: str) -> tuple[Path, bytes, dict[str, Any]]:
    """Its file, what is in it, and what it says of itself."""
    if not is_file(checkpoint) and checkpoint not in published():
        raise BenchError(unknown("checkpoint", checkpoint, published(), see="bench zoo"))
    path = Path(checkpoint) if is_file(checkpoint) else published()[checkpoint]
    data = read_file(path)
    try:
        return path, data, weights_of(data)[1]
    except StorageError as error:
        why = str(error).removeprefix("it is damaged (").removesuffix(")")
        raise BenchError(
            f"{path} is not a checkpoint of robustbench_meta, or is damaged ({why}); expected one from a results "
            "folder, such as results/checkpoints/HASH.safetensors"
        ) from error


class AdaptedModel(nn.Module):
    """A learner adapted to one task: images [n, *shape] in [0, 1] → logits [n, way], differentiable in the images.

    Its parameters are what the learner made of the support set; they record no gradients.
    """

    def __init__(self, engine: Engine, state: State) -> None:
        super().__init__()
        self._engine, self._forward, self._dims = engine, state.forward, state.dims
        leaves, self._spec = pytree.tree_flatten(state.detach().tree)
        self._leaves = nn.ParameterList([nn.Parameter(leaf, requires_grad=False) for leaf in leaves])

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, way] of x [n, *shape]."""
        tree = pytree.tree_unflatten(list(self._leaves), self._spec)
        return self._engine.logits(State(tree, self._dims, self._forward), x[None])[0]


@dataclass(frozen=True)
class TrainedModel:
    """A meta-trained learner, as `load_model` gives it."""

    name: str
    """Of the learner."""
    setting: Setting
    """`shape` of an image, `way`, `shot` and `query` of a task."""
    about: Mapping[str, Any]
    """How it was trained: data set, backbone, learner, their options, meta-steps, seed."""
    training: Training
    _engine: Engine
    _theta: State
    _test: TaskSource

    def adapt(self, support_x: Tensor, support_y: Tensor, *, seed: int = 0) -> AdaptedModel:
        """Adapt to a task.

        Args:
            support_x: images [n, *shape] in [0, 1].
            support_y: labels [n] in 0 … way − 1.
            seed: of what the learner draws, if it does; the number of a test episode gives the benchmark's draws.

        Raises:
            BenchError: images of another shape, or labels that are no classes of the task.
        """
        shape, way = self.setting.shape, self.setting.way
        if tuple(support_x.shape[1:]) != shape or support_y.shape != support_x.shape[:1]:
            raise BenchError(
                f"invalid support set: expected images [n, {', '.join(map(str, shape))}] and labels [n], got "
                f"{list(support_x.shape)} and {list(support_y.shape)}"
            )
        if len(support_y) == 0 or not bool(((support_y >= 0) & (support_y < way)).all()):
            raise BenchError(f"invalid support set: expected labels from 0 to {way - 1}, got {support_y.tolist()}")
        self._engine.set_task_seeds([seed_from(self.training.spec.seed, "attack", seed)])
        support = Batch(support_x[None].clone(), support_y[None].clone())
        with torch.no_grad(), self._engine.seeded_for("adapt clean", support_x.device):
            return AdaptedModel(self._engine, self._engine.adapt(self._theta, support))

    def episode(self, number: int) -> TaskBatch:
        """A test episode of the benchmark, from 0: support and query, each with x [n, *shape] and y [n]."""
        tasks = test_episodes(self._test, self.training.spec, [number])
        return TaskBatch(*(Batch(batch.x[0], batch.y[0]) for batch in tasks))


def load_model(
    checkpoint: str | Path, *, device: str = "cpu", data_root: Folder | None = None, plugins: Folder | None = None,
    local_plugins: bool = True,
) -> TrainedModel:  # fmt: skip
    """A meta-trained learner from a checkpoint's file, or a published one by its name.

    Args:
        checkpoint: `glyphs/5w1s/adml` (`bench zoo` lists them), or such as "results/checkpoints/HASH.safetensors".
        device: where it computes, and where images must be.
        data_root: the folder with data sets; that of the checkpoint must be there.
        plugins: a folder with more plugins.
        local_plugins: False for no plugins of a folder.

    Raises:
        BenchError: there is no such checkpoint, it is damaged, or its plugins or data are not here.

    Examples:
        >>> import robustbench_meta as rbm
        >>> adml = rbm.load_model("glyphs/5w1s/adml")
        >>> support, query = adml.episode(0)
        >>> model = adml.adapt(*support)
        >>> model(query.x).shape
        torch.Size([25, 5])
    """
    where = choose_device(device)
    path, data, about = _read(str(checkpoint))
    registry = load_registry(maybe_folder(plugins), local=local_plugins)
    named = read_named(registry, str(path))
    dataset = registry.make("dataset", about["dataset"]["name"], about["dataset"]["options"])
    splits = load_splits(dataset, dataset.name, maybe_folder(data_root))
    setting = Setting(
        splits.test.shape, named.way, int(about["shot"]), int(about["query"]), dataset.loss,
        named.backbone.transductive, len(splits.train.classes),
    )  # fmt: skip
    reason = named.obstacle(setting)
    if reason is not None:
        raise BenchError(f"{path} cannot be used with {about['dataset']['name']}: {reason}")
    training = Training(TrainingSpec.model_validate(about), named.learner, named.learner.name, named.backbone)
    grid = Grid(RunSpec(), dataset, named.backbone, splits, setting, {})
    engine, like = make_engine(grid, training, where, Plan("loop", "loop", 1))
    engine.set_mode(training=False)
    theta = engine.theta({name: each.detach() for name, each in read_checkpoint(data, like).weights.items()})
    return TrainedModel(named.learner.name, setting, about, training, engine, theta, splits.test.to(where))


class VerifiedRow(NamedTuple):
    """A row of a leaderboard, and what evaluating its checkpoint gave here."""

    attack: str
    eps: str
    scenario: str
    stated: float
    found: float | None
    verdict: Literal["equal", "within rounding", "different", "not verified"]
    """The last one where more than the checkpoint is needed: a surrogate, or the attack's result at a smaller ε."""


def stated_rows(checkpoint: str) -> list[dict[str, str]]:
    """The rows, as text, that were made with a checkpoint: of the published tables, or of its own results folder.

    Raises:
        BenchError: there is no such checkpoint, or no row of it.
    """
    path, _, about = _read(checkpoint)
    return _rows(path, about)


def _rows(path: Path, about: Mapping[str, Any]) -> list[dict[str, str]]:
    is_published = path.resolve().parent == (_home() / "checkpoints").resolve()
    tables = sorted(_home().glob("*.csv")) if is_published else [path.resolve().parents[1] / "leaderboard.csv"]
    for table in tables:
        if table.is_file():
            frame = pd.read_csv(table, dtype=str, keep_default_na=False)
            rows = frame[frame["training_hash"] == digest_of(about)].to_dict("records")
            if rows:
                return [{str(name): value for name, value in row.items()} for row in rows]
    raise BenchError(f"there is no row of {path} to verify in {', '.join(map(str, tables))}")


def verified_rows(
    checkpoint: str, *, device: str = "auto", data_root: Folder | None = None, plugins: Folder | None = None,
    local_plugins: bool = True,
) -> list[VerifiedRow]:  # fmt: skip
    """Evaluate a checkpoint again, on the same episodes, and compare with each of its rows.

    Args:
        checkpoint: its file, or the name of a published one.
        device: where.
        data_root: the folder with data sets.
        plugins: a folder with more plugins.
        local_plugins: False for no plugins of a folder.

    Raises:
        BenchError: there is no row of it, it was trained otherwise than its rows say, or on other data, or a cell
            failed.
    """
    path, data, told = _read(checkpoint)
    rows = _rows(path, told)
    by_eps: dict[str, list[dict[str, str]]] = {}  # several ε in one grid would be a sweep
    for row in rows:
        if _needs_the_checkpoint_alone(row):
            by_eps.setdefault(row["eps"], []).append(row)
    where, registry = choose_device(device), load_registry(maybe_folder(plugins), local=local_plugins)
    grids: list[Grid] = []
    for group in by_eps.values():
        known = grids[0].splits if grids else None
        grids.append(build_grid(_spec_of(group, device), registry, maybe_folder(data_root), known))
        _check_same(told, grids[-1].trainings[0].spec.model_dump(mode="json"), path)
    found = _evaluated(read_checkpoint(data, None), PreparedRun(
        Suite(), grids, registry, where, maybe_folder(plugins), local_plugins, maybe_folder(data_root)
    ))  # fmt: skip
    return [_verified(row, found) for row in rows]


_Row = tuple[str, float, str]
"""Of a row or cell: attack, ε, scenario."""


def _needs_the_checkpoint_alone(row: Mapping[str, str]) -> bool:
    return row.get("warm_start", "") == "" and row.get("surrogate", "none") == "none"


def _spec_of(rows: Sequence[Mapping[str, str]], device: str) -> RunSpec:
    """The run of some rows with one ε."""
    first, sizes = rows[0], ("way", "shot", "meta_steps", "tasks_per_step", "episodes")
    attacks = (
        row["attack"] if row["threat_norm"] == "none"
        else f"{row['attack']}{',' if ':' in row['attack'] else ':'}eps={row['eps']}" for row in rows
    )  # fmt: skip
    return RunSpec.read(
        learners=(first["learner"],), attacks=tuple(dict.fromkeys(attacks)), checks=False,
        scenarios=tuple(dict.fromkeys(map(_scenario, rows))),
        dataset=first["dataset"], backbone=first["backbone"], seeds=(int(first["seed"]),), device=device,
        precision=first["precision"], query=int(first["queries"]), **{name: int(first[name]) for name in sizes},
    )  # fmt: skip


def _scenario(row: Mapping[str, str]) -> str:
    return f"{row['support']}/{row['query']}"


def _evaluated(trained: Trained, ready: PreparedRun) -> dict[_Row, float]:
    """The accuracy of each cell, with these weights in the place of a training."""
    if not ready.grids:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for key, about in {grid.trainings[0].key: grid.trainings[0].spec for grid in ready.grids}.items():
            checkpoint = checkpoint_bytes(trained, about.model_dump(mode="json"))
            write_bytes(store.root / checkpoint_name(key), checkpoint)
        summary = runner.compute(ready, store, Policy(), Stop())
        if summary.failed:
            raise BenchError(f"the checkpoint cannot be evaluated: {summary.failed[0][1]}")
        means = {each["key"]: sum(each["accuracies"]) / len(each["accuracies"]) for each in store.records()}
    cells = [cell for grid in ready.grids for cell in grid.cells]
    return {(cell.attack, float(cell.eps), f"{cell.support}/{cell.query}"): means[cell.key] for cell in cells}


def _verified(row: Mapping[str, str], found: Mapping[_Row, float]) -> VerifiedRow:
    stated, mean = float(row["robust_accuracy"]), None
    if _needs_the_checkpoint_alone(row):
        mean = found[row["attack"], float(row["eps"]), _scenario(row)]
    verdict: Any = "not verified"
    if mean is not None:
        apart = abs(stated - mean)
        verdict = "equal" if apart < PRINTED else "within rounding" if apart <= ROUNDING else "different"
    return VerifiedRow(row["attack"], row["eps"], _scenario(row), stated, mean, verdict)


def _check_same(told: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raise unless a checkpoint is of the training that its rows name, by whatever code.

    Rows do not say how often it was validated.
    """
    for name in wanted.keys() - {"code", "protocol", "validations", "validation_tasks"}:
        mine, other = (_without_code(each.get(name)) for each in (told, wanted))
        if mine != other:
            raise BenchError(f"{path} was trained otherwise than its rows say: {name} is {mine}, not {other}")


def _without_code(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_code(each) for name, each in value.items() if name != "code"}
    return value
