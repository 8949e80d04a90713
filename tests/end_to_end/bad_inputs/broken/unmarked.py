"""Forgets @hookimpl."""

from robustbench_meta.plugins.learners.maml import MAML


class Mine(MAML):
    """A learner."""

    name = "mine"


def register_learners(register):
    register(Mine)
