"""One reading of the fleet, as plain values. Pure; `fmplex_broker.streams.fleet` makes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.wire.stats import WorkerStats


@dataclass(slots=True)
class Depth:
    """Jobs of one vFM over all classes: `waiting` for a worker, `pending` in a worker's hands, age of the oldest in ms, `nbytes`
    of them all in the broker."""

    waiting: int = 0
    pending: int = 0
    oldest_ms: int = 0
    nbytes: int = 0


@dataclass(slots=True)
class Stored:
    """Bytes of all jobs of a backbone in the broker, and how many they may be at most."""

    nbytes: int
    most: int


@dataclass(slots=True)
class FleetView:
    """One reading. `now_ms`: server time; `registered`: how many vFMs there are; `vfms`: the first few hundred of them by name
    and all on which anything happens; `depths`: of vFMs that have jobs, by name; `stored`: by backbone."""

    now_ms: int
    registered: int = 0
    workers: list[WorkerStats] = field(default_factory=list)
    vfms: list[VfmStatus] = field(default_factory=list)
    depths: dict[str, Depth] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
