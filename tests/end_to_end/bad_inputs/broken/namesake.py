"""Brings a learner of a name that there is already."""

from robustbench_meta import hookimpl
from robustbench_meta.plugins.learners.maml import MAML


class Other(MAML):
    """Another MAML."""

    name = "maml"


@hookimpl
def register_learners(register):
    register(Other)
