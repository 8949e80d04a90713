"""How a meta-training went: its history, as the records of its cells tell it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Validation(NamedTuple):
    """What was seen when a learner in training was judged on the validation tasks; accuracies are fractions."""

    step: int
    """Meta-steps until then."""
    loss: float
    """Mean over the meta-steps since the validation before, of what the learner's objective judges by `ops.loss` (for
    adversarial training, the adversarial queries); NaN if it judges nothing by that."""
    accuracy: float
    """The same."""
    validation_loss: float
    """Mean over the validation tasks: of clean queries, and of those under the training attack if there is one."""
    validation_accuracy: float
    """The same; the weights of the step at which it was highest are kept (`chosen_step` in the record)."""


def learning_curve(record: Mapping[str, Any]) -> list[Validation]:
    """The validations of the training behind a record, in order; empty if nothing was trained, or it is not known."""
    told = record.get("history")
    found = [_validation(entry) for entry in told] if isinstance(told, list) else []
    return [each for each in found if each is not None]


def learning_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Validation]]:
    """By training (a record's `training`), in the order of the records, those of which something is known."""
    found: dict[str, list[Validation]] = {}
    for record in records:
        if record["training"] not in found and (curve := learning_curve(record)):
            found[record["training"]] = curve
    return found


def _validation(entry: Any) -> Validation | None:
    """One entry of a history; None if it is not such a one: nothing else in a record depends on it."""
    try:
        judged = {"loss": math.nan, "accuracy": math.nan, **entry}
        step, *numbers = (float(judged[name]) for name in Validation._fields)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return Validation(int(step), *numbers) if math.isfinite(step) and step >= 0 else None
