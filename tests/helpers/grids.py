"""A small grid."""

import torch

from robustbench_meta.experiment.grid import prepare
from robustbench_meta.experiment.spec import RunSpec

CPU = torch.device("cpu")


def small(registry, **given):
    spec = {"profile": "smoke", "learners": ("maml", "protonet"), "attacks": ("none", "fgsm"), "scenarios": ("all",)}
    return prepare(RunSpec.read(**{**spec, **given}), registry, None)
