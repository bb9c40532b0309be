"""Claimed jobs as values, and how the reply of the `claim` script is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fmplex_broker.specs.vfm import Targets
from fmplex_broker.wire.messages import Flow, Payload

CLAIM_ROOM, CLAIM_FLOWS = 256, 64
Order = Literal["fair", "arrival"]


@dataclass(slots=True)
class Claimed:
    """One job in this worker's hands. `deadline_ms` is on the server's clock; `attempts` counts this delivery; `payload` is empty
    if it has waited longer than that is kept. `stored`: what the broker keeps for it, as the scripts spell it. `spent`: what it
    has cost, in the units of which `units` is an estimate, and `tokens`: what its vFM's rate is charged (None: just that)."""

    flow: Flow
    entry: str
    job: str
    inbox: str
    version: str
    units: int
    deadline_ms: int
    payload: Payload
    attempts: int
    stored: str = ""
    spent: float | None = None
    tokens: int | None = None

    @property
    def enqueued_ms(self) -> int:
        """Time at which the job was added, ms on the server's clock (the first half of a stream id)."""
        return self.arrival[0]

    @property
    def arrival(self) -> tuple[int, int]:
        """`enqueued_ms`, then the place among the jobs of its flow of that ms; across flows one ms has no order."""
        ms, _, number = self.entry.partition("-")
        return int(ms), int(number)

    @property
    def address(self) -> str:
        """The job's flow as the scripts spell it: `class:vfm`."""
        return f"{self.flow.cls}:{self.flow.vfm}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of its own that the broker keeps for it."""
        own, _, _ = self._told.partition(" ")
        return int(own or 0)

    @property
    def part_sizes(self) -> dict[str, int]:
        """Bytes of the parts that it shares with other jobs, by their ids."""
        _, _, parts = self._told.partition(" ")
        named = (part.split(":") for part in parts.split())
        return {name: int(size) for name, size in named}

    @property
    def _told(self) -> str:
        return self.stored.partition("|")[0]  # behind it is a key that callers have made


class Terms(NamedTuple):
    """Operating values of a vFM."""

    weight: float
    targets: Targets = Targets()


@dataclass(frozen=True, slots=True)
class Claim:
    """Outcome of one claim. `lost`: the lease is gone, start again under a new id; `stale`: a recovery has overtaken this claim.

    `more`: claim again rather than sleep. `rest`: for each flow looked at, whether its stream has more undelivered jobs.
    `terms`: of the vFMs of these flows. `wait_ms` > 0: jobs whose vFM is resident elsewhere may be had after so long.
    """

    state: Literal["ok", "lost", "stale"]
    jobs: list[Claimed]
    more: bool
    rest: dict[Flow, bool]
    terms: dict[str, Terms]
    wait_ms: int


def read_claim(reply: Any, order: Order) -> Claim:
    """Read the reply of the `claim` script. Large payloads are not in it (their jobs come with empty ones), nor shared parts."""
    state, flows, more, wait = reply
    claim = Claim(state.decode(), [], bool(more), {}, {}, int(wait))
    for name, attempts, entries, rest, weight, *targets in flows:
        cls, _, vfm = name.decode().partition(":")
        flow = Flow(vfm, cls)
        claim.jobs.extend(
            _claimed(flow, entry, fields, n) for n, (entry, fields) in zip(attempts, entries, strict=True)
        )
        claim.terms[vfm] = Terms(float(weight), Targets(*map(float, targets)))
        if rest >= 0:
            claim.rest[flow] = rest == 1
    if order == "arrival":
        claim.jobs.sort(key=lambda job: job.arrival)
    return claim


def _claimed(flow: Flow, entry: bytes, f: list[Any], attempts: int) -> Claimed:
    # Fields come in the order enqueue.lua writes them: j c g u t d b s.
    job, inbox, version, units, deadline, payload, stored = f[1], f[3], f[5], f[7], f[9], f[11], f[15]
    return Claimed(
        flow,
        entry.decode(),
        job.decode(),
        inbox.decode(),
        version.decode(),
        int(units),
        int(deadline),
        payload,
        attempts,
        stored.decode(),
    )
