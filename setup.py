"""The long description of the distribution; all else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")


def without_relative_links(text: str) -> str:
    """Markdown whose links into the checkout are plain text: a package index could not follow them."""
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:)[^)\s]*\)", r"\1", text)


setup(long_description=without_relative_links(README), long_description_content_type="text/markdown")
