"""Implements a hook that there is not."""

from robustbench_meta import hookimpl


@hookimpl
def register_learner(register):
    register(object)
