"""Trackers: plugins that keep what is told of a run in a tool for experiments, where one asks for it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustbench_meta.contracts import Plugin
from robustbench_meta.errors import BenchError, PluginError, brief
from robustbench_meta.options import parse_choice
from robustbench_meta.runtime.digest import digest_of

if TYPE_CHECKING:
    from robustbench_meta.registry import Registry


class Tracker(Plugin):
    """Hears a run's events, if the run says `--track NAME[:…]`."""

    @abstractmethod
    def listener(self) -> object:
        """An object for one run, whose methods are event hooks, each marked with `@hookimpl`; it writes nothing yet.

        Raises:
            BenchError: what it needs is missing, and what to install.
        """


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


def cell_key(cell: Mapping[str, Any]) -> str:
    """The key of a cell that failed, or of its training, from the event's `cell` or `cell["training"]`."""
    return digest_of(cell)


def cell_title(spec: Mapping[str, Any], attack: str, eps: str) -> str:
    """`pgd eps=0.1 clean/adv`: what tells a cell from others of its training; the scenario is that of its `spec`."""
    return f"{attack} eps={eps} {spec['support']}/{spec['query']}"


def results_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a finished cell under the names of the leaderboard's columns, but for those that are NaN."""
    from robustbench_meta.leaderboard import success_rate  # noqa: PLC0415  # with pandas, which few commands need
    from robustbench_meta.records import unpack  # noqa: PLC0415
    from robustbench_meta.statistics import mean_and_ci95  # noqa: PLC0415  # with scipy

    clean, robust = unpack(record["clean"]), unpack(record["robust"])
    clean_accuracy, clean_ci95 = mean_and_ci95(clean.mean(1))
    robust_accuracy, robust_ci95 = mean_and_ci95(robust.mean(1))
    found = {
        "clean_accuracy": clean_accuracy,
        "clean_ci95": clean_ci95,
        "robust_accuracy": robust_accuracy,
        "robust_ci95": robust_ci95,
        "attack_success_rate": success_rate(clean, robust),
        **record["timings"],
    }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def settings_of(spec: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What decides a training, flat: `learner.alpha`, `way`, `meta_steps`, … from its `spec`."""
    found: dict[str, Any] = {}
    for part in ("learner", "dataset", "backbone"):
        found[part] = spec[part]["name"]
        found |= {f"{part}.{name}": value for name, value in spec[part]["options"].items()}
    found |= {name: value for name, value in spec.items() if not isinstance(value, dict | list)}
    if spec["attack"] is not None:
        found |= {"training_attack": spec["attack"]["plugin"]["name"], "training_eps": spec["attack"]["eps"]}
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in found.items()}
    return {name: value for name, value in plain.items() if name not in {"attack", "surrogate", "protocol"}}
