"""Square Attack: random search by the model's answers alone, on all tasks at once."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Attack, Method, Random, Setting, Victim
from robustbench_meta.contracts.attack import margin
from robustbench_meta.contracts.threat_model import Norm, ThreatModel
from robustbench_meta.hookspecs import Register
from robustbench_meta.runtime.devices import send

from .search_attack import Harm, SearchAttack, Survivors, WorstCase, direction, over_images, signs, to_edge, worse

BLOCK = 50
"""After so many queries those that are fooled are left out; so many queries' draws are made at once."""
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which of 10,000 queries the share of pixels in a square halves (paper, section 4.1)."""


class Squares(SearchAttack):
    """What both norms share."""

    source: ClassVar[str] = "Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049"
    method: ClassVar[Method] = "black-box"

    queries: int = Field(5000, ge=1, description="proposals that the model is asked about, for each image")
    p_init: float = Field(0.8, gt=0, le=1, description="share of the pixels in the first squares")
    restarts: int = Field(1, ge=1, description="searches; a later one is for what withstands those before it")

    def obstacle(self, setting: Setting) -> str | None:
        """Squares need height and width."""
        if len(setting.shape) == 3:
            return None
        return (
            f"it changes squares of pixels: it takes images (channels, height, width), not examples of shape "
            f"{setting.shape}; use an attack that takes features, such as pgd"
        )

    def stronger(self) -> Attack | None:
        """Twice the queries."""
        return self.model_copy(update={"queries": 2 * self.queries})

    def search(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """For each image of x [tasks, n, c, h, w] one that fools, or else that of the least margin.

        What the model gets wrong as it is, or at `start`, stays so. It begins at `start`, if that is given, unless the
        usual first image has a smaller margin.
        """
        worst = WorstCase(model, x, y, x if start is None else start)

        def walk(x: Tensor, y: Tensor, random: Random, found: Tensor) -> Tensor:
            return self._walk(model, x, y, threat, random, None if start is None else found)

        with torch.no_grad():
            for _ in range(self.restarts):
                worst.go_on(walk, random)
        return worst.found

    def _walk(
        self, model: Victim, x: Tensor, y: Tensor, threat: ThreatModel, random: Random, start: Tensor | None
    ) -> Tensor:
        """One search; after every `BLOCK` queries it goes on with what withstands (of a transductive model: with all).

        Its draws are for all examples, so that no example's depend on how long the others withstand.
        """
        found = self._first(x, threat, random)
        harm = _harm(model, found, y)
        if start is not None:
            found, harm = worse(start, _harm(model, start, y), found, harm, model.event_ndim)
        for done in range(1, self.queries, BLOCK):
            some = None
            if not model.transductive and y.dim() == 2:
                some = Survivors.of(harm.fooled == 0)
                if some is None:
                    break
            draws = random.uniform(x.new_empty(*y.shape, BLOCK, self._draws(x.shape[-3])))
            theirs = [x, y, found, draws, *harm]
            clean, labels, images, drawn, *judged = theirs if some is None else map(some.gather, theirs)
            now = Harm(*judged)
            for query in range(min(BLOCK, self.queries - done)):
                part = self._part(done - 1 + query)
                proposal = self._propose(clean, images, drawn[..., query, :], part, threat)
                images, now = worse(proposal, _harm(model, proposal, labels), images, now, model.event_ndim)
            found = images if some is None else some.scatter(images, found)
            harm = now if some is None else Harm(*(some.scatter(*pair) for pair in zip(now, harm, strict=True)))
        return found

    def _part(self, query: int) -> float:
        """The share of the pixels in a square at this query, by the paper's schedule stretched over all queries."""
        scaled = query * 10_000 // self.queries
        return math.ldexp(self.p_init, -sum(scaled > after for after in SCHEDULE))

    @abstractmethod
    def _first(self, x: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Where to start."""

    @abstractmethod
    def _draws(self, channels: int) -> int:
        """How many numbers a proposal draws for an image."""

    @abstractmethod
    def _propose(self, x: Tensor, now: Tensor, drawn: Tensor, part: float, threat: ThreatModel) -> Tensor:
        """Images [tasks, n, c, h, w] with another square, from uniform draws [tasks, n, draws]."""


class Square(Squares):
    """Square Attack: random search over squares of pixels that move by ε; by the model's answers alone."""

    name: ClassVar[str] = "square"

    def _first(self, x: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Vertical stripes, one pixel wide."""
        return threat.clip(x + threat.eps * signs(random.uniform(x[..., :1, :])))

    def _draws(self, channels: int) -> int:
        return 2 + channels

    def _propose(self, x: Tensor, now: Tensor, drawn: Tensor, part: float, threat: ThreatModel) -> Tensor:
        """Each channel of a square up or down by ε; the other way round where that would change nothing."""
        height, width = x.shape[-2:]
        side = max(min(round(math.sqrt(part * height * width)), height, width), 1)
        top, left = (_place(drawn[..., i], size - side) for i, size in enumerate((height, width)))
        square = (_inside(top, side, height)[..., :, None] & _inside(left, side, width)[..., None, :])[..., None, :, :]
        moves = threat.eps * signs(drawn[..., 2:])[..., None, None]
        changes = ((threat.clip(x + moves) != now) & square).flatten(-3).any(-1)
        moves = torch.where(over_images(changes, 3), moves, -moves)
        return torch.where(square, threat.clip(x + moves), now)


class SquareL2(Squares):
    """Square Attack in the L2 norm: moves the budget of one square into a bump in another, by answers alone."""

    name: ClassVar[str] = "squarel2"

    @property
    def norm(self) -> Norm:
        """L2."""
        return "l2"

    def _first(self, x: Tensor, threat: ThreatModel, random: Random) -> Tensor:
        """Five by five tiles (of sides that are no multiple of five, as many as fit), each with a bump."""
        channels, height, width = x.shape[-3:]
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        drawn = random.uniform(x.new_empty(*x.shape[:-3], 1 + channels, down, across))[..., None, None]
        tiles = _turned(side, drawn[..., :1, :, :, :, :]) * signs(drawn[..., 1:, :, :, :, :])
        tiled = tiles.transpose(-3, -2).reshape(*x.shape[:-2], down * side, across * side)
        above, before = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(x)
        delta[..., above : above + down * side, before : before + across * side] = tiled
        return to_edge(delta, x, threat, 3)

    def _draws(self, channels: int) -> int:
        return 5 + channels

    def _propose(self, x: Tensor, now: Tensor, drawn: Tensor, part: float, threat: ThreatModel) -> Tensor:
        """Algorithm 3: the second window's budget, and what is left of ε, go into a bump in the first one."""
        channels, height, width = x.shape[-3:]
        side = _odd(max(round(math.sqrt(part * height * width)), 3), min(height, width))
        down, across, down_2, across_2 = (
            _place(drawn[..., i], size - side) for i, size in enumerate((height, width, height, width))
        )
        to, source = (
            _pixels(*corner, side, width).unsqueeze(-2).expand(*x.shape[:-2], -1)
            for corner in ((down, across), (down_2, across_2))
        )
        delta = (now - x).flatten(-2)
        both = torch.zeros_like(delta).scatter(-1, to, 1.0).scatter(-1, source, 1.0)
        left = (threat.eps**2 - delta.square().sum((-2, -1), keepdim=True)).clamp_min(0) / channels
        budget = (left + (delta.square() * both).sum(-1, keepdim=True)).sqrt()
        bump = _turned(side, drawn[..., 4:5, None]).flatten(-2).unsqueeze(-2) * signs(drawn[..., 5:])[..., None]
        bump = direction(bump + direction(delta.gather(-1, to), "l2", 1), "l2", 1) * budget
        moved = delta.scatter(-1, source, 0.0).scatter(-1, to, bump)
        return to_edge(moved.view_as(x), x, threat, 3)


def _harm(model: Victim, images: Tensor, y: Tensor) -> Harm:
    """The less the margin, the worse."""
    logits = model(images)
    return Harm.of(logits.argmax(-1) != y, -margin(logits, y), model.transductive)


def _place(uniform: Tensor, last: int) -> Tensor:
    """A whole number from 0 to `last`."""
    return (uniform * (last + 1)).long().clamp_max(last)


def _inside(first: Tensor, side: int, size: int) -> Tensor:
    """Which of so many rows (or columns) are in the square [..., size]."""
    place = torch.arange(size, device=first.device)
    return (place >= first[..., None]) & (place < first[..., None] + side)


def _pixels(top: Tensor, left: Tensor, side: int, width: int) -> Tensor:
    """The places of a square's pixels in a flat image [..., side·side]."""
    along = torch.arange(side, device=top.device)
    rows, columns = top[..., None] + along, left[..., None] + along
    return (rows[..., :, None] * width + columns[..., None, :]).flatten(-2)


def _odd(side: int, most: int) -> int:
    """The next odd number, or the last one that fits."""
    side += 1 - side % 2
    return side if side <= most else most - 1 + most % 2


def _turned(side: int, uniform: Tensor) -> Tensor:
    """The bump [..., side, side], on its side where the draw [...,  1, 1] says so."""
    bump = _bump_on(side, uniform.device, uniform.dtype)
    return torch.where(uniform < 0.5, bump, bump.T)


@lru_cache
def _bump_on(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The bump where it is needed: it goes there once, not with every query."""
    return send(_bump(side).to(dtype), device)


def _bump(side: int) -> Tensor:
    """A pyramid up beside a pyramid down (eq. 2, figure 4), of length 1."""
    up, down = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    bump = torch.cat([up, -down])
    return torch.div(bump, bump.norm())


def _pyramid(height: int, width: int) -> Tensor:
    """At distance d from the middle (the larger of both axes) the sum of 1/k², k from d + 1; of length 1."""
    rows, columns = ((torch.arange(size) - size // 2).abs() for size in (height, width))
    far = torch.maximum(rows[:, None], columns)
    falls = 1 / torch.arange(1, max(height, width) // 2 + 2).double().square()
    heights = falls.flip(0).cumsum(0).flip(0)[far]
    return torch.div(heights, heights.norm().clamp_min(torch.finfo(torch.float64).tiny))


@hookimpl
def register_attacks(register: Register[Attack]) -> None:
    """Bring `square` and `squarel2`."""
    register(Square)
    register(SquareL2)
