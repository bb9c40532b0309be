"""Jobs and job tables as the tests of the host side make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmplex_broker.streams.claims import Claimed, Order
from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.claim_room import ClaimRoom
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.passes import PassProgress
from fmplex_worker.protocol import OnePass

PASS = 1000


@dataclass(frozen=True, slots=True)
class Encode(OnePass):
    """A prepared job that is done in one pass."""

    units: int
    digest: str = "v"
    adapter: int = 0
    head: int = 0


def claimed(n: int, units: int = 100, cls: str = INTERACTIVE, deadline_ms: int = 10_000) -> Claimed:
    return Claimed(Flow("a", cls), f"{n}-0", f"job{n}", "in", "v", units, deadline_ms, b"x", 1)


class FakeOutbox:
    """Keeps what is answered, by job."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}

    def send(self, job: ActiveJob, output: Any) -> None:
        self.answers[job.claimed.job] = output


def nothing(version: str) -> None:
    """In place of pinning."""


class Table(JobTable):
    """A job table for `passes` passes of `PASS` units, whose `passes` the test moves on."""

    def __init__(
        self, passes: int, unpin: Callable[[str], None] = nothing, pass_units: int = PASS, order: Order = "fair"
    ) -> None:
        self.passes = PassProgress()
        super().__init__(ClaimRoom(pass_units, passes, self.passes, order), nothing, unpin)

    def take(self, job: Claimed) -> ActiveJob:
        return self.add(job, 0.0)

    def ready(self, job: ActiveJob, units: int) -> str:
        """Its version is here, it is accepted, and its one piece waits for a pass; the key of that."""
        self.move(job, JobState.PREPARING)
        prepared = Encode(units)
        self.accept(job, prepared)
        self.move(job, JobState.READY)
        return self.queue(job, prepared.pieces()[0])

    def finish(self, job: ActiveJob) -> None:
        """It has a reply; its pass, if it was in one, has ended."""
        if job.state is JobState.RUNNING:
            self.land(job, 0.0)
        self.withdraw(job)
        self.move(job, JobState.ANSWERED)

    def drop(self, job: ActiveJob) -> None:
        """It is settled, or not ours any more."""
        if not job.ended:
            self.withdraw(job)
            self.move(job, JobState.RELEASED)
        self.forget(job)
