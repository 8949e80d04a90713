"""Models on which transferred attacks are made: a learner trained as the others are, or a checkpoint's file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robustbench_meta.contracts import AnyLearner, Backbone, Setting
from robustbench_meta.contracts.state import feature_shape, trainable
from robustbench_meta.errors import BenchError, StorageError, brief
from robustbench_meta.experiment.checkpoints import weights_of
from robustbench_meta.experiment.spec import PluginSpec, SurrogateSpec, TrainingSpec
from robustbench_meta.registry.registry import Registry
from robustbench_meta.runtime.seeds import seeded

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class NamedModel:
    """A checkpoint's file and what it says of itself."""

    path: Path
    learner: AnyLearner
    backbone: Backbone
    spec: SurrogateSpec
    label: str
    way: int
    """Of the tasks that it was trained for."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its weights."""
    of: str | None
    """The key of the training that wrote it; None if another version did."""
    seed: int
    """Of that training: it decides what the backbone draws and freezes."""

    def obstacle(self, setting: Setting) -> str | None:
        """Why it cannot work in this setting, or its weights do not fit; None if it can."""
        reason = self.backbone.obstacle(setting) or self.learner.obstacle(setting)
        if reason is not None:
            return reason
        with seeded(0):
            module = self.backbone.build(setting.shape, self.learner.outputs(setting))
            weights = self.learner.init(trainable(module), feature_shape(module))
        if {name: tuple(weight.shape) for name, weight in weights.items()} == self.shapes:
            return None
        return f"its weights are for other tasks (it was trained {self.way}-way) or other images than these"


def is_file(text: str) -> bool:
    """Whether a surrogate, as typed, is meant as a checkpoint's file."""
    return text.endswith(SUFFIX) or Path(text).is_file()


def read_named(registry: Registry, text: str) -> NamedModel:
    """The learner and backbone of a checkpoint that a run has written (`results/checkpoints/HASH.safetensors`).

    Raises:
        BenchError: the file is missing, damaged, or not a checkpoint of ours; or its plugins are not here.
    """
    path = Path(text)
    try:
        data = path.read_bytes()
        weights, about = weights_of(data)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        learner, learner_spec = _plugin(registry, "learner", about["learner"])
        backbone, backbone_spec = _plugin(registry, "backbone", about["backbone"])
        way, seed = int(about["way"]), int(about["seed"])
    except OSError as error:
        raise BenchError(
            f"--surrogate {text}: cannot be read ({error.strerror or error}); expected a learner, or a checkpoint from "
            f"a results folder, such as results/checkpoints/HASH{SUFFIX}"
        ) from error
    except (StorageError, KeyError, TypeError, ValueError) as error:
        why = f"{brief(error)}"
        if isinstance(error, StorageError):
            why = str(error).removeprefix("it is damaged (").removesuffix(")")
        raise BenchError(
            f"--surrogate {text}: not a checkpoint of robustbench_meta, or damaged ({why}); "
            f"expected one from a results folder, such as results/checkpoints/HASH{SUFFIX}"
        ) from error
    trained = surrogate_key(data)
    spec = SurrogateSpec(learner=learner_spec, backbone=backbone_spec, trained=trained)
    label = f"{learner.name} ({trained.split()[1][:8]})"
    return NamedModel(path, learner, backbone, spec, label, way, shapes, _training_key(about), seed)


def surrogate_key(data: bytes) -> str:
    """What identifies a checkpoint's file, by its content."""
    return f"file {hashlib.sha256(data).hexdigest()[:16]}"


def _training_key(about: Mapping[str, Any]) -> str | None:
    try:
        return TrainingSpec.model_validate(about).digest()
    except ValidationError:
        return None


def _plugin(registry: Registry, kind: str, told: Mapping[str, Any]) -> tuple[Any, PluginSpec]:
    plugin = registry.make(kind, told["name"], told["options"])
    code = registry.code(kind, plugin)
    return plugin, PluginSpec(name=told["name"], options=plugin.model_dump(mode="json"), code=code)
