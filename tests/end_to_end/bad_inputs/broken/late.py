"""Promises a learner, and cannot make it."""

from robustbench_meta import hookimpl


def load():
    import a_package_that_is_not_there  # noqa: F401


@hookimpl
def register_learners(register):
    register.later("late", load)
