"""Registers a learner with a name that cannot be typed."""

from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML


class Mine(MAML):
    """A learner."""

    name = "My learner"


@hookimpl
def register_learners(register):
    register(Mine)
