"""The gallery: for each attack, the same images clean, attacked and as a difference, and what each learner saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from robustbench_meta.evaluation.gallery import ExampleEpisode, ExampleImage, gallery_of
from robustbench_meta.reporting.terminal.layout import sides, threat
from robustbench_meta.results.tables import PLACE, THREAT, eps_of

ROOM = 6_000_000
"""Bytes of pictures that the page may hold."""
_WIDTH = 72
"""Of an image on the page, in pixels."""


class LearnerExamples(NamedTuple):
    """One learner's pictures under an attack."""

    learner: str
    seed: int
    pictures: list[ExampleImage]


@dataclass(frozen=True)
class ExampleGrid:
    """What one attack does at one threat: the images that all learners share, and each learner's own."""

    told: dict[str, Any]
    attack: str
    heading: str
    shared: list[ExampleImage]
    exhibits: list[LearnerExamples]
    size: tuple[int, int]
    """Width and height of an image on the page."""

    @property
    def fooled(self) -> int:
        """Of the queries that are shown, how many the attack turned from right to wrong, over all learners."""
        return sum(bool(picture.fooled) for each in self.exhibits for picture in each.pictures)

    @property
    def shown(self) -> int:
        """How many queries are shown, over all learners."""
        return sum(picture.fooled is not None for each in self.exhibits for picture in each.pictures)


class ExampleSection(NamedTuple):
    """All walls, and what was left out for want of room."""

    walls: list[ExampleGrid]
    cells: int
    left_out: int
    cut: str
    """What was left out, in words; empty if nothing was."""
    most: float
    """The largest change of a pixel that is shown."""

    @property
    def first(self) -> list[ExampleGrid]:
        """Those of the first scenario, at any ε."""
        return [wall for wall in self.walls if _but_eps(wall.told) == _but_eps(self.walls[0].told)]

    @property
    def opened(self) -> ExampleGrid:
        """The one that is unfolded at first: of the first scenario's, the first attack at the greatest ε."""
        return max(self.first, key=lambda wall: eps_of(wall.told))


def exhibition(groups: Iterable[pd.DataFrame], records: Mapping[str, Mapping[str, Any]]) -> ExampleSection:
    """The pictures of the first seed of each cell, as far as there are any and they fit.

    Args:
        groups: the rows of each table of the leaderboard.
        records: by key.
    """
    walls = [wall for rows in groups for wall in _walls(rows, records)]
    cells = sum(len(wall.exhibits) for wall in walls)
    cut = ""
    if _bytes(walls) > ROOM:
        walls, cut = _largest(walls), "of several ε the largest is shown"
    if _bytes(walls) > ROOM:
        walls, cut = [_fewer(wall, 3) for wall in walls], "of several ε the largest is shown, and three images of it"
    if _bytes(walls) > ROOM:
        kept, used = [], 0
        for wall in walls:
            used += _bytes([wall])
            kept += [wall] if used <= ROOM else []
        walls, cut = kept, f"{cut}; later attacks are left out"
    distances = [picture.linf for wall in walls for each in wall.exhibits for picture in each.pictures]
    left_out = cells - sum(len(wall.exhibits) for wall in walls)
    return ExampleSection(walls, cells, left_out, cut, max(distances, default=0.0))


def _walls(rows: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> Iterable[ExampleGrid]:
    for attack, part in rows.groupby("attack", sort=False):
        found: dict[str, tuple[LearnerExamples, ExampleEpisode]] = {}
        for row in part.sort_values("seed", kind="stable").to_dict("records"):
            gallery = gallery_of(records[str(row["spec_hash"])])
            if gallery is not None and row["learner"] not in found:
                name = str(row["learner"])
                found[name] = LearnerExamples(name, int(row["seed"]), gallery.pictures), gallery
        if found:
            told = {name: part[name].iloc[0] for name in [*PLACE, *THREAT]}
            yield from _hung(told, str(attack), list(found.values()))


def _hung(
    told: dict[str, Any], attack: str, found: Sequence[tuple[LearnerExamples, ExampleEpisode]]
) -> Iterable[ExampleGrid]:
    """Learners whose clean images are the same share a wall; others, of other episodes, have walls of their own."""
    by_images: dict[tuple[str, ...], list[tuple[LearnerExamples, ExampleEpisode]]] = {}
    for example_of, gallery in found:
        by_images.setdefault(tuple(picture.clean for picture in example_of.pictures), []).append((example_of, gallery))
    for group in by_images.values():
        _, height, width = group[0][1].shape
        size = _WIDTH, max(1, round(_WIDTH * height / width))
        exhibits = [example_of for example_of, _ in group]
        yield ExampleGrid(told, attack, f"{threat(told)} · {sides(told)}", exhibits[0].pictures, exhibits, size)


def _bytes(walls: Iterable[ExampleGrid]) -> int:
    return sum(
        sum(len(picture.clean) for picture in wall.shared)
        + sum(
            len(picture.adversarial or "") + len(picture.difference or "")
            for each in wall.exhibits for picture in each.pictures
        )
        for wall in walls
    )  # fmt: skip


def _largest(walls: Sequence[ExampleGrid]) -> list[ExampleGrid]:
    """Of walls that differ in ε alone, the one of the largest, as its images show."""
    kept: dict[tuple[Any, ...], ExampleGrid] = {}
    for wall in walls:
        same = (*_but_eps(wall.told), wall.attack)
        if same not in kept or _strength(wall) >= _strength(kept[same]):
            kept[same] = wall
    return list(kept.values())


def _but_eps(told: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(told[name] for name in [*PLACE, *THREAT] if name != "eps")


def _strength(wall: ExampleGrid) -> float:
    """The largest change of a pixel on a wall, which grows with ε."""
    return max(picture.linf for each in wall.exhibits for picture in each.pictures)


def _fewer(wall: ExampleGrid, most: int) -> ExampleGrid:
    """A wall with its first images only, of queries and of support images each."""
    places = [
        place for role in ("query", "support")
        for place in [place for place, picture in enumerate(wall.shared) if picture.role == role][:most]
    ]  # fmt: skip
    exhibits = [each._replace(pictures=[each.pictures[place] for place in places]) for each in wall.exhibits]
    return replace(wall, shared=[wall.shared[place] for place in places], exhibits=exhibits)
