"""One reading of the fleet, as plain values. Pure; `fmplex_broker.streams.fleet` makes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.wire.messages import Flow
from fmplex_broker.wire.stats import WorkerStats


@dataclass(slots=True)
class Depth:
    """Jobs of one flow: `waiting` for a worker, `pending` in a worker's hands, age of the oldest in ms; `queued` ever, and
    `ended`, answered or cancelled, of these."""

    waiting: int = 0
    pending: int = 0
    oldest_ms: int = 0
    queued: int = 0

    @property
    def ended(self) -> int:
        """Jobs that are gone again."""
        return self.queued - self.waiting - self.pending


@dataclass(slots=True)
class Stored:
    """Bytes of all jobs of a backbone in the broker, and how many they may be at most."""

    nbytes: int
    most: int


@dataclass(slots=True)
class FleetView:
    """One reading. `now_ms`: server time; `registered`: how many vFMs there are; `vfms`: the first few hundred of them by name
    and all on which anything happens; `depths`: of flows that have, or have had, jobs; `nbytes`: of the jobs of vFMs that have
    any, in the broker; `stored`: by backbone."""

    now_ms: int
    registered: int = 0
    workers: list[WorkerStats] = field(default_factory=list)
    vfms: list[VfmStatus] = field(default_factory=list)
    depths: dict[Flow, Depth] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
