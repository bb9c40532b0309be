"""The worker: one engine, and one life after another in front of it.

A life is a lease under a new id with three tasks that never wait for each other (intake, device, outbox), a heartbeat, a
listener and a reporter. A life that loses its lease ends at once, whatever it holds (others have it already); the engine and
what is loaded in it live on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.consumer import HERE_TTL_MS, Consumer, Signals
from fmplex_broker.streams.fleet import publish
from fmplex_broker.streams.producer import new_id
from fmplex_broker.streams.registry import Registry
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.deployments import DeploymentFollower
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.intake import Intake
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.lease import Lease, LeaseLost
from fmplex_worker.host.outbox import Outbox
from fmplex_worker.host.pass_loop import PassLoop
from fmplex_worker.host.stats import Meter
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.protocol import Engine
from fmplex_worker.residency.fetching import Fetcher
from fmplex_worker.residency.residents import Residents
from fmplex_worker.scheduling import CostModel, KvAdmission, PassBudget, make_scheduler

log = logging.getLogger(__name__)
_REPORT_S = 1.0
_DWELL_S = 0.1
_REFRESH_S = HERE_TTL_MS / 3000
_BACKOFF_S = 0.5
_LEAVE_S = 5.0
_FETCHES = 4  # from a far store, at a time


class Worker:
    """Hosts one backbone until told to stop. `cost`: warmed by a profile of the engine, or a fresh one."""

    def __init__(
        self,
        url: str,
        backbone: BackboneSpec,
        spec: WorkerSpec,
        engine: Engine,
        store: ArtifactStore,
        cost: CostModel | None = None,
    ) -> None:
        self.backbone = backbone
        self.spec = spec
        self.engine = engine
        self.cost = cost or CostModel(backbone.pass_units)
        self._redis = open_redis(url)
        self._blocking = open_redis(url)  # blocking reads have a connection of their own
        self._scripts = Scripts(self._redis)
        self._registry = Registry(self._redis, self._scripts)
        self._stop = asyncio.Event()
        self.ready = asyncio.Event()  # has joined and caught up with the deployments
        # One thread each, for as long as the process lives: a new life must not step while the old one's last pass runs.
        self.threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("intake", "device", "load")}
        # What lies on this machine is read so fast that threads would only stand in each other's way.
        self.threads["fetch"] = ThreadPoolExecutor(1 if store.local else _FETCHES, thread_name_prefix="fetch")
        fetcher = Fetcher(store, spec.residency, engine.fit)
        loading = None if engine.info.device == "cpu" else self.threads["load"]
        self.residents = Residents(engine, fetcher, spec.residency.device_bytes, self.threads["fetch"], loading)

    def stop(self) -> None:
        """Drain: give back what has not started, finish what runs, leave. `run` returns when done."""
        self._stop.set()

    async def run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    await _Life(self).run()
                except* LeaseLost as lost:
                    log.warning("lost the lease of %s; beginning again", lost.exceptions[0])
                except* BrokerUnavailable as away:
                    log.warning("%s", away.exceptions[0])
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_BACKOFF_S):
                            await self._stop.wait()
        finally:
            await self.residents.close()
            for thread in self.threads.values():
                thread.shutdown(wait=False, cancel_futures=True)
            await self._redis.aclose()
            await self._blocking.aclose()


class _Life:
    """One incarnation of a worker."""

    def __init__(self, worker: Worker) -> None:
        w = self._w = worker
        self._id = f"{w.backbone.name}-{new_id()}"
        self._clock = ServerClock()
        lease = w.spec.lease_ms
        self._consumer = Consumer(w._redis, w._scripts, w.backbone.name, self._id, lease_ms=lease)
        self._listening = Consumer(w._blocking, Scripts(w._blocking), w.backbone.name, self._id, lease_ms=lease)
        self._scheduler = make_scheduler(
            w.spec.policy, w.cost, w.backbone.pass_units,
            trickle=w.spec.offline_trickle, offline_slice=w.spec.offline_slice_ms / 1000,
        )  # fmt: skip
        self._budget = PassBudget(w.cost, w.backbone.pass_units)
        self._missed: list[str] = []  # vFMs whose latency targets no pass is short enough for
        self._meter = Meter(w.engine)
        w.residents.unpin_all()  # by jobs of an earlier life, which are not ours any more
        self._window = JobTable(w.backbone.pass_units, w.spec.window_passes, w.residents.unpin)
        self._library = DeploymentFollower(w._registry, w.backbone.name, self._scheduler, w.residents)
        self._outbox = Outbox(self._consumer, self._window, self._clock, self._meter)
        seats = KvAdmission(w.engine.capacity.memory, self._scheduler.weights)
        self._seating = Dispatcher(w.engine, self._scheduler, self._window, seats)
        self._intake = Intake(
            self._consumer, self._window, self._scheduler, self._budget, w.engine, w.residents, self._seating, self._outbox,
            self._clock, w.threads["intake"], w.spec.residency.steal_ms, "arrival" if w.spec.policy == "fifo" else "fair",
        )  # fmt: skip
        self._recorder = Recorder(w.backbone.name, self._id, self._scheduler, self._clock)
        self._device = PassLoop(
            w.engine, self._scheduler, w.cost, self._window, self._seating, self._outbox, self._consumer, self._clock,
            self._meter, w.threads["device"], self._recorder,
        )  # fmt: skip

    async def run(self) -> None:
        """Until told to stop (returns after a drain) or the lease is lost (raises an exception group)."""
        try:
            await self._join()
            async with asyncio.TaskGroup() as group:
                lease = group.create_task(self._lease().run())  # first: loading may take longer than a lease
                await self._library.catch_up(self._id)  # before the first claim: what is on offer is voted on
                self._w.ready.set()
                log.info("worker %s serves backbone %s", self._id, self._w.backbone.name)
                intake = group.create_task(self._intake.run())
                device = group.create_task(self._device.run())
                others = [
                    group.create_task(task)
                    for task in (
                        self._outbox.run(),
                        self._outbox.tell_all(),
                        self._listen(),
                        self._report(),
                        self._dwell(),
                        self._library.follow(self._id),
                    )
                ]
                await self._w._stop.wait()
                await self._drain(intake, device)
                for task in (lease, *others):
                    task.cancel()
        finally:
            self._w.ready.clear()
            self._seating.abandon(self._w.threads["device"])

    async def _join(self) -> None:
        info = self._w.engine.info
        await self._w._registry.register_backbone(
            BackboneInfo(
                name=info.name, model=self._w.backbone.model, modality=info.modality, hidden=info.hidden,
                max_tokens=info.max_tokens,
            )
        )  # fmt: skip
        beat = await self._consumer.join()
        self._clock.told(beat.now_ms)
        self._library.told(beat.changes)

    def _lease(self) -> Lease:
        w = self._w
        return Lease(self._consumer, self._clock, w.spec.lease_ms, w.spec.max_attempts, self._library.told)

    async def _listen(self) -> None:
        while True:
            try:
                words = await self._listening.listen()
            except BrokerUnavailable:
                await asyncio.sleep(_BACKOFF_S)
                words = Signals(True, [], [])  # whatever was said meanwhile; the next beats tell of changes
            if words.woken:
                self._intake.ring()
            self._library.hear(words.changed)
            for key in words.cancelled:
                self._device.cancel(key)

    async def _report(self) -> None:
        w = self._w
        while True:
            self._set_budget()
            if not self._window.running or self._meter.memory_is_old:
                await asyncio.to_thread(self._meter.memory)
            shares = self._scheduler.shares()
            stats = self._meter.snapshot(
                self._id,
                held=len(self._window),
                residency=w.residents.snapshot(),
                shares=shares,
                cost=w.cost,
                budget=self._scheduler.budget,
                memory=self._seating.memory,
            )
            with suppress(BrokerUnavailable):
                self._recorder.listen(await publish(w._redis, stats, self._recorder.drain(shares)))
            await w.residents.trim()
            await asyncio.sleep(_REPORT_S)

    def _set_budget(self) -> None:
        """Passes as long as the latency targets allow."""
        units = self._budget.units(time.monotonic())
        if units != self._scheduler.budget:
            log.info("pass budget: %d units", units)
            self._scheduler.budget = self._window.pass_units = units
            self._w.engine.aim(units)
        missed = self._budget.missed()
        for vfm in set(missed) - set(self._missed):
            log.warning("the latency target of vFM %s is too short for passes of %d units", vfm, self._budget.least)
        self._missed = missed

    async def _dwell(self) -> None:
        """Keep the claims' hint of what is resident here."""
        told: set[str] = set()
        refreshed = 0.0
        while True:
            here = self._w.residents.here()
            due = time.monotonic() > refreshed + _REFRESH_S  # all of it again, before the hint runs out
            try:
                if due or here != told:
                    await self._consumer.announce_resident(sorted(here if due else here - told), sorted(told - here))
                    refreshed = time.monotonic() if due else refreshed
                told = here
            except BrokerUnavailable:
                told |= here  # which of it has arrived is not known
                refreshed = 0.0
            await asyncio.sleep(_DWELL_S)

    async def _drain(self, intake: asyncio.Task[None], device: asyncio.Task[None]) -> None:
        """Unstarted jobs go back at once; running ones end; the lease goes last."""
        log.info("worker %s drains", self._id)
        with suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(self._w.spec.drain_s):
                intake.cancel()
                await asyncio.wait({intake})
                await self._intake.recover()  # a claim may have been under way
                given = await self._intake.give_back()
                log.info("worker %s has given %d jobs back", self._id, given)
                self._device.stop()
                await asyncio.wait({device})
                await self._outbox.flushed()
        device.cancel()
        with suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(_LEAVE_S):
                await self._consumer.leave()  # what is not done by now goes to others
                log.info("worker %s has left", self._id)
