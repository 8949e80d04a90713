"""Its hook wants what no hook is given."""

from robustbench_meta import hookimpl


@hookimpl
def register_learners(register, registry):
    register(registry)
