"""Registers an attack as a learner."""

from robustbench_meta import hookimpl
from robustbench_meta.plugins.attacks.fgsm import FGSM


@hookimpl
def register_learners(register):
    register(FGSM)
