"""A tracker in one file: a line for each finished or failed cell in cells.log, as the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from robustbench_meta import hookimpl

LOG = Path("cells.log")


@hookimpl
def cell_finished(record: Mapping[str, Any]) -> None:
    """Note the mean accuracy."""
    labels, spec = record["labels"], record["spec"]
    _note(
        f"{labels['learner']} {labels['attack']} eps={labels['eps']} {spec['support']}/{spec['query']}: "
        f"{mean(record['accuracies']):.1%}"
    )


@hookimpl
def cell_failed(cell: Mapping[str, Any], reason: str) -> None:
    """Note the reason."""
    _note(f"{cell['training']['learner']['name']} failed: {reason}")


def _note(line: str) -> None:
    with LOG.open("a", encoding="utf-8") as log:
        log.write(line + "\n")
