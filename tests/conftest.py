"""Shared by all tests: shapes are checked while they run, and the machine's caches are left alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a process that compiles all modules anew begins 0.5 s later
os.environ.setdefault("ROBUSTBENCH_META_CACHE", str(Path(tempfile.gettempdir()) / "robustbench_meta-test-cache"))
install_import_hook(
    [
        "robustbench_meta.contracts.tasks",
        "robustbench_meta.contracts.threat_model",
        "robustbench_meta.evaluation.statistics",
    ],
    "beartype.beartype",
)

import torch  # noqa: E402  # after the import hook

torch.set_num_threads(1)
hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is slow at times
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def registry():
    from robustbench_meta.registry.registry import load_registry

    return load_registry(local=False)
