"""The worker: one engine, and one life after another in front of it.

A life that loses its lease ends at once, whatever it holds (others have it already); the engine and what is loaded in it live on.
Nothing that the broker says ends the process: it stays up, not ready, and tries again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from fmplex_broker.errors import BrokerFault, BrokerUnavailable
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.streams.connection import open_redis
from fmplex_broker.streams.outages import Outage
from fmplex_worker.host.lease import LeaseLost
from fmplex_worker.host.life import Lasting, Life, MakeScheduler
from fmplex_worker.host.preparation import THREADS
from fmplex_worker.host.tune_desk import MOST
from fmplex_worker.protocol import Engine
from fmplex_worker.residency.fetching import Fetcher
from fmplex_worker.residency.residents import Residents
from fmplex_worker.scheduling import CostModel, make_scheduler

log = logging.getLogger(__name__)
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 1.0
_STEADY_S = 5.0  # a life that lasted so long had a broker
_FETCHES = 4  # from a far store, at a time


class Worker:
    """Hosts one backbone until told to stop. `cost`: warmed by a profile of the engine, or a fresh one; `scheduler`: makes the
    policy that the fleet file names."""

    def __init__(
        self,
        url: str,
        backbone: BackboneSpec,
        spec: WorkerSpec,
        engine: Engine,
        store: ArtifactStore,
        cost: CostModel | None = None,
        scheduler: MakeScheduler = make_scheduler,
    ) -> None:
        # One thread each, for as long as the process lives: a new life must not step while the old one's last pass runs.
        threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("device", "load")}
        threads["intake"] = ThreadPoolExecutor(THREADS, thread_name_prefix="intake")
        # What lies on this machine is read so fast that threads would only stand in each other's way.
        threads["fetch"] = ThreadPoolExecutor(1 if store.local else _FETCHES, thread_name_prefix="fetch")
        # One thread opens trainings, which takes a while; the others save them.
        threads["tune"] = ThreadPoolExecutor(1 + MOST, thread_name_prefix="tune")
        fetcher = Fetcher(store, spec.residency, engine.fit)
        loading = None if engine.info.device == "cpu" else threads["load"]
        self._threads = threads
        self._lasting = Lasting(
            backbone=backbone,
            spec=spec,
            engine=engine,
            cost=cost or CostModel(backbone.pass_units),
            make_scheduler=scheduler,
            residents=Residents(engine, fetcher, engine.info.ledger.residency, threads["fetch"], loading),
            redis=open_redis(url),
            blocking=open_redis(url),
            store=store,
            intake_threads=threads["intake"],
            device_thread=threads["device"],
            tuning_threads=threads["tune"],
        )

    @property
    def ready(self) -> asyncio.Event:
        """Set while it has a lease and has caught up with the deployments."""
        return self._lasting.ready

    def stop(self) -> None:
        """Drain: give back what has not started, finish what runs, leave. `run` returns when done."""
        self._lasting.stop.set()

    async def run(self) -> None:
        """Serve until `stop`. Raises `Conflict` while live workers of the backbone host something else."""
        lasting = self._lasting
        pause_s = _BACKOFF_S
        outage = Outage(log, "not ready")
        try:
            while not lasting.stop.is_set():
                begun = time.monotonic()
                try:
                    await Life(lasting).run()
                except* LeaseLost as lost:
                    log.warning("lost the lease of %s; beginning again", _first(lost))
                except* BrokerUnavailable as away:
                    outage.say(_first(away))
                except* BrokerFault as fault:
                    outage.say(_first(fault))
                if time.monotonic() - begun > _STEADY_S:
                    pause_s = _BACKOFF_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await lasting.stop.wait()
                pause_s = min(2 * pause_s, _LONGEST_BACKOFF_S)
        finally:
            await lasting.residents.close()
            for thread in self._threads.values():
                thread.shutdown(wait=False, cancel_futures=True)
            await lasting.redis.aclose()
            await lasting.blocking.aclose()


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    """Return the first error of a group, which may be one of groups."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
