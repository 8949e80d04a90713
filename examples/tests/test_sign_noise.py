"""The plugin keeps the contract of its kind: one test a clause. What else it promises, test below."""

from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_meta.registry.registry import load_registry
from robustbench_meta.testing import checks_of

FOUND = load_registry(Path(__file__).parent.parent)  # the folder of sign_noise.py, as `bench` finds it
SignNoise = FOUND.get("attack", "sign-noise")


@pytest.mark.parametrize("check", checks_of(SignNoise, registry=FOUND), ids=str)
def test_contract(check: Callable[[], None]) -> None:
    """Each clause says, if it is broken, what was seen and what to do."""
    check()
