"""A worker's device task on made-up time: jobs that come by themselves, trainings whose units take what they say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.simulated_parts import (
    ENCODER,
    JOB,
    Encode,
    FakeConsumer,
    FakeEngine,
    FakeRun,
    NoGuard,
    NoMeter,
    Shape,
    Text,
)
from benchmarks.virtual_time import Clock, Device
from fmplex_broker.specs.vfm import Targets
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from fmplex_broker.wire.stats import TrainingStats
from fmplex_broker.wire.streaming import Delta
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.claim_room import ClaimRoom
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.demand import DemandReader
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.landing import Landing
from fmplex_worker.host.pass_loop import PassLoop
from fmplex_worker.host.passes import PassProgress
from fmplex_worker.host.planning import PassPlanner
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.host.training_books import TrainingBooks
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.host.training_turn import TrainingTurn
from fmplex_worker.scheduling import (
    CostModel,
    DeficitRoundRobin,
    KvAdmission,
    Leftover,
    PassBudget,
    Slack,
    TargetBook,
)


def _nothing(version: str) -> None:
    """Stand in for pinning."""


@dataclass
class FakeOutbox:
    """Settles at once; keeps how many seconds each job took; of texts also what each token and the mean one took."""

    worker: World
    latencies: dict[Flow, list[float]] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    _of: dict[str, list[float]] = field(default_factory=dict)  # gaps of a text

    def stream(self, job: ActiveJob, news: Delta) -> None:
        """Note a token."""
        now_ms, vfm = 1000 * self.worker.clock(), job.flow.vfm
        since_ms = job.token_ms or job.claimed.enqueued_ms
        (self.gaps if job.token_ms else self.firsts).append((now_ms - since_ms) / 1000)
        if job.token_ms:
            self._of.setdefault(job.key, []).append(self.gaps[-1])
        if self.worker.turn and job.token_ms:
            self.worker.books.next_tokens(vfm, 1, now_ms - since_ms)
        elif self.worker.turn:
            self.worker.books.first_token(vfm, now_ms - since_ms)
        job.token_ms = now_ms

    def send(self, job: ActiveJob, output: Any) -> None:
        """Settle an answer."""
        at = self.worker.clock()
        took = at - job.claimed.enqueued_ms / 1000
        self.latencies.setdefault(job.flow, []).append(took)
        if job.token_ms:
            self.stream(job, Delta(0, "", tokens=1))
            gaps = self._of.pop(job.key)
            self.means.append(sum(gaps) / len(gaps))
        if self.worker.turn and job.flow.cls == INTERACTIVE:
            self.worker.books.answered(job.flow.vfm, 1000 * took)
        self.worker.table.forget(job)


class World:
    """The parts of a worker that meet at its device. `spend` None: a worker that takes no tuning jobs."""

    def __init__(
        self,
        clock: Clock,
        spend: float | None = 0.8,
        idle_share: float = 0.5,
        trickle: float = 0.02,
        books: type[TrainingBooks] = TrainingBooks,
        device: Any = None,
        shape: Shape = ENCODER,
    ) -> None:
        self.clock = clock
        self.shape = shape
        self.device = device or Device(clock, shape.pass_s)
        self.cost = cost = CostModel(shape.units)
        for part in (0.01, 0.11, 0.34, 0.68, 1.0) * 3:
            units = max(1, int(part * shape.units))
            cost.observe(units, 0, 0, shape.pass_s(units))
        self.scheduler = DeficitRoundRobin(cost, shape.units)
        self.passes = PassProgress()
        self.table = JobTable(ClaimRoom(shape.units, 3, self.passes), _nothing, _nothing)
        self.outbox = FakeOutbox(self)
        self.consumer = FakeConsumer()
        server, engine = ServerClock(), FakeEngine()
        server.set(0)
        self.recorder = recorder = Recorder("b", "w", self.scheduler, server)
        self.dispatcher = Dispatcher(engine, self.scheduler, self.table, KvAdmission(1 << 40, {}), self.outbox)  # type: ignore[arg-type]
        self._planner = PassPlanner(self.scheduler, engine, cost, NoGuard(), server, recorder)  # type: ignore[arg-type]
        self._landing = Landing(self.table, self.dispatcher, self.outbox, cost, server, NoMeter())  # type: ignore[arg-type]
        self.targets = TargetBook(PassBudget(cost, shape.units))
        self.blame = Blame(self.consumer)  # type: ignore[arg-type]
        self.turn: TrainingTurn | None = None
        if spend is not None:
            self.slack = Slack(spend, 0.9, 0.05)
            self.books = books(TrainingStats(), self.slack, self.targets, recorder)
            self.demand = DemandReader(self.table, server, self.targets, cost, self.scheduler)
            self.leftover = leftover = Leftover(idle_share, trickle, 0.05)
            self.turn = TrainingTurn(self.slack, leftover, self.demand, self.device, self.table, self.blame, self.books)
        self._came = 0
        self.lend_by(self.turn)

    def lend_by(self, turn: TrainingTurn | None) -> None:
        """Let units run when `turn` says so; before it is entered."""
        self.loop = PassLoop(self._planner, self.device, self.table, self.passes, self.blame, self._landing, turn)

    def come(
        self,
        vfm: str,
        cls: str = INTERACTIVE,
        units: int = JOB,
        target_ms: float = 0.0,
        targets: Targets | None = None,
        text: Text | None = None,
    ) -> None:
        """Let a job come, which is ready at once."""
        self._came += 1
        ms = 1000 * self.clock()
        claimed = Claimed(
            Flow(vfm, cls), f"{int(ms)}-{self._came}", f"job{self._came}", "in", "v", units, int(ms) + 60_000, b"x", 1
        )
        if cls == INTERACTIVE:
            self.targets.record(vfm, targets or Targets(target_ms), self.clock())
        job = self.table.add(claimed, self.clock())
        self.table.move(job, JobState.PREPARING)
        self.dispatcher.enter(job, text or Encode(units))  # type: ignore[arg-type]

    async def arrivals(
        self,
        vfm: str,
        rate: float,
        seconds: float,
        target_ms: float = 0.0,
        seed: int = 0,
        come: Callable[[], None] | None = None,
    ) -> None:
        """Jobs come at random, so many a second."""
        rng = random.Random(seed)
        end = self.clock() + seconds
        while True:
            await asyncio.sleep(rng.expovariate(rate))
            if self.clock() >= end:
                return
            come() if come else self.come(vfm, target_ms=target_ms)

    async def offline(self, vfm: str = "night") -> None:
        """There is always offline work, for ever."""
        while True:
            while self.table.waiting[OFFLINE] < 2 * self.shape.units:
                self.come(vfm, OFFLINE)
            await asyncio.sleep(0.01)

    def training(self, name: str = "t", weight: float = 1.0, **more: Any) -> tuple[TrainingJob, FakeRun]:
        """Make a training."""
        run = FakeRun(self.device, name, **more)
        return TrainingJob(name, name, weight, run), run

    def charged(self) -> dict[str, float]:
        """Seconds that each training's units took."""
        return dict(self.device.by)

    @property
    def trained_s(self) -> float:
        """Seconds of all units."""
        return sum(self.books.stats.seconds.values())

    async def __aenter__(self) -> World:
        self._task = asyncio.create_task(self.loop.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.loop.stop()
        await asyncio.wait({self._task}, timeout=60)
        self._task.cancel()
