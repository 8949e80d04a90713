"""Profiles: named defaults for how much work a run is. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from robustbench_meta.errors import BenchError, unknown


@dataclass(frozen=True)
class Profile:
    """What the options that nobody typed are."""

    about: str
    way: int
    shot: int
    query: int
    meta_steps: int
    tasks_per_step: int
    episodes: int
    validations: int
    """How often the checkpoint is judged on validation tasks, evenly over meta-training."""
    validation_tasks: int
    backbone: Mapping[str, str] = field(default_factory=dict)
    """Options of the backbone, where it has them."""
    dataset: Mapping[str, str] = field(default_factory=dict)
    """Options of the data set, where it has them."""
    learner: Mapping[str, str] = field(default_factory=dict)
    """Options of the learners, where they have them."""


PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        "seconds; for tests, its numbers mean nothing",
        way=5, shot=1, query=3, meta_steps=10, tasks_per_step=4, episodes=10, validations=2, validation_tasks=8,
        backbone={"width": "8"},
    ),
    "quick": Profile(
        "about two minutes on two cores; a real result",
        way=5, shot=1, query=5, meta_steps=450, tasks_per_step=4, episodes=200, validations=4, validation_tasks=64,
        backbone={"width": "32"},
    ),
    "paper": Profile(
        "MAML's published recipe for Omniglot (Finn et al. 2017): conv4-64 with batch norm (transductive), rotations "
        "as classes, 32 tasks, 40,000 meta-steps, 600 episodes",
        way=5, shot=1, query=15, meta_steps=40_000, tasks_per_step=32, episodes=600, validations=40,
        validation_tasks=200, backbone={"width": "64", "norm": "batch"}, dataset={"rotations": "true"},
        learner={"test_steps": "10"},
    ),
}  # fmt: skip


def get_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        BenchError: unknown name.
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise BenchError(unknown("profile", name, PROFILES)) from None
