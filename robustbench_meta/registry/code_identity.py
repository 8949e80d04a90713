"""What identifies the code of a class that was given from Python: its source, or a version where there is none."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from types import FunctionType

from robustbench_meta.contracts import Plugin
from robustbench_meta.errors import PluginError
from robustbench_meta.registry.discovery import own_code


def class_digest(cls: type[Plugin]) -> str:
    """Changes with the source of a class and of its bases, and with their `version`.

    A class of a module is identified by the module's file, one of a notebook or script by its own text alone.

    Raises:
        PluginError: a class has neither source nor version.
    """
    contracts = Plugin.__module__.rpartition(".")[0]
    own = [base for base in cls.__mro__ if not issubclass(Plugin, base) and not base.__module__.startswith(contracts)]
    return hashlib.sha256("\0".join(map(_identity, own)).encode()).hexdigest()[:16]


def _identity(cls: type) -> str:
    version = vars(cls).get("version", "")
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    in_file = cls.__module__ != "__main__" and file is not None
    code = "".join(map(str, own_code(cls.__module__).items())) if in_file else _source(cls)
    if not code and not version:
        raise PluginError(
            f"no source was found for the class '{cls.__qualname__}', and without it nothing identifies its results: "
            "give the class a variable `version`, and change it with the code; or put the class into a file, and name "
            "its folder: plugins='FOLDER'"
        )
    return f"{cls.__module__}.{cls.__qualname__} {version} {code}"


def _source(cls: type) -> str:
    """The text of a class, or "".

    `inspect` finds no classes of notebooks, only functions, so the text is cut out of the cell of a method.
    """
    for value in vars(cls).values():
        function = inspect.unwrap(getattr(value, "__func__", value))
        if isinstance(function, FunctionType):
            try:
                lines, _ = inspect.findsource(function.__code__)
            except (OSError, TypeError):
                continue
            for node in ast.walk(ast.parse("".join(lines))):
                if not isinstance(node, ast.ClassDef) or node.name != cls.__name__:
                    continue
                if node.lineno <= function.__code__.co_firstlineno <= (node.end_lineno or 0):
                    first = min((each.lineno for each in node.decorator_list), default=node.lineno)
                    return textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
    try:
        return textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return ""
