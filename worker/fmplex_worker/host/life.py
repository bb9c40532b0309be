"""One incarnation of a worker: a lease under a new id, and the tasks that serve under it.

Three of them never wait for each other (intake, pass loop, outbox); beside them run a heartbeat, a listener and a reporter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field

from fmplex_broker.errors import BrokerUnavailable, Conflict
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.streams.claims import Order
from fmplex_broker.streams.connection import Client, Scripts
from fmplex_broker.streams.consumer import Beat, Consumer
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.producer import new_id
from fmplex_broker.streams.registry import Registry
from fmplex_broker.streams.tune_owner import TuneOwner
from fmplex_broker.streams.tunes import Tunes
from fmplex_broker.wire.stats import TrainingStats
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.budget_setting import BudgetSetting
from fmplex_worker.host.claim_pacing import ClaimPacer
from fmplex_worker.host.claim_room import ClaimRoom
from fmplex_worker.host.claiming import Claimer
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.deadline_guard import DeadlineGuard
from fmplex_worker.host.demand import DemandReader
from fmplex_worker.host.deployments import DeploymentFollower
from fmplex_worker.host.device_thread import DeviceThread
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.intake import Intake
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.landing import Landing
from fmplex_worker.host.lease import Lease
from fmplex_worker.host.listening import Listener
from fmplex_worker.host.outbox import Outbox
from fmplex_worker.host.pass_loop import PassLoop
from fmplex_worker.host.passes import PassProgress
from fmplex_worker.host.planning import PassPlanner
from fmplex_worker.host.preparation import Preparation
from fmplex_worker.host.reporting import Reporter
from fmplex_worker.host.residency_hint import ResidencyHint
from fmplex_worker.host.stats import Meter
from fmplex_worker.host.streaming import ChunkSender
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.host.training import TrainingTask
from fmplex_worker.host.training_books import TrainingBooks
from fmplex_worker.host.training_turn import TrainingTurn
from fmplex_worker.host.tune_desk import TuneDesk
from fmplex_worker.host.tune_memory import TuneMemory
from fmplex_worker.host.tune_publishing import Publisher
from fmplex_worker.host.tune_shelf import TuneShelf
from fmplex_worker.host.version_loads import VersionLoads
from fmplex_worker.protocol import Engine
from fmplex_worker.residency.residents import Residents
from fmplex_worker.scheduling import CostModel, KvAdmission, Leftover, PassBudget, Scheduler, Slack, TargetBook

log = logging.getLogger(__name__)
_LEAVE_S = 5.0

MakeScheduler = Callable[..., Scheduler]


@dataclass(frozen=True, slots=True)
class Lasting:
    """What outlives a life of a worker: the engine, what is loaded in it, threads, connections. `blocking`: blocking reads have
    a connection of their own; `store`: what tuning jobs read and write; `stop`: set once the worker is to drain; `ready`: while a
    life serves."""

    backbone: BackboneSpec
    spec: WorkerSpec
    engine: Engine
    cost: CostModel
    make_scheduler: MakeScheduler
    residents: Residents
    redis: Client
    blocking: Client
    store: ArtifactStore
    intake_threads: Executor
    device_thread: Executor
    tuning_threads: Executor
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class Life:
    """Serves under one lease, until that is lost or the worker stops."""

    def __init__(self, lasting: Lasting) -> None:
        self._lasting = lasting
        spec, name = lasting.spec, lasting.backbone.name
        self._id = f"{name}-{new_id()}"
        self._clock = ServerClock()
        scripts = Scripts(lasting.redis)
        self._registry = Registry(lasting.redis, scripts)
        self._consumer = Consumer(lasting.redis, scripts, name, self._id, lease_ms=spec.lease_ms)
        self._scheduler = lasting.make_scheduler(
            spec.policy, lasting.cost, lasting.backbone.pass_units,
            trickle=spec.offline_trickle, offline_slice=spec.offline_slice_ms / 1000,
        )  # fmt: skip
        self._budget = PassBudget(lasting.cost, lasting.backbone.pass_units)
        self._targets = TargetBook(self._budget)
        self._recorder = Recorder(name, self._id, self._scheduler, self._clock)
        self._meter = Meter(self._id, lasting.engine, lasting.cost)
        self._loads = VersionLoads(self._consumer, lasting.residents, spec.max_attempts, spec.lease_ms / 1000)
        self._deployments = DeploymentFollower(
            self._registry, name, self._scheduler, self._loads, lasting.engine.info.fingerprint.digest
        )
        lasting.residents.unpin_all()  # by jobs of an earlier life, which are not ours any more
        self._lay_out_jobs()
        self._lay_out_tasks()

    def _lay_out_jobs(self) -> None:
        """Make what keeps the jobs, and what moves them from state to state."""
        has, spec = self._lasting, self._lasting.spec
        self._passes = PassProgress()
        self._order: Order = "arrival" if spec.policy == "fifo" else "fair"
        room = ClaimRoom(has.backbone.pass_units, spec.window_passes, self._passes, self._order)
        self._table = JobTable(room, has.residents.pin, has.residents.unpin)
        self._chunks = ChunkSender(self._consumer)
        self._outbox = Outbox(self._consumer, self._table, self._clock, self._meter, self._chunks)
        admission = KvAdmission(has.engine.capacity.memory, self._scheduler.weights)
        self._dispatcher = Dispatcher(has.engine, self._scheduler, self._table, admission, self._outbox)

    def _lay_out_tasks(self) -> None:
        """Make the tasks that call on them."""
        has, spec = self._lasting, self._lasting.spec
        self._blame = Blame(self._consumer)
        steal_ms = spec.residency.steal_ms
        self._claimer = Claimer(
            self._consumer, self._table, self._scheduler, self._targets, steal_ms, self._order, self._blame
        )
        tasks = asyncio.TaskGroup()
        preparation = Preparation(has.engine, self._dispatcher, self._clock, has.intake_threads, self._blame, tasks)
        pacer = ClaimPacer(self._table, self._passes)
        hosted = has.engine.info.fingerprint.digest
        self._intake = Intake(self._claimer, pacer, self._table, self._loads, self._dispatcher, preparation, hosted)
        guard = DeadlineGuard(
            self._table, self._dispatcher, self._scheduler, has.engine, has.cost, self._passes, self._clock
        )
        planner = PassPlanner(self._scheduler, has.engine, has.cost, guard, self._clock, self._recorder)
        landing = Landing(self._table, self._dispatcher, self._outbox, has.cost, self._clock, self._meter)
        self._device = DeviceThread(has.engine, has.device_thread)
        self.turn = self._make_turn() if spec.tuning.enabled else None
        stats = self._meter.stats.training
        self._training = None if self.turn is None or stats is None else self._make_training(self.turn, stats)
        self._pass_loop = PassLoop(planner, self._device, self._table, self._passes, self._blame, landing, self.turn)
        blocking = Consumer(has.blocking, Scripts(has.blocking), has.backbone.name, self._id, lease_ms=spec.lease_ms)
        self._budget_setting = BudgetSetting(self._budget, self._scheduler, self._table.room, has.engine)
        self._listener = Listener(blocking, self._intake, self._deployments, self._dispatcher)
        self._reporter = Reporter(
            has.redis, self._meter, self._recorder, self._scheduler, self._table, self._dispatcher, has.residents
        )

    def _make_turn(self) -> TrainingTurn:
        """Make what lends the device to tuning jobs."""
        has, tuning = self._lasting, self._lasting.spec.tuning
        slack = Slack(tuning.spend, tuning.spend_tokens, tuning.unit_ms / 1000)
        leftover = Leftover(tuning.idle_share, tuning.trickle, has.spec.offline_trickle)
        demand = DemandReader(self._table, self._clock, self._targets, has.cost, self._scheduler)
        self._meter.books = books = TrainingBooks(TrainingStats(), slack, self._targets, self._recorder)
        self._meter.stats.training = books.stats
        return TrainingTurn(slack, leftover, demand, self._device, self._table, self._blame, books)

    def _make_training(self, turn: TrainingTurn, stats: TrainingStats) -> TrainingTask:
        """Make what takes tuning jobs."""
        has, scripts = self._lasting, Scripts(self._lasting.redis)
        desk = TuneDesk(
            backbone=has.backbone,
            engine=has.engine,
            turn=turn,
            blame=self._blame,
            owner=TuneOwner(has.redis, scripts, has.backbone.name, self._id),
            tunes=Tunes(has.redis, scripts),
            files=FileList(has.redis),
            shelf=TuneShelf(has.store),
            publisher=Publisher(self._registry, has.engine.info.fingerprint.digest),
            threads=has.tuning_threads,
            memory=TuneMemory(has.engine.info.ledger.tuning, stats),
        )
        return TrainingTask(desk, self._table, has.spec.max_attempts)

    async def run(self) -> None:
        """Serve until told to stop (returns after a drain) or the lease is lost (raises an exception group)."""
        lasting = self._lasting
        try:
            await self._join()
            async with asyncio.TaskGroup() as group:
                lease = group.create_task(self._lease().run())  # first: loading may take longer than a lease
                # Until a worker has claimed once, tuning jobs for its backbone are refused.
                tuning = None if self._training is None else group.create_task(self._training.run())
                await self._deployments.catch_up(self._id)  # before the first claim: what is on offer is voted on
                lasting.ready.set()
                log.info("worker %s serves backbone %s", self._id, lasting.backbone.name)
                intake = group.create_task(self._intake.run())
                passes = group.create_task(self._pass_loop.run())
                others = [
                    group.create_task(task)
                    for task in (
                        self._outbox.run(),
                        self._chunks.run(),
                        self._listener.run(),
                        self._reporter.run(),
                        self._budget_setting.run(),
                        ResidencyHint(self._consumer, lasting.residents).run(),
                        self._deployments.follow(self._id),
                    )
                ]
                await lasting.stop.wait()
                await self._drain(intake, passes, tuning)
                for task in (lease, *others):
                    task.cancel()
        finally:
            lasting.ready.clear()
            self._dispatcher.abandon(self._device)

    async def _join(self) -> None:
        info = self._lasting.engine.info
        beat = await self._take_lease()
        await self._registry.register_backbone(
            BackboneInfo(
                name=info.name, model=self._lasting.backbone.model, modality=info.modality, hidden=info.hidden,
                max_tokens=info.max_tokens, generates=info.generates,
            )
        )  # fmt: skip
        self._clock.set(beat.now_ms)
        self._deployments.count(beat.changes)

    async def _take_lease(self) -> Beat:
        """Take a lease. Raises `Conflict` if workers that host something else still live once any that had died has lost its."""
        lease_s = self._lasting.spec.lease_ms / 1000
        end = time.monotonic() + 1.5 * lease_s
        while True:
            try:
                return await self._consumer.join(
                    self._lasting.engine.info.fingerprint, self._lasting.backbone.max_pending_bytes
                )
            except Conflict:
                if time.monotonic() > end or self._lasting.stop.is_set():
                    raise
            await asyncio.sleep(lease_s / 10)

    def _lease(self) -> Lease:
        spec = self._lasting.spec
        return Lease(self._consumer, self._clock, spec.lease_ms, spec.max_attempts, self._deployments.count)

    async def _drain(
        self, intake: asyncio.Task[None], passes: asyncio.Task[None], tuning: asyncio.Task[None] | None
    ) -> None:
        """Give unstarted jobs and trainings back at once and let running jobs end; the lease goes last."""
        log.info("worker %s drains", self._id)
        if self.turn is not None and self._training is not None:
            self.turn.stop()
            self._training.stop()
        with suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(self._lasting.spec.drain_s):
                intake.cancel()
                await asyncio.wait({intake})
                with suppress(BrokerUnavailable):
                    await self._blame.pardon()
                await self._claimer.recover()  # a claim may have been under way
                given = await self._claimer.release(job.claimed for job in self._dispatcher.release_idle())
                log.info("worker %s has given %d jobs back", self._id, given)
                self._pass_loop.stop()
                await asyncio.wait({passes})
                await self._outbox.flushed()
                if tuning is not None:
                    await asyncio.wait({tuning})
        passes.cancel()
        if tuning is not None:
            tuning.cancel()
        with suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(_LEAVE_S):
                await self._consumer.leave()  # what is not done by now goes to others
                log.info("worker %s has left", self._id)
