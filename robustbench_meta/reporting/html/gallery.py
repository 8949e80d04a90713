"""The gallery: for each attack, the same images clean, attacked and as a difference, and what each learner saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from robustbench_meta.evaluation.gallery import ExampleEpisode, ExampleImage, gallery_of
from robustbench_meta.reporting.wording import sides, threat
from robustbench_meta.results.tables import SETTING, THREAT, eps_of

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
    learners: list[LearnerExamples]
    size: tuple[int, int]
    """Width and height of an image on the page."""

    @property
    def fooled(self) -> int:
        """Of the queries that are shown, how many the attack turned from right to wrong, over all learners."""
        return sum(bool(picture.fooled) for each in self.learners for picture in each.pictures)

    @property
    def shown(self) -> int:
        """How many queries are shown, over all learners."""
        return sum(picture.fooled is not None for each in self.learners for picture in each.pictures)


class ExampleSection(NamedTuple):
    """All grids, and what was left out for want of room."""

    grids: list[ExampleGrid]
    cells: int
    left_out: int
    cut: str
    """What was left out, in words; empty if nothing was."""
    most: float
    """The largest change of a pixel that is shown."""

    @property
    def first(self) -> list[ExampleGrid]:
        """Those of the first scenario, at any ε."""
        return [grid for grid in self.grids if _but_eps(grid.told) == _but_eps(self.grids[0].told)]

    @property
    def opened(self) -> ExampleGrid:
        """The one that is unfolded at first: of the first scenario's, the first attack at the greatest ε."""
        return max(self.first, key=lambda grid: eps_of(grid.told))


def example_section(groups: Iterable[pd.DataFrame], records: Mapping[str, Mapping[str, Any]]) -> ExampleSection:
    """The pictures of the first seed of each cell, as far as there are any and they fit.

    Args:
        groups: the rows of each table of the leaderboard.
        records: by key.
    """
    grids = [grid for rows in groups for grid in _grids(rows, records)]
    cells = sum(len(grid.learners) for grid in grids)
    cut = ""
    if _bytes(grids) > ROOM:
        grids, cut = _largest(grids), "of several ε the largest is shown"
    if _bytes(grids) > ROOM:
        grids, cut = [_fewer(grid, 3) for grid in grids], "of several ε the largest is shown, and three images of it"
    if _bytes(grids) > ROOM:
        kept, used = [], 0
        for grid in grids:
            used += _bytes([grid])
            kept += [grid] if used <= ROOM else []
        grids, cut = kept, f"{cut}; later attacks are left out"
    distances = [picture.linf for grid in grids for each in grid.learners for picture in each.pictures]
    left_out = cells - sum(len(grid.learners) for grid in grids)
    return ExampleSection(grids, cells, left_out, cut, max(distances, default=0.0))


def _grids(rows: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]) -> Iterable[ExampleGrid]:
    for attack, part in rows.groupby("attack", sort=False):
        found: dict[str, tuple[LearnerExamples, ExampleEpisode]] = {}
        for row in part.sort_values("seed", kind="stable").to_dict("records"):
            gallery = gallery_of(records[str(row["spec_hash"])])
            if gallery is not None and row["learner"] not in found:
                name = str(row["learner"])
                found[name] = LearnerExamples(name, int(row["seed"]), gallery.pictures), gallery
        if found:
            told = {name: part[name].iloc[0] for name in [*SETTING, *THREAT]}
            yield from _hung(told, str(attack), list(found.values()))


def _hung(
    told: dict[str, Any], attack: str, found: Sequence[tuple[LearnerExamples, ExampleEpisode]]
) -> Iterable[ExampleGrid]:
    """Learners whose clean images are the same share a grid; others, of other episodes, have grids of their own."""
    by_images: dict[tuple[str, ...], list[tuple[LearnerExamples, ExampleEpisode]]] = {}
    for example, gallery in found:
        by_images.setdefault(tuple(picture.clean for picture in example.pictures), []).append((example, gallery))
    for group in by_images.values():
        _, height, width = group[0][1].shape
        size = _WIDTH, max(1, round(_WIDTH * height / width))
        learners = [example for example, _ in group]
        yield ExampleGrid(told, attack, f"{threat(told)} · {sides(told)}", learners[0].pictures, learners, size)


def _bytes(grids: Iterable[ExampleGrid]) -> int:
    return sum(
        sum(len(picture.clean) for picture in grid.shared)
        + sum(
            len(picture.adversarial or "") + len(picture.difference or "")
            for each in grid.learners for picture in each.pictures
        )
        for grid in grids
    )  # fmt: skip


def _largest(grids: Sequence[ExampleGrid]) -> list[ExampleGrid]:
    """Of grids that differ in ε alone, the one of the largest, as its images show."""
    kept: dict[tuple[Any, ...], ExampleGrid] = {}
    for grid in grids:
        same = (*_but_eps(grid.told), grid.attack)
        if same not in kept or _strength(grid) >= _strength(kept[same]):
            kept[same] = grid
    return list(kept.values())


def _but_eps(told: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(told[name] for name in [*SETTING, *THREAT] if name != "eps")


def _strength(grid: ExampleGrid) -> float:
    """The largest change of a pixel in a grid, which grows with ε."""
    return max(picture.linf for each in grid.learners for picture in each.pictures)


def _fewer(grid: ExampleGrid, most: int) -> ExampleGrid:
    """A grid with its first images only, of queries and of support images each."""
    places = [
        place for role in ("query", "support")
        for place in [place for place, picture in enumerate(grid.shared) if picture.role == role][:most]
    ]  # fmt: skip
    learners = [each._replace(pictures=[each.pictures[place] for place in places]) for each in grid.learners]
    return replace(grid, shared=[grid.shared[place] for place in places], learners=learners)
