"""A small grid."""

import torch

from robustbench_meta.experiment.grid import build_grid
from robustbench_meta.experiment.spec import RunSpec

CPU = torch.device("cpu")


def small(registry, **given):
    spec = {"profile": "smoke", "learners": ("maml", "protonet"), "attacks": ("none", "fgsm"), "scenarios": ("all",)}
    return build_grid(RunSpec.read(**{**spec, **given}), registry, None)
