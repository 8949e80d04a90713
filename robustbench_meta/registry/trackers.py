"""Lets trackers hear the events of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustbench_meta.errors import BenchError, PluginError, brief
from robustbench_meta.options import parse_choice

if TYPE_CHECKING:
    from robustbench_meta.registry.registry import Registry
from robustbench_meta.contracts.tracker import Tracker


def attach(registry: Registry, wanted: Sequence[str]) -> None:
    """Let trackers, as typed, hear the events that this registry is told.

    Raises:
        BenchError: an unknown tracker or option, or a tracker that lacks what it needs, or fails.
    """
    for text, choice in {str(choice): choice for choice in map(parse_choice, wanted)}.items():
        tracker: Tracker = registry.make("tracker", choice.name, choice.options)
        try:
            listener = tracker.listener()
        except BenchError:
            raise
        except Exception as error:  # a tracker is a plugin, and may raise anything
            raise PluginError(f"tracker '{text}' failed to begin: {brief(error)}; leave --track {text} out") from error
        registry.listen(listener, f"tracker {text}")
