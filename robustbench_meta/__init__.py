"""How well do few-shot learners hold up when someone attacks them, and is that number to be believed?

What is here is loaded when it is first used: importing the package alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from robustbench_meta.errors import BenchError
from robustbench_meta.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["BenchError", "Results", "__version__", "evaluate", "hookimpl", "load_model", "load_results", "run"]
_LATE = {
    "Results": "reporting.results", "evaluate": "api", "load_model": "zoo", "load_results": "reporting.results",
    "run": "api",
}  # fmt: skip
"""Where what needs torch is."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
