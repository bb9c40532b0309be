"""A worker's device task on made-up time: jobs that come by themselves, trainings whose units take what they say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from fmplex_broker.specs.vfm import Targets
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from fmplex_broker.wire.stats import TrainingStats
from fmplex_broker.wire.streaming import Delta
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.demand import DemandReader
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.landing import Landing
from fmplex_worker.host.pass_loop import PassLoop
from fmplex_worker.host.planning import PassPlanner
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.host.training_books import TrainingBooks
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.host.training_turn import TrainingTurn
from fmplex_worker.protocol import Capacity, Piece, Progress
from fmplex_worker.scheduling import (
    CostModel,
    DeficitRoundRobin,
    KvAdmission,
    Leftover,
    PassBudget,
    Slack,
    TargetBook,
)
from fmplex_worker.training import RunProgress, Unit
from tests.unit.host.tables import Encode, Table
from tests.unit.host.virtual_time import Clock, Device

ALPHA, BETA = 0.016, 0.00048  # seconds of a pass, and of each of its units
UNITS, JOB = 175, 16  # units of a full pass, 100 ms; of a job
FULL_RATE = UNITS / (ALPHA + BETA * UNITS) / JOB  # jobs a second
FORWARD, BACKWARD = 0.021, 0.025


def pass_s(units: int) -> float:
    return ALPHA + BETA * units


class FakeRun:
    """A training of endless, or so many, micro-batches of two layers: units as a real one has them."""

    def __init__(self, device: Device, name: str, batches: float = float("inf"), scale: float = 1.0) -> None:
        self._device = device
        self._name = name
        self._scale = scale
        self._left = batches
        self._kinds: list[tuple[Any, int, float]] = []
        self.ran: list[str] = []
        self.fails_at = -1
        self.due = False
        self.snapshots = 0

    def next(self) -> Unit | None:
        if not self._kinds:
            if self._left <= 0:
                return None
            self._left -= 1
            self._kinds = [
                ("step", 0, 0.001), ("backward", 128, BACKWARD), ("backward", 128, BACKWARD), ("loss", 128, 0.002),
                ("forward", 128, FORWARD), ("forward", 128, FORWARD),
            ]  # fmt: skip
        kind, tokens, seconds = self._kinds.pop()
        return Unit(kind, tokens, 1e4 * seconds, lambda: self._run(kind, seconds * self._scale))

    def _run(self, kind: str, seconds: float) -> None:
        self._device.spend(seconds, self._name)
        self.ran.append(kind)
        if len(self.ran) == self.fails_at:
            raise ValueError("it diverged")

    @property
    def progress(self) -> RunProgress:
        return RunProgress(self.ran.count("step"), 1000)

    @property
    def checkpoint_due(self) -> bool:
        return self.due

    def snapshot(self) -> Any:
        self.due = False
        self.snapshots += 1
        return SimpleNamespace(step=self.snapshots)

    def package(self) -> dict[str, bytes]:
        return {}


class Text:
    """A job that generates `tokens` after a prompt."""

    kind, digest, adapter, head = "generate", "v", 0, 0

    def __init__(self, prompt: int, tokens: int) -> None:
        self.units = self._prompt = prompt
        self._tokens = tokens
        self.memory = prompt + tokens

    def pieces(self) -> list[Piece]:
        return [Piece("prefill", self._prompt, self._prompt) if self._prompt else Piece("decode", 1, 1)]

    def ran(self, tokens: int) -> Any:
        self._prompt = 0
        self._tokens -= 1
        return Progress(Delta(0, "", tokens=1)) if self._tokens else "done"


class FakeConsumer:
    worker = "w"

    def __init__(self) -> None:
        self.marks: list[tuple[list[str], str]] = []
        self.delay = 0.0
        self.error: Exception | None = None
        self.lost = False

    async def mark(self, jobs: Iterable[Claimed], *, preparing: bool, tuning: str = "") -> bool:
        self.marks.append(([job.job for job in jobs], tuning))
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return not self.lost


class FakeEngine:
    capacity = Capacity(1 << 20)

    def drop(self, prepared: Any) -> None: ...


class NoGuard:
    def answer_hopeless(self, busy_s: float) -> None: ...


class NoMeter:
    def ran(self, units: dict[Flow, int], seconds: float) -> None: ...


@dataclass
class FakeOutbox:
    """Settles at once; keeps how long each job took, in seconds, and when its answer came."""

    worker: World
    latencies: dict[Flow, list[float]] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)

    def stream(self, job: ActiveJob, news: Delta) -> None:
        """A token has come."""
        now_ms, vfm = 1000 * self.worker.clock(), job.flow.vfm
        since_ms = job.token_ms or job.claimed.enqueued_ms
        (self.gaps if job.token_ms else self.firsts).append((now_ms - since_ms) / 1000)
        if self.worker.turn and job.token_ms:
            self.worker.books.next_tokens(vfm, 1, now_ms - since_ms)
        elif self.worker.turn:
            self.worker.books.first_token(vfm, now_ms - since_ms)
        job.token_ms = now_ms

    def send(self, job: ActiveJob, output: Any) -> None:
        at = self.worker.clock()
        took = at - job.claimed.enqueued_ms / 1000
        self.latencies.setdefault(job.flow, []).append(took)
        if job.token_ms:
            self.stream(job, Delta(0, "", tokens=1))
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
    ) -> None:
        self.clock = clock
        self.device = device or Device(clock, pass_s)
        self.cost = cost = CostModel(UNITS)
        for units in (1, 20, 60, 120, UNITS) * 3:
            cost.observe(units, 0, 0, pass_s(units))
        self.scheduler = DeficitRoundRobin(cost, UNITS)
        self.table = Table(3, pass_units=UNITS)
        self.outbox = FakeOutbox(self)
        self.consumer = FakeConsumer()
        server, engine = ServerClock(), FakeEngine()
        server.set(0)
        self.recorder = recorder = Recorder("b", "w", self.scheduler, server)
        self.dispatcher = Dispatcher(engine, self.scheduler, self.table, KvAdmission(1 << 40, {}), self.outbox)  # type: ignore[arg-type]
        planner = PassPlanner(self.scheduler, engine, cost, NoGuard(), server, recorder)  # type: ignore[arg-type]
        landing = Landing(self.table, self.dispatcher, self.outbox, cost, server, NoMeter())  # type: ignore[arg-type]
        self.targets = TargetBook(PassBudget(cost, UNITS))
        self.blame = Blame(self.consumer)  # type: ignore[arg-type]
        self.turn: TrainingTurn | None = None
        if spend is not None:
            self.slack = Slack(spend, 0.9, 0.05)
            self.books = books(TrainingStats(), self.slack, self.targets, recorder)
            self.demand = DemandReader(self.table, server, self.targets, cost, self.scheduler)
            self.leftover = leftover = Leftover(idle_share, trickle, 0.05)
            self.turn = TrainingTurn(self.slack, leftover, self.demand, self.device, self.table, self.blame, self.books)
        self.loop = PassLoop(planner, self.device, self.table, self.table.passes, self.blame, landing, self.turn)
        self._came = 0

    def come(
        self,
        vfm: str,
        cls: str = INTERACTIVE,
        units: int = JOB,
        target_ms: float = 0.0,
        targets: Targets | None = None,
        text: Text | None = None,
    ) -> None:
        """A job comes, and is ready at once."""
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
            while self.table.waiting[OFFLINE] < 2 * UNITS:
                self.come(vfm, OFFLINE)
            await asyncio.sleep(0.01)

    def training(self, name: str = "t", weight: float = 1.0, **more: Any) -> tuple[TrainingJob, FakeRun]:
        run = FakeRun(self.device, name, **more)
        return TrainingJob(name, name, weight, run), run

    @property
    def leftover_owed(self) -> float:
        """Seconds of its trickle that training has not had."""
        return self.leftover._owed

    def charged(self) -> dict[str, float]:
        """Seconds that each training's units took."""
        return dict(self.device.by)

    @property
    def trained_s(self) -> float:
        return sum(self.books.stats.seconds.values())

    async def __aenter__(self) -> World:
        self._task = asyncio.create_task(self.loop.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.loop.stop()
        await asyncio.wait({self._task}, timeout=60)
        self._task.cancel()
