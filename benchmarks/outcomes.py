"""What a run of the benchmark found, as plain data that can be written, read again and shown."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["ours", "peer", "reference", "limit"]
"""Who is measured. `peer`: another way of doing the same, what our ratio is taken to. `reference`: shown beside it.
`limit`: the matrix product that says what the machine can do."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Timed(_Data):
    """One contestant's times, one a repetition, in the order of the repetitions."""

    name: str
    role: Role
    seconds: list[float]
    difference: float | None = None
    """How far its result is from ours: see `Outcome.compared`; None if it is not compared."""
    difference_float64: float | None = None
    """The same on a small float64 case."""
    agrees: bool = True
    """Whether its result is ours within the tolerance: a contestant that computes something else is not compared."""

    @property
    def median(self) -> float:
        """The median of its times."""
        return median(self.seconds)


class Point(_Data):
    """One point of a scaling curve."""

    value: int
    seconds: float
    peak_mib: float | None = None
    """The most memory that our processes had together (CPU), or that torch had allocated (CUDA)."""
    base_mib: float | None = None
    """The same before the work began: Python, torch and the data."""


class Goal(_Data):
    """A figure that was promised."""

    what: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


class Outcome(_Data):
    """One case: who took how long, for how much work, and whether all found the same."""

    case: str
    group: str
    title: str
    skipped: str | None = None
    """Why it was not measured."""
    timed: list[Timed] = []
    compared: str = ""
    """What `difference` is."""
    unit: str = ""
    """What the times are of, unless it is the whole piece of work: 'meta-step'."""
    gflop: float | None = None
    """The floating-point work in convolutions and matrix products (see `benchmarks.flops`), in 10⁹."""
    limit_gflop: float | None = None
    """The same of the matrix product that was timed as the machine's limit."""
    points: list[Point] = []
    axis: str = ""
    """What the points are along: 'tasks'."""
    figures: dict[str, int | float | str] = {}
    goals: list[Goal] = []
    notes: list[str] = []
    measured: str = ""
    """When, in UTC."""

    def by_role(self, role: Role) -> list[Timed]:
        """The contestants of one role."""
        return [timed for timed in self.timed if timed.role == role]

    @property
    def ours(self) -> Timed | None:
        """Our times, if there are any."""
        return next(iter(self.by_role("ours")), None)

    @property
    def best_peer(self) -> Timed | None:
        """The fastest of the peers that found the same as we."""
        return min((peer for peer in self.by_role("peer") if peer.agrees), key=lambda peer: peer.median, default=None)

    def ratio(self, to: Timed) -> float:
        """Our median over another's: below 1 we are faster."""
        assert self.ours is not None
        return self.ours.median / to.median

    def spread(self, to: Timed) -> tuple[float, float]:
        """The lowest and the highest ratio of one repetition."""
        assert self.ours is not None
        ratios = [ours / theirs for ours, theirs in zip(self.ours.seconds, to.seconds, strict=True)]
        return min(ratios), max(ratios)

    @property
    def matmul_rate(self) -> float | None:
        """GFLOP/s of the machine's matrix product during this case."""
        limit = next(iter(self.by_role("limit")), None)
        return None if limit is None or self.limit_gflop is None else self.limit_gflop / limit.median

    def share(self, timed: Timed) -> float | None:
        """Which share of the matrix product's rate a contestant reaches on the counted work."""
        if self.gflop is None or self.matmul_rate is None:
            return None
        return self.gflop / timed.median / self.matmul_rate


class Machine(_Data):
    """What it was measured on."""

    device: str
    cpu: str
    cores: int
    threads: int
    versions: dict[str, str]
    matmul_gflops: float


class Measurements(_Data):
    """A run of the benchmark."""

    machine: Machine
    quick: bool
    repeats: int
    outcomes: list[Outcome] = []

    def put(self, outcome: Outcome) -> None:
        """Add a case's outcome, in the place of an earlier one."""
        places = [place for place, other in enumerate(self.outcomes) if other.case == outcome.case]
        if places:
            self.outcomes[places[0]] = outcome
        else:
            self.outcomes.append(outcome)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Measurements:
        """What `write` wrote."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
