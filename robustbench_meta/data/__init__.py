"""Data on disk: where it lies, how it gets there, and how it is read without trusting it."""

from robustbench_meta.data.library import Progress, Row, add, download_omniglot, list_data
from robustbench_meta.data.root import data_root

__all__ = ["Progress", "Row", "add", "data_root", "download_omniglot", "list_data"]
