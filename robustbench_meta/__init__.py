"""How well do few-shot learners hold up when someone attacks them, and is that number to be believed?"""

from robustbench_meta.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]
