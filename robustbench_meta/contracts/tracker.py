"""Trackers: plugins that log a run to an experiment tracker."""

from __future__ import annotations

from abc import abstractmethod

from robustbench_meta.contracts.plugin import Plugin


class Tracker(Plugin):
    """Hears a run's events, if the run says `--track NAME[:…]`."""

    @abstractmethod
    def listener(self) -> object:
        """An object for one run, whose methods are event hooks, each marked with `@hookimpl`; it writes nothing yet.

        Raises:
            BenchError: what it needs is missing, and what to install.
        """
