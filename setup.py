"""The packages and the long description of the distribution; all else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")


def without_relative_links(text: str) -> str:
    """Markdown whose links into the checkout are plain text: a package index could not follow them."""
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:)[^)\s]*\)", r"\1", text)


def packages() -> list[str]:
    """Those below robustbench_meta/, and the folders beside it that are installed into it."""
    beside = {
        "plugins": "plugins",
        "examples": "examples",
        "suites": "shipped_suites",
        "results/published": "published",
    }
    found = ["robustbench_meta", *(f"robustbench_meta.{name}" for name in find_packages("robustbench_meta"))]
    for folder, name in beside.items():
        below = find_namespace_packages(folder)
        found += [f"robustbench_meta.{name}", *(f"robustbench_meta.{name}.{each}" for each in below)]
    return found


setup(
    packages=packages(),
    long_description=without_relative_links(README),
    long_description_content_type="text/markdown",
)
