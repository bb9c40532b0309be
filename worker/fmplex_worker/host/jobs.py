"""The jobs in a worker's hands, from claim to settlement, and the one state that each is in.

`JobTable.move` is the only place that writes a state: what follows from it (claim room, the pin of the version, counts) is
brought up to date there and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator

from fmplex_broker.streams.claims import CLAIM_ROOM, Claimed
from fmplex_broker.wire.messages import CLASSES
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.claim_room import ClaimRoom
from fmplex_worker.host.deadlines import DeadlineHeap
from fmplex_worker.host.job_state import TRANSITIONS, JobState
from fmplex_worker.protocol import Piece, Prepared

_UNWANTED = 4096
_MOST_UNSETTLED = 8 * CLAIM_ROOM
_MOST_JOBS = 64 * CLAIM_ROOM


class JobTable:
    """All jobs by key, and sums over them. Event loop only."""

    def __init__(self, room: ClaimRoom, pin: Callable[[str], None], unpin: Callable[[str], None]) -> None:
        """`pin(version)` is called as a job's version has to stay on the device, `unpin(version)` when it need not any more."""
        self.room = room
        self._pin, self._unpin = pin, unpin
        self._jobs: dict[str, ActiveJob] = {}
        self._pieces: dict[str, ActiveJob] = {}  # key of a piece that waits -> its job
        self._deadlines = DeadlineHeap()
        self._unwanted: OrderedDict[str, None] = OrderedDict()  # jobs that were cancelled and are not here
        self._count = dict.fromkeys(JobState, 0)
        self.waiting = dict.fromkeys(CLASSES, 0)  # units of the pieces that wait for a pass
        self.arrived = asyncio.Event()  # something became runnable
        self.freed = asyncio.Event()  # there may be claim room again

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[ActiveJob]:
        return iter(self._jobs.values())

    def get(self, key: str) -> ActiveJob | None:
        """Return the job of this key, if it is here."""
        return self._jobs.get(key)

    def count(self, state: JobState) -> int:
        """Return how many jobs are in a state."""
        return self._count[state]

    @property
    def waiting_units(self) -> int:
        """Units of the pieces that wait for a pass, of all classes."""
        return sum(self.waiting.values())

    def claimable(self, now: float) -> dict[str, int]:
        """Return how many jobs to claim, by class; empty when there is no room.

        A few claims' worth of unsettled replies may wait at most; and more of jobs that wait for memory or hold it: a flow with
        one that waits is not claimed from, but there may be many flows.
        """
        if self._count[JobState.ANSWERED] >= _MOST_UNSETTLED or len(self._jobs) >= _MOST_JOBS:
            return {}
        return self.room.jobs(now)

    # ---- from claim to settlement ----

    def add(self, claimed: Claimed, now: float) -> ActiveJob:
        """Take a job in."""
        job = ActiveJob(claimed, now)
        self._jobs[job.key] = job
        self._count[job.state] += 1
        self.room.add(job.flow, job.room)
        self._deadlines.add(claimed.deadline_ms, job.key)
        return job

    def move(self, job: ActiveJob, state: JobState) -> None:
        """Put a job into its next state.

        Raises `RuntimeError` if that may not follow: a job in a pass stays RUNNING until that has landed, and pieces wait of jobs
        that can run alone.
        """
        before = job.state
        transition = TRANSITIONS[before].get(state)
        stays = (before is JobState.RUNNING and job.in_pass) or (job.pieces and transition and not transition.queued)
        if transition is None or stays:
            raise RuntimeError(f"job {job.claimed.job} cannot go from {before.name} to {state.name}")
        job.state = state
        self._count[before] -= 1
        self._count[state] += 1
        if transition.room and not job.begun:
            self.room.add(job.flow, transition.room * job.units)
        if transition.pin:
            (self._pin if transition.pin > 0 else self._unpin)(job.digest)
        if transition.ends:
            self.freed.set()

    def accept(self, job: ActiveJob, prepared: Prepared) -> None:
        """Keep what the engine made of a job: from its estimated to its real units."""
        room = job.room
        job.prepared, job.units = prepared, prepared.units
        self.room.add(job.flow, job.room - room)
        self.room.learn(job.flow.cls, job.units)

    def forget(self, job: ActiveJob) -> None:
        """Drop a job that is settled or released."""
        if self._jobs.pop(job.key, None) is not None:
            self._count[job.state] -= 1
        self._deadlines.prune(self._jobs)
        self.freed.set()

    # ---- pieces and passes ----

    def queue(self, job: ActiveJob, piece: Piece) -> str:
        """Note that a piece of a job waits for a pass; return the key that it does under."""
        job.piece_number += 1
        key = f"{job.key} {job.piece_number}"
        job.pieces[key] = piece
        self._pieces[key] = job
        self.waiting[job.flow.cls] += piece.units
        self.arrived.set()
        return key

    def withdraw(self, job: ActiveJob) -> list[str]:
        """Take back all pieces of a job that wait; return their keys."""
        keys = list(job.pieces)
        for key in keys:
            self._take(key)
        return keys

    def start(self, key: str) -> tuple[ActiveJob, Piece]:
        """Put a piece into a pass; return it with its job, which is RUNNING from now on."""
        job, piece = self._take(key)
        job.in_pass += 1
        if job.state is not JobState.RUNNING:
            self.move(job, JobState.RUNNING)
        return job, piece

    def _take(self, key: str) -> tuple[ActiveJob, Piece]:
        job = self._pieces.pop(key)
        piece = job.pieces.pop(key)
        self.waiting[job.flow.cls] -= piece.units
        return job, piece

    def land(self, job: ActiveJob, wait_ms: float) -> None:
        """Note that a job's pass has ended; `wait_ms`: how long after it was enqueued that pass began."""
        job.in_pass = 0
        if job.wait_ms is None:
            self.room.add(job.flow, -job.room)
            job.wait_ms = wait_ms
            self.freed.set()

    # ---- ends that nobody here decides ----

    def expired(self, now_ms: float, ahead_ms: float = 0.0) -> list[ActiveJob]:
        """Return the jobs whose deadline is not after `now_ms`, of interactive ones that have not begun not after `ahead_ms` from
        then; none that is in a pass. Each is reported once."""
        return self._deadlines.pop(self._jobs, now_ms, ahead_ms)

    def forgo(self, key: str) -> None:
        """Remember that nobody waits for a job that is not here: it may be on its way, as the claim's reply is still to come, or
        it is in the hands of a worker that will die."""
        self._unwanted[key] = None
        if len(self._unwanted) > _UNWANTED:
            self._unwanted.popitem(last=False)

    def unwanted(self, job: ActiveJob) -> bool:
        """Tell whether a job was cancelled before it came here."""
        return job.key in self._unwanted
