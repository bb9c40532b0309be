"""The worker: one engine, and one life after another in front of it.

A life is a lease under a new id with three tasks that never wait for each other (intake, device, outbox), a heartbeat, a
listener and a reporter. A life that loses its lease ends at once, whatever it holds (others have it already); the engine and
what is loaded in it live on.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from fmplex_broker.deployments import BackboneInfo
from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.specs import BackboneSpec, WorkerSpec
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.consumer import Consumer, Words
from fmplex_broker.streams.fleet import publish
from fmplex_broker.streams.producer import new_id
from fmplex_broker.streams.registry import Registry
from fmplex_worker.clock import ServerClock
from fmplex_worker.device import Device
from fmplex_worker.engines.protocol import Engine
from fmplex_worker.intake import Intake
from fmplex_worker.lease import Lease, LeaseLost
from fmplex_worker.library import Library
from fmplex_worker.outbox import Outbox
from fmplex_worker.scheduling import CostModel, make_scheduler
from fmplex_worker.stats import Meter
from fmplex_worker.window import Window

log = logging.getLogger(__name__)
_REPORT_S = 1.0
_BACKOFF_S = 0.5


class Worker:
    """Hosts one backbone until told to stop. `cost`: warmed by a profile of the engine, or a fresh one."""

    def __init__(
        self, url: str, backbone: BackboneSpec, spec: WorkerSpec, engine: Engine, cost: CostModel | None = None
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
        self.threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("intake", "device", "loader")}

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
        self._scheduler = make_scheduler(w.spec.policy, w.cost, w.backbone.pass_units)
        self._meter = Meter(w.engine.info)
        self._window = Window(w.backbone.pass_units, w.spec.window_passes)
        self._library = Library(
            w.engine, w._registry, w.backbone.name, w.spec.roots, self._scheduler, w.threads["loader"]
        )
        self._outbox = Outbox(self._consumer, self._window, self._clock, self._meter)
        self._intake = Intake(
            self._consumer, self._window, self._scheduler, w.engine, self._library, self._outbox, self._clock,
            w.threads["intake"],
        )  # fmt: skip
        self._device = Device(
            w.engine, self._scheduler, self._window, self._outbox, self._consumer, self._clock, self._meter,
            w.threads["device"],
        )  # fmt: skip

    async def run(self) -> None:
        """Until told to stop (returns after a drain) or the lease is lost (raises an exception group)."""
        try:
            await self._join()
            async with asyncio.TaskGroup() as group:
                lease = group.create_task(self._lease().run())  # first: loading may take longer than a lease
                await self._library.catch_up(self._id)  # before the first claim: what serves is here
                self._w.ready.set()
                log.info("worker %s serves backbone %s", self._id, self._w.backbone.name)
                intake = group.create_task(self._intake.run())
                device = group.create_task(self._device.run())
                others = [
                    group.create_task(task)
                    for task in (self._outbox.run(), self._listen(), self._report(), self._library.follow(self._id))
                ]
                await self._w._stop.wait()
                await self._drain(intake, device)
                for task in (lease, *others):
                    task.cancel()
        finally:
            self._w.ready.clear()

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
        self._library.note(beat.changes)

    def _lease(self) -> Lease:
        w = self._w
        return Lease(self._consumer, self._clock, w.spec.lease_ms, w.spec.max_attempts, self._library.note)

    async def _listen(self) -> None:
        while True:
            try:
                words = await self._listening.listen()
            except BrokerUnavailable:
                await asyncio.sleep(_BACKOFF_S)
                words = Words(True, [], True)  # whatever was said meanwhile
            if words.woken:
                self._intake.ring()
            if words.changed:
                self._library.changed.set()
            for key in words.cancelled:
                self._device.cancel(key)

    async def _report(self) -> None:
        w = self._w
        while True:
            await asyncio.to_thread(self._meter.memory)
            stats = self._meter.snapshot(
                self._id,
                held=len(self._window),
                loaded=w.engine.loaded,
                shares=self._scheduler.shares(),
                cost_error=w.cost.error,
            )
            with suppress(BrokerUnavailable):
                await publish(w._redis, stats)
            await asyncio.sleep(_REPORT_S)

    async def _drain(self, intake: asyncio.Task[None], device: asyncio.Task[None]) -> None:
        """Unstarted jobs go back at once; running ones end; the lease goes last."""
        log.info("worker %s drains", self._id)
        with suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(self._w.spec.drain_s):
                intake.cancel()
                await asyncio.wait({intake})
                await self._intake.recover()  # a claim may have been under way
                given = await self._intake.give_back()
                self._device.stop()
                await asyncio.wait({device})
                await self._outbox.flushed()
                await self._consumer.leave()
                log.info("worker %s has left; %d jobs given back", self._id, given)
        device.cancel()
