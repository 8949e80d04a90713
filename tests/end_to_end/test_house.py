"""What holds for the source as a whole: one name, one thing; tests that stand on their own."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {"add", "card", "evaluate", "list_data", "main", "plugins", "run"}
"""Commands are called after the function that does what they are for."""


def trees(folder):
    found = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert len(found) > 50
    return found


def test_no_public_name_is_defined_in_two_modules():
    places = defaultdict(set)
    for path, tree in trees("robustbench_meta").items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].add(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1 and name not in COMMANDS} == {}


def test_no_test_file_imports_from_another_one():
    for path, tree in trees("tests").items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("test_")], path
