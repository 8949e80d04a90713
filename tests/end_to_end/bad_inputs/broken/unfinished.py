"""Registers a learner that does not define all that one must."""

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Learner


class Unfinished(Learner):
    """Adapts, and that is all."""

    name = "unfinished"

    def adapt(self, model, state, support, **settings):
        return state


@hookimpl
def register_learners(register):
    register(Unfinished)
